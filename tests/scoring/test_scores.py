"""Each score against a slow version of its formula; what `--score` takes and refuses."""

import doctest
import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from ood_audit.errors import UsageError
from ood_audit.scoring import scores
from ood_audit.scoring.settings import settings_of


def mcm(row, classes, temperature=1.0):
    return max(np.exp(s / temperature) for s in row) / sum(np.exp(s / temperature) for s in row)


def energy(row, classes, temperature=1.0):
    return temperature * np.log(sum(np.exp(s / temperature) for s in row))


def maxlogit(row, classes):
    return max(row)


def logitgap(row, classes):
    ordered = sorted(row, reverse=True)
    others = ordered[1 : 1 + max(5, round(0.2 * len(row)))]
    return ordered[0] - sum(others) / len(others) if others else ordered[0]


def simlabel(row, classes):
    affinities = []
    for i in range(len(row)):
        likeness = [(float(classes[i] @ classes[j]), j) for j in range(len(row)) if j != i]
        nearest = [j for _, j in sorted(likeness, reverse=True)[:10]]
        affinities.append(row[i] + (np.mean([row[j] for j in nearest]) if nearest else 0))
    return softmax(affinities).max()


def knn(row, images, references, neighbours):
    """Of one image: `row` is not used."""
    distances = sorted(np.linalg.norm(images - reference) for reference in references)
    return -distances[min(neighbours, len(distances)) - 1]


def raw(function, cosines, classes, options, as_arrays=False):
    """Apply a score to tensors or as many arrays, with classes where it wants them and something for all else."""
    draw = torch.Generator().manual_seed(0)

    def unit(rows):
        return torch.nn.functional.normalize(torch.randn(rows, 4, generator=draw, dtype=cosines.dtype), dim=1)

    everything = {
        "classes": classes,
        "images": unit(len(cosines)),
        "background": None,
        "folds": torch.zeros(len(cosines), dtype=torch.int64),
        "references": unit(12),
        "reference_folds": torch.full((12,), -1),
        **{f"{name}_classes": unit(cosines.shape[1]) for name in ("neglabel", "csp")},
        **{f"{name}_negatives": unit(300) for name in ("neglabel", "csp")},
    }
    options = {name: value for name, value in options.items() if name not in ("background", "prototypes")}
    given = {name: everything[name] for name in scores.inputs(function)}
    if as_arrays:
        cosines, given = cosines.numpy(), {name: of if of is None else of.numpy() for name, of in given.items()}
    return function(cosines, **given, **options)


SLOW: dict[str, Any] = {"mcm": mcm, "energy": energy, "maxlogit": maxlogit, "logitgap": logitgap, "simlabel": simlabel}


@pytest.mark.parametrize("name", SLOW)
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(0, 10**6))
def test_agrees_with_its_formula(name, count, seed):
    rng = np.random.default_rng(seed)
    classes = rng.normal(size=(count, 8))
    classes /= np.linalg.norm(classes, axis=1, keepdims=True)
    cosines = rng.uniform(-1, 1, (3, count))
    got = raw(scores.load(name), torch.from_numpy(cosines), torch.from_numpy(classes), {})
    np.testing.assert_allclose(got, [SLOW[name](row, classes) for row in cosines], rtol=1e-9)


@pytest.mark.parametrize(
    ("classes", "runners_up"), [(2, 1), (5, 4), (6, 5), (10, 5), (20, 5), (25, 5), (100, 20), (1000, 200)]
)
def test_logitgap_averages_a_fifth_of_the_classes_and_five_at_least(classes, runners_up):
    """The released scripts have 5 of 10, 10 of 20, 20 of 100 and 88 of 1,000, which no one rule gives."""
    cosines = torch.zeros(1, classes, dtype=torch.float64)
    cosines[0, 0], cosines[0, 1] = 2.0, 1.0
    assert scores.load("logitgap")(cosines).item() == pytest.approx(2 - 1 / runners_up)


def test_simlabel_counts_the_ten_most_similar_classes():
    assert scores.options(scores.load("simlabel")) == {"temperature": 1.0, "alpha": 1.0, "similar": 10}


@pytest.mark.parametrize("name", ["mcm", "energy"])
def test_temperature_is_the_formulas(name):
    cosines = np.random.default_rng(0).uniform(0, 0.3, (4, 9))
    got = raw(scores.load(name), torch.from_numpy(cosines), None, {"temperature": 0.01})
    np.testing.assert_allclose(got, [SLOW[name](row, None, 0.01) for row in cosines], rtol=1e-9)


@pytest.mark.parametrize("name", scores.BUILT_IN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 7, 200])
def test_arrays_and_tensors_score_alike(name, dtype, count):
    """To the rounding of their dtype, which is that of what is given; and what is given stays as it is."""
    function = scores.load(name)
    options = settings_of(name, function, {"temperature": 0.05, "top_c": 2, "reset_to": 0.0})
    draw = torch.Generator().manual_seed(count)
    cosines = torch.rand(9, count, generator=draw, dtype=dtype) - 0.5
    classes = torch.nn.functional.normalize(torch.randn(count, 6, generator=draw, dtype=dtype), dim=1)
    before = cosines.clone()
    by_tensors = raw(function, cosines, classes, options)
    by_arrays = raw(function, cosines, classes, options, as_arrays=True)
    assert torch.equal(cosines, before)
    assert isinstance(by_arrays, np.ndarray)
    assert by_tensors.dtype == torch.from_numpy(by_arrays).dtype == dtype
    np.testing.assert_allclose(by_arrays, by_tensors, rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=1e-6)


