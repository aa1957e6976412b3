"""Kinds of shift, and flags that keep to what was asked, through a whole report."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ood_audit
from ood_audit import FindingSettings, ScoreSettings
from ood_audit.arrays import Spanned
from ood_audit.classes import pools, prompts
from ood_audit.classes.labelled import Labelled
from ood_audit.classes.vocabulary import Vocabulary
from ood_audit.findings import shift
from ood_audit.findings.calibration import flag
from ood_audit.scoring import plan, selection
from tests.helpers.made import make_store, unit

numbers = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=25)


@given(numbers, numbers, st.data(), st.sampled_from([0.1, 0.3, 0.6]))
def test_the_kinds_are_what_the_three_p_values_say(labelled, unknown, data, level):
    images = data.draw(st.lists(st.tuples(*[st.integers(-4, 4).map(float)] * 3), min_size=1, max_size=12))
    scores, distances, leads = (np.array(column) for column in zip(*images, strict=True))
    own = np.array(labelled)
    flags = flag(own, scores, false_alarms=level)

    found = shift.tell(flags, own, np.array(unknown), distances, leads, false_alarms=level)

    assert found is not None
    for i, (score, distance, lead) in enumerate(images):
        p = (1 + sum(c >= score for c in labelled)) / (len(labelled) + 1)
        p_distance = (1 + sum(c >= distance for c in labelled)) / (len(labelled) + 1)
        p_unknown = (1 + sum(c >= lead for c in unknown)) / (len(unknown) + 1)
        if p_distance <= level and (p_unknown <= 0.1 or p > level):
            expected = "covariate"
        else:
            expected = "semantic" if p <= level else "in-distribution"
        assert shift.NAMES[found.shift[i]] == expected
        assert found.p_distance[i] == pytest.approx(p_distance)


def test_without_other_names_the_score_decides():
    own, far = np.arange(99.0), np.array([200.0, 200.0, 0.0, 0.0])
    flags = flag(own, np.array([200.0, 0.0, 200.0, 0.0]), false_alarms=0.05)
    nothing = np.full(4, np.nan)
    for unknown in (None, own):  # both sides are needed
        found = shift.tell(flags, own, unknown, far, nothing, false_alarms=0.05)
        assert found is not None
        assert not found.by_name
        assert [shift.NAMES[i] for i in found.shift] == ["semantic", "covariate", "semantic", "in-distribution"]
    assert shift.tell(flags, own, own, nothing, nothing, false_alarms=0.05) is None


AS_CHOSEN = {"temperature": 0.02, "top_c": 1, "reset_to": 0.0, "background": True, "prototypes": 0.2}
SETTINGS = ScoreSettings(auto=False, background=True, prototypes=True)
NAMES = unit(np.random.default_rng(9).normal(size=(80, 48)))  # the first six are those of the classes
CLASSES = Vocabulary(tuple((name,) for name in ("ant", "bee", "cat", "dog", "eel", "fox")))


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Stores of one problem, by split: images of known classes, of which 96 are labelled; drawings; unknown classes."""
    rng = np.random.default_rng(0)
    names, text, style = NAMES, NAMES[:6], 0.8 * unit(rng.normal(size=48))
    pairs = np.stack([np.arange(6)] * 2, axis=1).astype(np.int32)
    pool = pools.Pool([f"thing {i}" for i in range(80)], Spanned(names.astype(np.float16)), text, pairs)
    monkeypatch.setattr(pools, "load", lambda *arguments: pool)

    def images(of, count):
        return unit(of[np.arange(count) % len(of)] + 0.09 * rng.normal(size=(count, 48)))

    known, drawings, unknown = images(text, 480), images(text + style, 60), images(names[6:40], 60)

    def make(split: int, register: bool = True) -> Any:
        order = np.random.default_rng(split).permutation(480)
        labelled, audited = order[:96], order[96:]
        features = np.concatenate([known[audited], drawings, unknown])
        paths = [f"{kind}-{i}.png" for kind, n in (("id", 384), ("drawn", 60), ("ood", 60)) for i in range(n)]
        store = make_store(tmp_path / f"{split}{register}", features, paths, CLASSES, text)
        if register:
            own = Labelled(known[labelled], labelled % 6, [""] * 96, np.arange(96))
            recipe = {"created": "2030", "improved": True, "prototypes": True}
            arrays = {"context": np.zeros((1, 48), np.float32), "class_features": text}
            prompts.save(store, "own", CLASSES, arrays, own, recipe)
        return store

    return make


