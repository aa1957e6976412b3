"""Where the encoder does not know the classes, the report says so first."""

import json

import numpy as np
import pytest

import ood_audit
from ood_audit import ScoreSettings
from ood_audit.classes import pools
from ood_audit.classes.vocabulary import Vocabulary
from ood_audit.scoring import knows
from tests.helpers.made import make_pool, make_store, problem, unit

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox\x1b[2J", "gnu", "hen")


def sketches(images: int = 200):
    """(N, D) features that say nothing about the classes, and two names that attract none: (K, D)."""
    rng = np.random.default_rng(0)
    common = unit(rng.normal(size=16))
    text = unit(common + 0.05 * rng.normal(size=(8, 16)))
    text[5:7] = unit(-common + 0.05 * rng.normal(size=(2, 16)))
    return unit(common + 0.3 * rng.normal(size=(images, 16))), text


def test_an_encoder_that_tells_the_classes_apart_knows_them():
    features, _, text = problem(8, 200)
    assert knows.doubt(features, text, None, 0.01) is None
    assert knows.doubt(features, text, make_pool(text).spanned, 0.01) is None


def test_one_that_does_not_is_doubted_and_the_names_that_attract_nothing_are_named():
    features, text = sketches()
    found = knows.doubt(features, text, None, 0.01)
    assert found is not None
    assert found["auroc"] < 0.65
    assert {5, 6} <= set(found["unknown"])
    said = knows.sentence(found, NAMES)
    assert "gnu" in said and "\x1b" not in said


@pytest.mark.parametrize(("images", "classes"), [(59, 8), (200, 5)])
def test_too_little_tells_nothing(images, classes):
    features, text = sketches(images)
    assert knows.doubt(features, text[-classes:], None, 0.01) is None


@pytest.mark.parametrize("known", [True, False])
def test_the_report_says_so(tmp_path, monkeypatch, known):
    features, text = sketches()
    if known:
        features, _, text = problem(8, 200)
    monkeypatch.setattr(pools, "load", lambda *arguments: make_pool(text))
    classes = Vocabulary(tuple((name,) for name in NAMES))
    store = make_store(tmp_path / "store", features, [f"{i}.png" for i in range(200)], classes, text)
    made = ood_audit.report(store, top=3, settings=ScoreSettings(auto=False, temperature=0.01))
    meta = json.loads((made.folder / "meta.json").read_text())
    page = made.html.read_text(encoding="utf-8")
    assert made.scores.doubt == meta["doubt"]
    assert (meta["doubt"] == "") == known
    assert ("This encoder does not know these classes" in page) != known
