"""Flags without labelled images, calibrated by class folders: the rule, and what a report does with it."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ood_audit
from ood_audit import ScoreSettings
from ood_audit.findings import decide, folders
from ood_audit.findings.calibration import Flags
from ood_audit.scoring.run import score
from ood_audit.store.views import connect
from tests.conftest import EXAMPLES, run_cli
from tests.findings.test_shift import CLASSES
from tests.helpers.made import make_store, problem

images = st.lists(st.tuples(st.integers(-5, 5).map(float), st.integers(-1, 7)), min_size=1, max_size=40).filter(
    lambda drawn: any(rank >= 0 for _, rank in drawn)
)


def flag(ood_score, folder_rank, classes=10, **rule) -> Flags:
    found = folders.flag(np.asarray(ood_score, float), np.asarray(folder_rank), classes, **rule)
    assert isinstance(found, Flags), found
    return found


def drawn(rng, inside: int, ood: int, classes: int = 10, fits: float = 0.98):
    """Scores and folder ranks: images in distribution, then others, which are higher, in folders by chance."""
    ranks = np.where(rng.random(inside) < fits, rng.integers(0, 2, inside), rng.integers(2, classes, inside))
    ranks = np.concatenate([ranks, rng.integers(0, classes, ood)])
    return np.concatenate([rng.normal(size=inside), rng.normal(3, 1, size=ood)]), ranks


@given(images)
def test_p_values_rise_as_scores_fall_and_equal_scores_have_one(drawn):
    ood_score, ranks = (np.array(column) for column in zip(*drawn, strict=True))
    p, above = folders._inside_above(ood_score, folders._weights(ranks, 8))
    assert ((p >= 0) & (p <= above)).all()
    for score_, value in zip(ood_score, p, strict=True):
        assert (p[ood_score > score_] <= value).all()
        assert (p[ood_score == score_] == value).all()


@given(st.lists(st.integers(-5, 5).map(float), min_size=4, max_size=40))
def test_where_all_images_fit_each_p_value_counts_the_others_that_are_as_ood(values):
    others, above = folders._inside_above(np.array(values), np.ones(len(values)))
    np.testing.assert_allclose(above, [sum(other >= value for other in values) for value in values])
    np.testing.assert_allclose(others, above - 1)


def test_an_image_that_fits_its_folder_by_chance_does_not_spoil_what_follows():
    """Of the 50 most OOD images every fifth is in, as by chance; the first of all, too."""
    ranks = np.array([0, 9, 9, 9, 9] * 10 + [0] * 200)
    found = flag(-np.arange(250.0), ranks, 10, false_alarms=0.01)
    assert found.flagged[:50].all()
    assert found.flagged[50:].sum() <= 4


@pytest.mark.parametrize("level", [0.01, 0.05, 0.1])
def test_without_ood_images_false_alarms_are_as_asked(level):
    rng = np.random.default_rng(0)
    rates = [flag(*drawn(rng, 600, 0), false_alarms=level).flagged.mean() for _ in range(30)]
    assert level / 2 <= np.mean(rates) <= 1.5 * level


def test_ood_images_in_folders_by_chance_are_caught_at_the_rate_asked_for():
    rng = np.random.default_rng(1)
    alarms, caught, discoveries = [], [], []
    for _ in range(30):
        ood_score, ranks = drawn(rng, 600, 100)
        flagged = flag(ood_score, ranks, 10, false_alarms=0.05).flagged
        alarms.append(flagged[:600].mean())
        caught.append(flagged[600:].mean())
        found = flag(ood_score, ranks, 10, fdr=0.1).flagged
        discoveries.append((found[:600].sum() / max(1, found.sum()), found[600:].mean()))
        assert not found.any() or ood_score[found].min() > ood_score[~found].max()
    assert np.mean(alarms) <= 0.075
    assert np.mean(caught) > 0.85  # the best threshold at 5% catches 91%
    false, true = np.mean(discoveries, axis=0)
    assert false <= 0.12
    assert true > 0.65


def test_all_images_alike_are_not_flagged():
    assert not flag(np.zeros(200), np.zeros(200, int), 5, false_alarms=0.1).flagged.any()
    assert not flag(np.zeros(200), np.zeros(200, int), 5, fdr=0.1).flagged.any()


def test_an_image_in_no_class_folder_is_flagged_but_does_not_calibrate():
    ood_score, ranks = np.arange(210.0), np.zeros(210, int)
    ranks[200:] = -1
    found = flag(ood_score, ranks, 5, false_alarms=0.02)
    assert found.calibration == 200
    assert found.flagged.nonzero()[0].tolist() == list(range(196, 210))
    assert found.expected == pytest.approx(0.02 * 210)


@pytest.mark.parametrize(
    ("ranks", "classes", "reason"),
    [
        ([-1] * 100, 0, "not in class folders"),
        ([0] * 100, 3, "3 class folders are too few to calibrate by, 4 are needed"),
        ([0] * 48, 4, "about 49 must look like their class"),
        ([0] * 49, 4, None),
        ([0] * 40 + [7] * 60, 8, "fewer than half of the images look like the class of their folder"),
    ],
)
def test_why_nothing_is_flagged(ranks, classes, reason):
    found = folders.flag(np.arange(float(len(ranks))), np.array(ranks), classes)
    if reason is None:
        assert isinstance(found, Flags)
        assert found.flagged.nonzero()[0].tolist() == [48]
    else:
        assert isinstance(found, str)
        assert reason in found


def test_folder_ranks_count_the_classes_with_a_folder_that_are_more_similar(tmp_path):
    """Without pictures of the classes, so that the similarities are the cosines to the names."""
    features, labels, text = problem(6, 60, shown=5)
    labels[:5] = [1, 2, 3, 4, 0]  # wrong folders
    names = [*(CLASSES.names[k] for k in labels), "elsewhere"]
    paths = [f"{name}/{i}.png" for i, name in enumerate(names)]
    features = np.concatenate([features, features[:1]])
    store = make_store(tmp_path / "store", features, paths, CLASSES, text)
    score(store, settings=ScoreSettings(auto=False, background=False, prototypes=False))
    rows = store.query("SELECT folder_rank FROM scores ORDER BY CAST(regexp_extract(path, '(\\d+)', 1) AS INT)").rows
    cosines = features @ text[:5].T
    own = cosines[np.arange(60), labels]
    assert [rank for (rank,) in rows] == [*(cosines[:60] > own[:, None]).sum(axis=1).tolist(), None]
    assert sum(rank > 0 for (rank,) in rows[:5]) == 5


def test_judging_takes_and_returns_tables(tmp_path):
    features, labels, text = problem(6, 120, ood=12)
    folders_of = [CLASSES.names[k] for k in labels[:120]] + [CLASSES.names[i % 6] for i in range(12)]
    paths = [f"{name}/{i}.png" for i, name in enumerate(folders_of)]
    store = make_store(tmp_path / "store", features, paths, CLASSES, text)
    done = score(store, settings=ScoreSettings(auto=False, background=False))
    with connect(store) as db:
        scored = db.sql("FROM scores").to_arrow_table()
    judged = decide.judge(scored, decide.read_recipe(done.path), false_alarms=0.05)
    assert isinstance(judged.flags, Flags)
    assert judged.table["flagged"].to_pylist() == judged.flags.flagged.tolist()
    assert judged.table["image_id"].equals(scored["image_id"])
    assert judged.table["shift"].null_count == len(scored)
    one_folder = scored.set_column(scored.schema.get_field_index("folder_rank"), "folder_rank", scored["lead"])
    nothing = decide.judge(one_folder, decide.read_recipe(done.path))
    assert isinstance(nothing.flags, str)
    assert nothing.table["flagged"].null_count == nothing.table["p_value"].null_count == len(scored)


def test_class_folders_are_flagged_without_labelled_images(store_copy):
    report = ("report", "--store", store_copy, "--labels", EXAMPLES / "classes.txt", "--false-alarms", "0.1")
    done = run_cli(*report, "--top", "3", "--fail-over", "1%")
    assert done.returncode == 3, done.stderr
    calibrated = "by the folders' own images, assuming that fewer than 20% of them are wrong"
    assert calibrated in done.stderr
    store = ood_audit.open_store(store_copy)
    meta = json.loads((store.reports / "latest" / "meta.json").read_text())
    assert meta["flags"]["calibrated"] == calibrated
    assert "ood_share" not in meta
    assert "assuming that fewer than 20% of them are wrong" in (store.reports / "latest" / "report.html").read_text()
    rows = store.query("SELECT flagged, p_value FROM report ORDER BY rank").rows
    assert all(flagged == (p <= 0.1) for flagged, p in rows)
    assert [p for _, p in rows] == sorted(p for _, p in rows)
    findings = store.query("SELECT evidence FROM issues WHERE kind = 'ood'").rows
    assert len(findings) == meta["flags"]["flagged"] == sum(flagged for flagged, _ in rows) > 0
    assert all("the images that fit their folders" in evidence for (evidence,) in findings)
    assert len(run_cli("export", "--flagged", "--store", store_copy).stdout.splitlines()) == len(findings)


@pytest.mark.parametrize(
    ("classes", "reason"),
    [("airplane\nchair\ncup\nhouse", "3 class folders are too few"), ("house\nlake", "not in class folders")],
)
def test_where_nothing_can_be_flagged_the_reason_is_said_and_a_gate_fails(store_copy, tmp_path, classes, reason):
    (tmp_path / "classes.txt").write_text(classes)
    report = ("report", "--store", store_copy, "--labels", tmp_path / "classes.txt", "--top", "2")
    done = run_cli(*report, "--fail-over", "5%")
    assert done.returncode == 1
    *_, error = done.stderr.strip().splitlines()
    assert error.startswith("error: --fail-over cannot be checked, as nothing is flagged")
    assert reason in error and "ood-audit labels add FOLDER" in error
    store = ood_audit.open_store(store_copy)
    assert store.query("SELECT count(flagged), count(p_value) FROM report").rows == [(0, 0)]
    assert reason in json.loads((store.reports / "latest" / "meta.json").read_text())["unflagged"]
