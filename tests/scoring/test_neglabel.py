"""NegLabel and CSP against the formula, written with loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ood_audit.errors import UsageError
from ood_audit.scoring.scores import neglabel as module
from ood_audit.scoring.scores.csp import csp
from ood_audit.scoring.scores.neglabel import neglabel


def unit(generator, count, dimension=8):
    features = generator.standard_normal((count, dimension))
    return torch.from_numpy(features / np.linalg.norm(features, axis=1, keepdims=True))


def slow(images, classes, negatives, temperature, groups, seed):
    """As published: drop the remainder, permute the columns, cut them into groups, average over these."""
    kept = len(negatives) - len(negatives) % groups
    torch.manual_seed(seed)
    order = torch.randperm(kept).tolist()
    size = kept // groups
    values = []
    for image in images.tolist():

        def similarity(text, image=image):
            return math.exp(sum(a * b for a, b in zip(image, text, strict=True)) / temperature)

        inside = sum(similarity(text) for text in classes.tolist())
        shares = []
        for group in range(groups):
            members = order[group * size : (group + 1) * size]
            outside = sum(similarity(negatives[member].tolist()) for member in members)
            shares.append(inside / (inside + outside))
        values.append(sum(shares) / groups)
    return values


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 6),
    st.integers(0, 30),
    st.sampled_from([0.01, 0.1, 1.0]),
    st.integers(0, 3),
)
def test_against_the_formula(seed, images, classes, groups, more, temperature, permutation):
    generator = np.random.default_rng(seed)
    x, t, n = (unit(generator, count) for count in (images, classes, groups + more))
    given_settings = {"temperature": temperature, "groups": groups, "seed": permutation}
    expected = slow(x, t, n, **given_settings)
    found = neglabel(x @ t.T, images=x, neglabel_classes=t, neglabel_negatives=n, **given_settings)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    same = csp(x @ t.T, images=x, csp_classes=t, csp_negatives=n, **given_settings)
    assert torch.equal(same, found)


def test_published_defaults():
    generator = np.random.default_rng(0)
    x, t, n = unit(generator, 3), unit(generator, 4), unit(generator, 1037)
    expected = slow(x, t, n, temperature=0.01, groups=100, seed=0)
    np.testing.assert_allclose(neglabel(x @ t.T, images=x, neglabel_classes=t, neglabel_negatives=n), expected)
    # 37 are left over by 100 groups: the last ones, wherever the rest goes.
    fewer = neglabel(x @ t.T, images=x, neglabel_classes=t, neglabel_negatives=n[:1000])
    np.testing.assert_allclose(fewer, expected)


def test_slices_do_not_matter(monkeypatch):
    generator = np.random.default_rng(1)
    x, t, n = (unit(generator, count).float() for count in (50, 4, 300))
    whole = neglabel(x @ t.T, images=x, neglabel_classes=t, neglabel_negatives=n)
    monkeypatch.setattr(module, "_SLICE_BYTES", 4 * 300 * 7)
    np.testing.assert_allclose(neglabel(x @ t.T, images=x, neglabel_classes=t, neglabel_negatives=n), whole, rtol=1e-5)
    assert whole.dtype == torch.float32


def test_an_image_of_a_class_is_higher_than_one_of_a_negative():
    generator = np.random.default_rng(2)
    t, n = unit(generator, 5), unit(generator, 200)
    x = torch.cat([t[:1], n[:1]])
    inside, outside = neglabel(x @ t.T, images=x, neglabel_classes=t, neglabel_negatives=n)
    assert 0 <= outside < inside <= 1


@pytest.mark.parametrize("groups", [0, 51])
def test_more_groups_than_negatives(groups):
    generator = np.random.default_rng(4)
    x, t, n = unit(generator, 2), unit(generator, 2), unit(generator, 50)
    with pytest.raises(UsageError, match=rf"{groups} groups of 50 negatives: choose between 1 and 50"):
        neglabel(x @ t.T, images=x, neglabel_classes=t, neglabel_negatives=n, groups=groups)
