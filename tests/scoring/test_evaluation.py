"""The figures, and the command that prints them."""

import csv
import json
import shutil
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

import ood_audit
from ood_audit import ScoreSettings
from ood_audit.errors import UsageError
from ood_audit.scoring import metrics
from tests.conftest import EXAMPLES, run_cli


def test_both_fpr95_on_an_example_worked_by_hand():
    """20 ID images score 1 … 20; OOD images score 0.5, 18.5, 19.5 and 30.

    Keeping the 19 lowest ID images (95%), and not the one at 20, keeps at most all below 20, and with them the OOD
    images at 0.5, 18.5 and 19.5: 3 of 4. A threshold between 19 and 19.5 would keep 2 at the same recall.
    Catching 95% of 4 OOD images takes all 4, so down to 0.5, where all 20 ID images are flagged.
    """
    ood_score = np.array([*range(1, 21), 0.5, 18.5, 19.5, 30])
    is_ood = np.array([False] * 20 + [True] * 4)
    assert metrics.fpr95(is_ood, ood_score) == 0.75
    assert metrics.fpr95_ood(is_ood, ood_score) == 1.0
    ood_score[20] = 17.5  # now the last OOD image is caught at 17.5, with ID images 18, 19 and 20
    assert metrics.fpr95_ood(is_ood, ood_score) == 3 / 20


def authors_fpr95(id_scores, ood_scores):
    """As MCM's utils/detection_util.py does it, step by step; higher scores are more in-distribution."""
    thresholds = sorted({*id_scores, *ood_scores}, reverse=True)
    recalls = [sum(s >= t for s in id_scores) / len(id_scores) for t in thresholds]
    best, distance = None, np.inf
    for threshold, recall in reversed(list(zip(thresholds, recalls, strict=True))[: recalls.index(1) + 1]):
        if abs(recall - 0.95) < distance:
            best, distance = threshold, abs(recall - 0.95)
    return sum(s >= best for s in ood_scores) / len(ood_scores)


few_values = st.lists(st.integers(0, 60), min_size=1, max_size=80)


@settings(max_examples=150, deadline=None)
@given(few_values, few_values)
def test_fpr95_is_that_of_the_authors_code(id_scores, ood_scores):
    is_ood = np.array([False] * len(id_scores) + [True] * len(ood_scores))
    ood_score = -np.array([*id_scores, *ood_scores], float)
    assert metrics.fpr95(is_ood, ood_score) == authors_fpr95(id_scores, ood_scores)


def test_of_thresholds_of_equal_recall_the_one_that_keeps_the_most_counts():
    """19 of 20 ID images score below 100; nothing is nearer to 95%, wherever among the OOD images below 1,000."""
    ood_score = np.array([*range(19), 1000, 200, 300, 2000])
    is_ood = np.array([False] * 20 + [True] * 3)
    assert metrics.fpr95(is_ood, ood_score) == 2 / 3


def test_ties_are_kept_or_flagged_together():
    is_ood = np.array([True, True, False, False])
    constant = np.zeros(4)
    assert metrics.fpr95(is_ood, constant) == 1.0
    assert metrics.fpr95_ood(is_ood, constant) == 1.0
    assert metrics.auroc(is_ood, constant) == 0.5


def test_bootstrap_holds_the_figure_and_narrows_with_more_images():
    rng = np.random.default_rng(0)
    widths = []
    for count in (50, 5000):
        is_ood = rng.random(count) < 0.3
        ood_score = rng.normal(size=count) + is_ood
        low, high = metrics.bootstrap(metrics.auroc, is_ood, ood_score)
        assert low < metrics.auroc(is_ood, ood_score) < high
        assert (low, high) == metrics.bootstrap(metrics.auroc, is_ood, ood_score)  # by seed
        widths.append(high - low)
    assert widths[1] < widths[0] / 5


SCORES = ("delta-energy", "mcm", "energy", "maxlogit", "simlabel", "logitgap", "knn")


