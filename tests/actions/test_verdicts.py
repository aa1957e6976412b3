"""Acting on what was decided on the page: moves, labels, what is remembered, and the way back."""

import csv

import pytest

import ood_audit
from ood_audit import ScoreSettings
from ood_audit.actions import verdicts
from ood_audit.errors import OodAuditError, UsageError
from ood_audit.findings import records
from tests.helpers.cli import invoke


@pytest.fixture
def store(pictures, tmp_path, monkeypatch):
    """Six pictures of two classes, reported, so that each of them leads the ranking."""
    monkeypatch.chdir(tmp_path)
    ood_audit.embed(pictures, store=tmp_path / "store")
    ood_audit.report(tmp_path / "store", settings=ScoreSettings(auto=False))
    return ood_audit.open_store(tmp_path / "store")


@pytest.fixture
def paths(store):
    """Those about which nothing else was found."""
    sql = "SELECT path FROM images WHERE image_id NOT IN (SELECT image_id FROM issues) ORDER BY path"
    return [path for (path,) in store.query(sql).rows]


@pytest.fixture
def decide(store, tmp_path):
    """Write a file of decisions: each is a path, a decision and a label."""

    def write(*decisions, kind="unusual", **changes):
        images = {row["path"]: row for row in store.query("SELECT path, content_hash, uri FROM images").dicts()}
        file = tmp_path / "decisions.csv"
        with file.open("w", newline="") as out:
            rows = csv.writer(out)
            rows.writerow(["path", "content_hash", "kind", "decision", "label", "when", "uri"])
            for path, decision, label in decisions:
                row = {"kind": kind, "when": "2026-01-01T00:00:00Z", **images[path], **changes}
                rows.writerow([path, row["content_hash"], row["kind"], decision, label, row["when"], row["uri"]])
        return file

    return write


def listed(store):
    """How many images a new report lists, by kind."""
    made = ood_audit.report(store, settings=ScoreSettings(auto=False))
    return {section.kind: section.count for section in made.sections}


def test_each_decision_is_done_and_reverted(store, paths, pictures, decide, tmp_path):
    file = decide(
        (paths[0], "remove", ""), (paths[1], "relabel", "sunflower"), (paths[2], "new-class", "zeppelin"),
        (paths[3], "keep", ""),
    )  # fmt: skip
    before = listed(store)["unusual"]
    dry = verdicts.apply(file, store, to="aside", dry_run=True)
    assert dry.moved.counts == {"would-move": 1} and (pictures / paths[0]).exists()
    assert not (tmp_path / "labels.csv").exists() and not verdicts.settled(store)

    done = verdicts.apply(file, store, to="aside")
    assert done.moved.counts == {"moved": 1} and done.kept == 1 and done.relabelled == 2
    assert done.new_classes == ["zeppelin"]
    assert not (pictures / paths[0]).exists()
    with (tmp_path / "labels.csv").open(newline="") as rows:
        assert [(row["path"], row["label"]) for row in csv.DictReader(rows)] == [
            (str(pictures / paths[1]), "sunflower"),
            (str(pictures / paths[2]), "zeppelin"),
        ]
    # Three are settled; the one that was moved stays listed until the store is in step.
    assert listed(store)["unusual"] == before - 3

    undone = verdicts.undo(file, store)
    assert undone.moved.counts == {"restored": 1} and (pictures / paths[0]).exists()
    assert (tmp_path / "labels.csv").read_text() == "path,label\n"
    assert listed(store)["unusual"] == before


def test_applying_again_changes_nothing(store, paths, decide, tmp_path):
    file = decide((paths[0], "remove", ""), (paths[1], "relabel", "sunflower"))
    (tmp_path / "labels.csv").write_text(f"path,label\n{tmp_path}/pictures/{paths[1]},tulip\n/other.jpg,cat\n")
    verdicts.apply(file, store, to="aside")
    again = verdicts.apply(file, store, to="aside")
    assert again.moved.counts == {"already-there": 1}
    verdicts.undo(file, store)
    assert (tmp_path / "labels.csv").read_text().splitlines()[1:] == [
        f"{tmp_path}/pictures/{paths[1]},tulip",  # as it was before the first time
        "/other.jpg,cat",
    ]


