"""Each score against a slow version of its formula; what `--score` takes and refuses."""

import types
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from ood_audit import scores
from ood_audit.errors import UsageError
from ood_audit.scoring import settings_of


def mcm(row, classes, temperature=1.0):
    return max(np.exp(s / temperature) for s in row) / sum(np.exp(s / temperature) for s in row)


def energy(row, classes, temperature=1.0):
    return temperature * np.log(sum(np.exp(s / temperature) for s in row))


def maxlogit(row, classes):
    return max(row)


def logitgap(row, classes):
    ordered = sorted(row, reverse=True)
    others = ordered[1 : max(2, round(0.2 * len(row)))]
    return ordered[0] - sum(others) / len(others) if others else ordered[0]


def simlabel(row, classes):
    affinities = []
    for i in range(len(row)):
        likeness = [(float(classes[i] @ classes[j]), j) for j in range(len(row)) if j != i]
        nearest = [j for _, j in sorted(likeness, reverse=True)[:5]]
        affinities.append(row[i] + (np.mean([row[j] for j in nearest]) if nearest else 0))
    return softmax(affinities).max()


SLOW: dict[str, Any] = {"mcm": mcm, "energy": energy, "maxlogit": maxlogit, "logitgap": logitgap, "simlabel": simlabel}


@pytest.mark.parametrize("name", SLOW)
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(0, 10**6))
def test_agrees_with_its_formula(name, count, seed):
    rng = np.random.default_rng(seed)
    classes = rng.normal(size=(count, 8))
    classes /= np.linalg.norm(classes, axis=1, keepdims=True)
    cosines = rng.uniform(-1, 1, (3, count))
    got = scores.raw(scores.load(name), torch.from_numpy(cosines), torch.from_numpy(classes), {})
    np.testing.assert_allclose(got, [SLOW[name](row, classes) for row in cosines], rtol=1e-9)


@pytest.mark.parametrize("name", ["mcm", "energy"])
def test_temperature_is_the_formulas(name):
    cosines = np.random.default_rng(0).uniform(0, 0.3, (4, 9))
    got = scores.raw(scores.load(name), torch.from_numpy(cosines), None, {"temperature": 0.01})
    np.testing.assert_allclose(got, [SLOW[name](row, None, 0.01) for row in cosines], rtol=1e-9)


@pytest.mark.parametrize("name", scores.BUILT_IN)
def test_finite_in_float32_for_one_and_for_many_classes(name):
    function = scores.load(name)
    defaults = {"temperature": 0.01, "top_c": 2, "reset_to": 0.0}
    for count in (1, 2, 3000):
        rng = np.random.default_rng(count)
        classes = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(count, 4)).astype(np.float32)), dim=1)
        cosines = torch.from_numpy(rng.uniform(-1, 1, (2, count)).astype(np.float32))
        got = scores.raw(function, cosines, classes, settings_of(name, function, defaults))
        assert got.shape == (2,)
        assert torch.isfinite(got).all()


def test_an_image_of_a_class_scores_as_more_in_distribution():
    """The sign of each: one clear class against nothing in particular."""
    cosines = torch.full((2, 20), 0.10)
    cosines[0, 3] = 0.25
    classes = torch.eye(20)
    for name in scores.BUILT_IN:
        function = scores.load(name)
        values = scores.raw(
            function, cosines, classes, settings_of(name, function, {"temperature": 1.0, "top_c": 2, "reset_to": 0.0})
        )
        assert values[0] > values[1], name


def test_settings_come_from_the_score_and_from_the_encoder():
    encoder = {"temperature": 0.02, "top_c": 3, "reset_to": 0.1}
    load = scores.load
    assert settings_of("delta-energy", load("delta-energy"), encoder, {"top_c": 1}) == {**encoder, "top_c": 1}
    assert settings_of("mcm", load("mcm"), encoder, {"temperature": None}) == {"temperature": 1.0}
    with pytest.raises(UsageError, match="the score mcm has no --top-c"):
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