@pytest.fixture(scope="module")
def evaluated(example_store, tmp_path_factory):
    """The real command, with one path too many in the truth and two too few."""
    folder = tmp_path_factory.mktemp("evaluated")
    store = shutil.copytree(example_store, folder / "store")
    with (EXAMPLES / "truth.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (folder / "truth.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows([*rows[2:], {"path": "gone/away.jpg", "is_ood": "0", "label": "chair"}])
    arguments = ["--labels", EXAMPLES / "classes.txt", "--store", store, "--format", "json"]
    only = [word for name in SCORES for word in ("--score", name)]
    return run_cli("evaluate", "--truth", folder / "truth.csv", *arguments, *only), rows[2:], store


def test_figures_are_scikit_learns(evaluated):
    done, truth, store = evaluated
    rows = {row["score"]: row for row in json.loads(done.stdout)}
    assert set(rows) == set(SCORES)
    ood_audit.score(store, labels=EXAMPLES / "classes.txt", settings=ScoreSettings(auto=False))
    found = {
        path: (score, label)
        for path, score, label in ood_audit.open_store(store).query("SELECT path, ood_score, label FROM scores").rows
    }
    is_ood = np.array([row["is_ood"] == "1" for row in truth])
    ood_score = np.array([found[row["path"]][0] for row in truth])
    row = rows["delta-energy"]
    assert row["auroc"] == roc_auc_score(is_ood, ood_score)
    assert row["aupr_ood"] == average_precision_score(is_ood, ood_score)
    assert row["aupr_id"] == average_precision_score(~is_ood, -ood_score)
    assert row["prompts"] == "none"
    right = [found[row["path"]][1] == row["label"] for row in truth if row["is_ood"] == "0"]
    assert row["accuracy"] == pytest.approx(np.mean(right))
    assert row["auroc_low"] < row["auroc"] <= row["auroc_high"]


def test_what_could_not_be_compared_is_counted_and_named(evaluated):
    done, truth, _ = evaluated
    assert f"{len(truth)} images" in done.stderr
    assert "1 paths of the truth are not in the store, or unreadable (gone/away.jpg)" in done.stderr
    assert "2 paths of the store are not in the truth (airplane/" in done.stderr


def test_two_sources_with_the_same_names_inside_are_told_apart(tmp_path):
    """Compared by image, not by path: by path, the second source would have the answers of the first."""
    truth = ["path,is_ood,label"]
    for source, is_ood in (("a", 0), ("b", 1)):
        for folder in ("airplane", "cup"):
            pictures = sorted((EXAMPLES / "images" / folder).iterdir())[is_ood::2][:2]
            (tmp_path / source / folder).mkdir(parents=True)
            for number, picture in enumerate(pictures):
                shutil.copy(picture, tmp_path / source / folder / f"{number}.jpg")
                truth.append(f"{tmp_path}/{source}/{folder}/{number}.jpg,{is_ood},{folder}")
    (tmp_path / "truth.csv").write_text("\n".join(truth))
    store = tmp_path / "store"
    ood_audit.embed([tmp_path / "a", tmp_path / "b"], store=store, model="starter", device="cpu")
    options: dict[str, Any] = {
        "labels": ["airplane", "cup"],
        "only": ["mcm"],
        "rounds": 2,
        "settings": ScoreSettings(auto=False),
    }
    result = ood_audit.evaluate(store, truth=tmp_path / "truth.csv", **options)
    assert (result.images, result.ood, result.not_in_store, result.not_in_truth) == (8, 4, [], [])
    ood_audit.score(store, labels=["airplane", "cup"], settings=ScoreSettings(method="mcm", auto=False))
    rows = ood_audit.open_store(store).query("SELECT source, ood_score FROM scores JOIN images USING (image_id)").rows
    expected = roc_auc_score([source.endswith("b") for source, _ in rows], [score for _, score in rows])
    assert result.rows[0]["auroc"] == expected
    (tmp_path / "truth.csv").write_text("path,is_ood\ncup/0.jpg,0\n")
    with pytest.raises(UsageError, match=r"line 2: cup/0\.jpg is 2 images of the store"):
        ood_audit.evaluate(store, truth=tmp_path / "truth.csv", **options)


def test_opposite_answers_and_unknown_labels_are_refused(store_copy, tmp_path):
    rows = "path,is_ood,label\nairplane/img_0001.jpg,0,airplane\ncup/img_0002.jpg,1,\n"
    options: dict[str, Any] = {"truth": tmp_path / "truth.csv", "labels": ["airplane", "cup"]}
    (tmp_path / "truth.csv").write_text(f"{rows}./airplane/img_0001.jpg,1,\n")
    with pytest.raises(UsageError, match=r"is ID \(airplane\) in line 2 and OOD in line 4; remove one"):
        ood_audit.evaluate(store_copy, **options)
    (tmp_path / "truth.csv").write_text(f"{rows}airplane/img_0003.jpg,0,airplanes\n")
    with pytest.raises(UsageError, match=r"'airplanes' \(line 4, close to 'airplane'\) is not in the vocabulary"):
        ood_audit.evaluate(store_copy, **options)


def test_truth_of_other_images_is_refused(store_copy, tmp_path):
    (tmp_path / "truth.csv").write_text("path,is_ood\nother.jpg,1\nairplane/img_0001.jpg,0\n")
    with pytest.raises(UsageError, match="of the 1 images that the truth and the store share none is OOD"):
        ood_audit.evaluate(store_copy, truth=tmp_path / "truth.csv", labels=["airplane", "chair"])
    with pytest.raises(UsageError, match=r"cannot read the truth .*: No such file"):
        ood_audit.evaluate(store_copy, truth=tmp_path / "nowhere.csv", labels=["airplane"])


def test_a_report_by_another_score_ranks_by_it(store_copy):
    made = ood_audit.report(
        store_copy, labels=["airplane", "chair", "cup"], settings=ScoreSettings(method="mcm"), top=81
    )
    assert made.scores.parameters == {"temperature": 1.0, "prototypes": 0.0}
    worst = [row["ood_score"] for row in made.rows]
    assert worst == sorted(worst, reverse=True)
    assert all(-1 <= value <= -1 / 3 for value in worst)
    assert all(row["delta_energy"] > 0 for row in made.rows)  # by the encoder's settings, as ever
    assert "mcm, τ = 1" in made.html.read_text()