def test_images_move_between_the_folders_of_classes(store, paths, pictures, decide):
    file = decide((paths[0], "relabel", "sunflower"))
    name = paths[0].rpartition("/")[2].replace(".", "-moved.")
    (pictures / paths[0]).rename(pictures / "airplane" / name)  # so that no other image has its name
    ood_audit.embed(pictures, store=store.root)
    file = decide((f"airplane/{name}", "relabel", "sunflower"))
    done = verdicts.apply(file, store, to="aside", move=True)
    assert done.moved.counts == {"moved": 1} and done.labels is None
    assert (pictures / "sunflower" / name).exists() and not (pictures / "airplane" / name).exists()
    verdicts.undo(file, store)
    assert (pictures / "airplane" / name).exists() and not (pictures / "sunflower" / name).exists()


def test_nothing_is_overwritten(store, paths, pictures, decide):
    target = pictures / "sunflower" / paths[0].rpartition("/")[2]
    target.write_bytes(b"another")
    done = invoke("apply", decide((paths[0], "relabel", "sunflower")), "--to", "aside", "--move", "--store", store.root)
    assert done.returncode == 1 and "is there already" in done.stdout
    assert target.read_bytes() == b"another" and (pictures / paths[0]).exists()
    assert not verdicts.settled(store)  # what was not done is not remembered


def test_an_image_that_has_changed_is_left_out(store, paths, pictures, decide):
    file = decide((paths[0], "keep", ""), content_hash="0" * 32)
    assert verdicts.apply(file, store).outdated == 1
    assert not verdicts.settled(store)
    file = decide((paths[1], "remove", ""))
    (pictures / paths[1]).write_bytes(b"changed")
    assert verdicts.apply(file, store, to="aside").moved.counts == {"left": 1}


def test_a_verdict_settles_one_question_only(store, paths, decide):
    verdicts.apply(decide((paths[0], "keep", ""), kind="exact-duplicate"), store)
    assert listed(store)["unusual"] == len(paths)
    verdicts.apply(decide((paths[0], "keep", ""), kind="covariate-shift"), store)
    assert listed(store)["unusual"] == len(paths) - 1  # both ask whether the image belongs here


@pytest.mark.parametrize(
    ("decision", "label", "options", "message"),
    [
        ("burn", "", {}, "'burn' is no decision; write keep, remove"),
        ("relabel", "", {}, "no label"),
        ("remove", "", {}, "to=DIR"),
    ],
)
def test_bad_decisions_are_one_clear_line(store, paths, decide, decision, label, options, message):
    with pytest.raises(UsageError, match=message):
        verdicts.apply(decide((paths[0], decision, label)), store, **options)


def test_what_was_not_applied_cannot_be_undone(store, paths, decide):
    with pytest.raises(UsageError, match="were not applied to this store"):
        verdicts.undo(decide((paths[0], "keep", "")), store)
    done = invoke("apply", "missing.csv", "--store", store.root)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "cannot read" in done.stderr


def test_export_and_quarantine_take_a_list_of_paths(store, paths, pictures, tmp_path):
    (tmp_path / "list.txt").write_text(f"{paths[0]}\n{pictures / paths[1]}\n")
    done = invoke("quarantine", "aside", "--paths", "list.txt", "--store", store.root, "--format", "json")
    assert done.returncode == 0, done.stderr
    assert not (pictures / paths[0]).exists() and not (pictures / paths[1]).exists()
    assert invoke("quarantine", "aside", "--undo", "--store", store.root).returncode == 0
    done = invoke(
        "export", "--paths", "list.txt", "--format", "keep-list", "--output", "keep.txt", "--store", store.root
    )
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "keep.txt").read_text().splitlines()) == 6 - 2
    done = invoke("export", "--paths", "list.txt", "--flagged", "--store", store.root)
    assert done.returncode == 2 and "not both" in done.stderr
    (tmp_path / "list.txt").write_text("no such.jpg\n")
    with pytest.raises(OodAuditError, match="no readable image of the store"):
        records.listed(store, str(tmp_path / "list.txt"))