def shares(store, column):
    rows = store.query(f"SELECT split_part(path, '-', 1), avg(({column})::INT) FROM report GROUP BY 1").rows
    return dict(rows)


def test_flags_and_kinds_keep_to_what_was_asked_over_splits(made):
    """Through `report`: of the images of known classes, no more are flagged, or called covariate, than was asked."""
    alarms, told = [], []
    for split in range(8):
        store = made(split)
        ood_audit.report(
            store,
            top=3,
            find=FindingSettings(false_alarms=0.05),
            settings=replace(SETTINGS, temperature=0.02, top_c=1),
        )
        flagged, covariate, semantic = (
            shares(store, column) for column in ("flagged", "shift = 'covariate'", "shift = 'semantic'")
        )
        alarms.append((flagged["id"], covariate["id"], semantic["id"]))
        told.append((flagged["ood"], semantic["ood"], covariate["drawn"]))
    mean, error = np.mean(alarms, axis=0), np.std(alarms, axis=0) / np.sqrt(len(alarms))
    assert (mean <= 0.05 + 2 * error).all(), mean
    assert (np.mean(told, axis=0) > 0.6).all(), told


def test_a_covariate_image_is_a_finding_of_its_own(made):
    store = made(0)
    ood_audit.report(store, top=3, find=FindingSettings(false_alarms=0.05), settings=SETTINGS)
    meta = json.loads((store.reports / "latest" / "meta.json").read_text())
    found = dict(store.query("SELECT kind, count(*) FROM issues GROUP BY 1").rows)
    assert found["covariate-shift"] == meta["shift"]["covariate"] > 40
    assert found["ood"] == meta["flags"]["flagged"] == meta["shift"]["semantic"] + meta["shift"]["flagged_covariate"]
    assert sum(meta["shift"][name] for name in ("semantic", "covariate", "in_distribution")) == meta["scored"]
    sql = "SELECT label, p_distance, evidence, suggestion, severity FROM issues JOIN report USING (image_id, path)"
    for label, p_distance, evidence, suggestion, severity in store.query(f"{sql} WHERE kind = 'covariate-shift'").rows:
        assert evidence.startswith(f"looks like {label}, but unlike its labelled pictures: p = {p_distance:.3g}")
        assert "label some" in suggestion
        assert severity == pytest.approx((1 - p_distance) / 2)
    twice = "SELECT image_id FROM issues WHERE kind IN ('ood', 'covariate-shift') GROUP BY 1 HAVING count(*) > 1"
    assert len(store.query(twice).rows) == meta["shift"]["flagged_covariate"]


def test_one_folder_without_labelled_images_has_no_shift_and_no_flags(made):
    store = made(0, register=False)
    done = ood_audit.report(store, top=3, settings=SETTINGS)
    assert store.query("SELECT count(shift), count(p_distance), count(flagged) FROM report").rows == [(0, 0, 0)]
    assert done.decisions.shift is None and done.decisions.flags is None
    assert "the images are not in class folders" in done.decisions.unflagged


def test_without_background_no_name_is_encoded(made):
    store = made(1)
    ood_audit.report(
        store, top=3, find=FindingSettings(false_alarms=0.05), settings=replace(SETTINGS, background=False)
    )
    assert store.query("SELECT count(lead), count(*) FROM scores").rows == [(0, 504)]
    assert shares(store, "shift = 'semantic'")["ood"] > 0.5


def test_where_no_score_wants_the_other_names_a_part_of_them_is_compared_with(made, monkeypatch):
    monkeypatch.setattr(plan, "_OTHERS", 10)
    told = selection.Outcome(np.zeros(2, np.float32), np.array([False, True]), (np.zeros(2), np.zeros(2)))
    chosen = selection.Selection("delta-energy", {**AS_CHOSEN, "background": False}, 0.9, 0.0, [], np.zeros(0), [told])
    monkeypatch.setattr(selection, "select", lambda *arguments, **options: chosen)
    store = made(1)
    done = ood_audit.score(store)
    assert not done.parameters["background"]
    text, others = NAMES[:6], NAMES[np.linspace(6, 79, 10).astype(int)].astype(np.float16)
    path, lead = store.query("SELECT path, lead FROM scores WHERE path = 'ood-0.png'").rows[0]
    image = store.query(f"SELECT embedding FROM read_parquet('{store.parts[0]}') WHERE path = '{path}'").rows[0][0]
    expected = (text @ image).max() - (others.astype(np.float32) @ image).max()
    assert lead == pytest.approx(expected, abs=1e-3)