@pytest.mark.parametrize("name", scores.BUILT_IN)
def test_finite_in_float32_for_one_and_for_many_classes(name):
    function = scores.load(name)
    defaults = {"temperature": 0.01, "top_c": 2, "reset_to": 0.0}
    for count in (1, 2, 3000):
        rng = np.random.default_rng(count)
        classes = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(count, 4)).astype(np.float32)), dim=1)
        cosines = torch.from_numpy(rng.uniform(-1, 1, (2, count)).astype(np.float32))
        got = raw(function, cosines, classes, settings_of(name, function, defaults))
        assert got.shape == (2,)
        assert torch.isfinite(got).all()


def test_an_image_of_a_class_scores_as_more_in_distribution():
    """The sign of each: one clear class against nothing in particular."""
    cosines = torch.full((2, 20), 0.10)
    cosines[0, 3] = 0.25
    classes = torch.eye(20)
    for name in (*SLOW, "delta-energy"):
        function = scores.load(name)
        values = raw(
            function, cosines, classes, settings_of(name, function, {"temperature": 1.0, "top_c": 2, "reset_to": 0.0})
        )
        assert values[0] > values[1], name


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 10**6))
def test_knn_is_the_distance_to_the_kth_reference(references, neighbours, seed):
    rng = np.random.default_rng(seed)
    images, pictures = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in rng.normal(size=(2, 40, 5)))
    images, pictures = images[:4], pictures[:references]
    got = scores.load("knn")(
        torch.zeros(4, 1),
        images=torch.from_numpy(images),
        folds=torch.zeros(4, dtype=torch.int64),
        references=torch.from_numpy(pictures),
        reference_folds=torch.full((references,), -1),
        neighbours=neighbours,
    )
    np.testing.assert_allclose(got, [knn(None, image, pictures, neighbours) for image in images], atol=1e-7)


def test_knn_finds_no_neighbour_in_its_own_fold():
    """An image is among the references: that one, and another of its fold, don't count."""
    pictures = torch.eye(3)
    got = scores.load("knn")(
        torch.zeros(1, 1),
        images=pictures[:1],
        folds=torch.tensor([2]),
        references=torch.cat([pictures, pictures[:1]]),
        reference_folds=torch.tensor([2, 1, -1, 2]),
        neighbours=1,
    )
    assert got.tolist() == pytest.approx([-(2**0.5)])


def test_knn_counts_the_farthest_where_neighbours_are_few():
    """Of each image the k-th that it may be compared with, though another fold may have more of them."""
    pictures = torch.eye(4)[:3]
    got = scores.load("knn")(
        torch.zeros(3, 1),
        images=pictures[:1].repeat(3, 1),
        folds=torch.tensor([0, 1, 2]),
        references=torch.cat([pictures[:1], pictures[1:2], pictures[:1]]),
        reference_folds=torch.tensor([0, 1, 2]),
        neighbours=2,
    )
    assert got.tolist() == pytest.approx([-(2**0.5), 0.0, -(2**0.5)], abs=1e-3)
    none = scores.load("knn")(
        torch.zeros(1, 1),
        images=pictures[:1],
        folds=torch.tensor([0]),
        references=pictures[:1],
        reference_folds=torch.tensor([0]),
    )
    assert none.tolist() == [-2.0]


@pytest.mark.parametrize("name", scores.BUILT_IN)
def test_examples_in_docstrings_run(name):
    module = sys.modules[scores.load(name).__module__]
    assert doctest.testmod(module).failed == 0


def test_settings_come_from_the_score_and_from_the_encoder():
    encoder = {"temperature": 0.02, "top_c": 3, "reset_to": 0.1}
    load = scores.load
    assert settings_of("delta-energy", load("delta-energy"), encoder, {"top_c": 1}) == {
        **encoder,
        "top_c": 1,
        "background": False,
        "prototypes": 0.0,
    }
    assert settings_of("mcm", load("mcm"), encoder, {}) == {"temperature": 1.0, "prototypes": 0.0}
    with pytest.raises(UsageError, match="the score mcm has no `top_c`"):
        settings_of("mcm", load("mcm"), encoder, {"top_c": 2})


def test_unknown_scores_are_refused_by_name():
    with pytest.raises(UsageError, match=r"choose one of delta-energy, mcm, .*logitgap"):
        scores.load("nope")


def test_other_packages_add_scores(monkeypatch):
    def spread(cosines, *, power=1.0):
        return cosines.std(dim=1) ** power

    entry = types.SimpleNamespace(name="spread", load=lambda: spread)
    monkeypatch.setattr(scores, "entry_points", lambda group, name=None: [entry] if name in (None, "spread") else [])
    scores.names.cache_clear()
    try:
        assert scores.names()[-1] == "spread"
        assert scores.options(scores.load("spread")) == {"power": 1.0}
    finally:
        scores.names.cache_clear()
