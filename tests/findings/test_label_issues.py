"""Label issues: what is listed, in which order, and when nothing may be."""

import shutil
from math import log

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ood_audit
from ood_audit import ScoreSettings
from ood_audit.findings import label_issues
from ood_audit.scoring.run import score
from ood_audit.store.findings import Finding
from ood_audit.store.views import connect
from tests.conftest import EXAMPLES

FEW = 40
NO_CLASS = {
    *("airplane/img_0002.jpg", "airplane/img_0012.jpg", "butterfly/img_0023.jpg", "butterfly/img_0027.jpg"),
    *("chair/img_0018.jpg", "chair/img_0020.jpg", "chair/img_0027.jpg", "chair/img_0031.jpg", "dalmatian/img_0005.jpg"),
    *("electric guitar/img_0004.jpg", "sailboat/img_0005.jpg", "sunflower/img_0004.jpg"),
}


def scored(rows):
    """A connection with the views of a store.

    A row: given label, label, confidence, given confidence, distance; and ood_score, where it is not the distance.
    """
    db = duckdb.connect()
    db.execute(
        "CREATE TABLE scores (image_id VARCHAR, given_label VARCHAR, label VARCHAR, confidence FLOAT, "
        "given_confidence FLOAT, distance FLOAT, ood_score FLOAT)"
    )
    db.execute("CREATE TABLE images (image_id VARCHAR, uri VARCHAR, path VARCHAR, note VARCHAR)")
    for number, (own, label, p, p_given, distance, *ood_score) in enumerate(rows):
        image_id = f"{number:03}"
        values = [image_id, own, label, p, p_given, distance, *(ood_score or [distance])]
        db.execute("INSERT INTO scores VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        db.execute("INSERT INTO images VALUES (?, ?, ?, NULL)", [image_id, f"file:///{image_id}", f"{own}/{image_id}"])
    return db


def judged(rows):
    db = scored(rows)
    summary = label_issues.find(db)
    found = zip(*(column.to_pylist() for column in summary.table.columns), strict=True)
    return summary, {int(image_id): (issue, label, is_issue) for image_id, issue, label, is_issue in found}


def reported(db):
    """The findings in a report with what was judged."""
    db.register("judged", label_issues.find(db).table)
    db.execute(
        "CREATE OR REPLACE TABLE _report AS SELECT s.*, i.* EXCLUDE (image_id), label_issue, "
        "CASE WHEN found THEN suggested_label END AS suggested_label "
        "FROM scores AS s JOIN images AS i USING (image_id) JOIN judged USING (image_id); "
        "CREATE OR REPLACE VIEW report AS FROM _report"
    )
    return label_issues.findings(db, "mine")


def agreeing(label, images=FEW, p=0.9):
    return [(label, label, p, p, 0.1 + 0.4 * i / images) for i in range(images)]


@st.composite
def tables(draw):
    """Rows of which many are equal in something."""
    rows = []
    for _ in range(draw(st.integers(1, 40))):
        own = draw(st.sampled_from(["a", "b", "c", None]))
        label = draw(st.sampled_from("abc"))
        p = draw(st.sampled_from([0.5, 0.75, 0.9, 1.0]))
        p_given = None if own is None else p if own == label else draw(st.sampled_from([0.0, 1e-6, 0.1, 0.25, 0.5]))
        distance, ood_score = (draw(st.sampled_from([0.1, 0.2, 0.5, 0.9])) for _ in range(2))
        rows.append((own, label, p, p_given, distance, ood_score))
    return rows


@settings(max_examples=60, deadline=None)
@given(tables())
def test_the_definition_computed_slowly(rows):
    own = {i: tuple(np.float32(v) if isinstance(v, float) else v for v in row) for i, row in enumerate(rows) if row[0]}
    thresholds = {}
    for k in "abc":
        those = [p_given for g, _, _, p_given, *_ in own.values() if g == k]
        if len(those) < 5:
            those = [p_given for *_, p_given, _, _ in own.values()]
        thresholds[k] = round(float(np.mean(those, dtype=np.float64)), 6) if those else 0.0
    agree = [row[4:] for row in own.values() if row[0] == row[1]]
    expected, listed = {}, {}
    for i, (g, k, p, p_given, distance, ood_score) in own.items():
        d = (1 + sum(theirs >= distance for theirs, _ in agree)) / (1 + len(agree))
        o = (1 + sum(theirs >= ood_score for _, theirs in agree)) / (1 + len(agree))
        belongs = (d * d * o) ** (1 / 3)
        x = belongs * log(float(p) / max(float(p_given), 1e-30))
        expected[i] = x / (1 + x)
        listed[i] = g != k and belongs >= 0.1 and float(p) >= 3 * float(p_given) and float(p) >= thresholds[k]
    for g, k in {(row[0], row[1]) for row in own.values()}:
        those = [i for i, row in own.items() if row[:2] == (g, k) and listed[i]]
        images = sum(row[0] == g for row in own.values())
        if images >= 5 and len(those) > images / 3:
            listed.update(dict.fromkeys(those, False))
    summary, found = judged(rows)
    assert found.keys() == own.keys()
    assert (summary.labelled, summary.found) == (len(own), sum(listed.values()))
    for i, (issue, label, is_issue) in found.items():
        assert issue == pytest.approx(expected[i], abs=1e-5)
        assert label == (own[i][1] if own[i][0] != own[i][1] else None)
        assert is_issue == listed[i]


def test_swaps_rank_above_images_of_no_class_and_these_are_not_listed():
    swap, unknown, unsure = ("a", "b", 0.95, 0.01, 0.2), ("a", "b", 0.99, 0.0001, 0.9), ("a", "b", 0.6, 0.01, 0.2)
    summary, found = judged([*agreeing("a"), *agreeing("b"), swap, unknown, unsure])
    (swapped, _, is_issue), (out, _, out_is), (_, _, unsure_is) = (found[2 * FEW + i] for i in range(3))
    assert (is_issue, out_is, unsure_is) == (True, False, False)
    assert swapped > out > 0
    assert max(issue for i, (issue, *_) in found.items() if i < 2 * FEW) == 0
    assert summary.found == 1


def test_without_prototypes_the_ood_score_tells_what_belongs():
    db = scored([*agreeing("a"), *agreeing("b"), ("a", "b", 0.99, 1e-4, 0.9), ("a", "b", 0.99, 1e-4, 0.2)])
    db.execute("UPDATE scores SET distance = NULL")
    assert label_issues.find(db).found == 1
    assert [row.image_id for row in reported(db)] == [f"{2 * FEW + 1:03}"]


def test_near_ties_are_not_listed():
    crabs = [("crab", "lobster", 0.55, 0.45, 0.2)] * 8
    summary, _ = judged([*agreeing("crab", p=0.6), *agreeing("lobster", p=0.5), *crabs])
    assert summary.found == 0


def test_a_folder_that_holds_another_class_is_said_once():
    rows = [*agreeing("sofa"), *[("couch", "sofa", 0.95, 0.03, 0.2)] * 8, ("couch", "couch", 0.9, 0.9, 0.2)]
    rows += [*agreeing("cat"), ("cat", "sofa", 0.95, 0.03, 0.2)]
    summary, found = judged(rows)
    assert summary.confused == [("couch", "sofa", 8, 9)]
    assert summary.found == 1
    assert found[len(rows) - 1][2]
    assert [note[:70] for note in summary.notes()] == [
        "label issues: 8 of the 9 images labelled couch look like sofa; none of"
    ]


def test_a_class_of_a_few_images_is_held_to_the_threshold_of_all():
    """By its own threshold, 0.2, the doubtful one would be an issue."""
    rows = [*agreeing("a"), ("few", "few", 0.2, 0.2, 0.2), ("a", "few", 0.6, 0.01, 0.2), ("a", "few", 0.9, 0.01, 0.2)]
    _, found = judged(rows)
    assert [found[FEW + i][2] for i in range(3)] == [False, False, True]


def test_images_without_a_label():
    summary, found = judged([(None, "a", 0.9, None, 0.1)] * 5)
    assert (summary.labelled, summary.found, summary.confused, found) == (0, 0, [], {})
    assert summary.notes() == [
        "label issues: none looked for, as no image is in a folder named as a class, nor annotated"
    ]
    db = scored([])
    assert label_issues.find(db).labelled == 0
    assert list(reported(db)) == []


def test_findings_are_streamed_the_worst_first():
    swaps = [("a", "b", 0.95, 10.0**-i, 0.2) for i in (2, 4, 3)]
    db = scored([*agreeing("a"), *agreeing("b"), *swaps])
    rows = []
    for row in reported(db):
        rows.append(row)
        db.execute("SELECT 1").fetchall()  # the connection is the caller's
    assert [row.image_id for row in rows] == ["081", "082", "080"]
    assert rows[2] == Finding(
        image_id="080",
        uri="file:///080",
        path="a/080",
        kind="label",
        severity=rows[2].severity,
        evidence="labelled a, looks like b: probability 0.95 against 0.01",
        suggestion="b",
        report="mine",
    )
    assert 0 < rows[2].severity < rows[1].severity < rows[0].severity < 1


def test_real_pictures_in_wrong_folders(tmp_path):
    pictures = tmp_path / "pictures"
    shutil.copytree(EXAMPLES / "images", pictures)
    swaps = {"sunflower/img_0002.jpg": "butterfly", "dalmatian/img_0002.jpg": "sailboat", "cup/img_0008.jpg": "chair"}
    for path, folder in swaps.items():
        shutil.move(pictures / path, pictures / folder / path.replace("/", " "))
    store = ood_audit.embed(pictures, store=tmp_path / "store", model="starter", device="cpu").store
    score(store, labels=EXAMPLES / "classes.txt", settings=ScoreSettings(prototypes=True, auto=False))
    with connect(store) as db:
        assert label_issues.find(db).labelled == 81
        listed = [(row.path, row.suggestion) for row in reported(db)]
    expected = {(f"{folder}/{path.replace('/', ' ')}", path.split("/")[0]) for path, folder in swaps.items()}
    assert set(listed[:3]) == expected
    assert len(listed) <= 8
    assert len({path for path, _ in listed} & NO_CLASS) <= len(NO_CLASS) / 3
