"""Leaks between splits, the recordings that pictures are of, and splits without them."""

import csv
import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import ood_audit
from ood_audit.actions import splits
from ood_audit.errors import UsageError
from ood_audit.findings import recordings
from tests.conftest import EXAMPLES, run_cli
from tests.helpers.made import unit


def table(paths, labels=None, **columns):
    count = len(paths)
    known = {"width": [300] * count, "height": [200] * count, "label": labels or ["x"] * count}
    empty = pa.nulls(count, pa.string())
    return pa.table({"path": list(paths), "taken_at": empty, "camera": empty} | known | columns)


def scenes(count, frames=1, *, seed=0, dimension=32):
    """Features of so many scenes, and as many frames of each that differ a little."""
    rng = np.random.default_rng(seed)
    centres = unit(rng.normal(size=(1, dimension)) + 0.3 * rng.normal(size=(count, dimension)))
    return unit(np.repeat(centres, frames, axis=0) + 0.02 * rng.normal(size=(count * frames, dimension)))


def test_names_with_counters_are_in_sequences_whatever_their_split():
    assert recordings.sequence_of("train/a/vid3_000123.jpg") == recordings.sequence_of("a/valid/vid3_0123.png")
    assert recordings.sequence_of("a/IMG_7_jpg.rf.0af3.jpg") == ("a/", "IMG_#", 7)
    assert recordings.sequence_of("a/b.jpg") == ("a/", "b", None)
    assert recordings.sequence_of("a/b٣.jpg")[1] == "b#"  # a digit, too


def test_recordings_are_found_among_pictures_whose_names_count_on_as_well():
    singles, films = scenes(200), scenes(5, 4, seed=1)
    names = [f"train/cup/img_{i:04}.jpg" for i in range(200)]
    names += [f"{'test' if k == 3 else 'train'}/cup/vid{i}_{k:05}.jpg" for i in range(5) for k in range(4)]
    found = recordings.find(table(names), np.concatenate([singles, films]).astype(np.float16))
    assert (found.number[:200] == -1).all()
    assert [set(found.number[200 + 4 * i : 204 + 4 * i]) for i in range(5)] == [{i} for i in range(5)]
    assert set(found.evidence) == {recordings.BY_COUNTER}


def test_counters_in_the_names_of_different_pictures_are_no_evidence():
    names = [f"train/cup/{kind}_{i:04}.jpg" for kind in ("red", "blue") for i in range(100)]
    for seed in range(5):
        found = recordings.find(table(names), scenes(200, seed=seed).astype(np.float16))
        assert found.evidence == []


def test_the_frames_of_a_film_follow_each_other_also_where_all_names_are_of_one_sequence():
    rng = np.random.default_rng(0)
    steps = np.cumsum(rng.normal(size=(300, 32)), axis=0)  # a camera that wanders
    found = recordings.find(table([f"{i:06}.jpg" for i in range(300)]), unit(steps).astype(np.float16))
    assert np.bincount(found.number[found.number >= 0]).max() > 200
    mixed = unit(steps)[rng.permutation(300)].astype(np.float16)
    assert recordings.find(table([f"{i:06}.jpg" for i in range(300)]), mixed).evidence == []


def test_pictures_that_a_camera_took_within_seconds_are_of_one_recording():
    features = np.concatenate([scenes(100), scenes(1, 2, seed=1)]).astype(np.float16)
    names = [f"{chr(97 + i % 26)}{chr(97 + i // 26)}.jpg" for i in range(102)]
    times = ["2024-05-01 12:00:00"] * 100 + ["2024-06-01 12:00:00", "2024-06-01 12:00:20"]
    cameras = [f"camera {i}" for i in range(100)] + ["mine"] * 2
    found = recordings.find(table(names, taken_at=times, camera=cameras), features)
    assert np.flatnonzero(found.number >= 0).tolist() == [100, 101]
    assert found.evidence == [recordings.BY_TIME]
    other = recordings.find(table(names, taken_at=times, camera=[f"camera {i}" for i in range(102)]), features)
    assert other.evidence == []


def test_no_pictures():
    assert recordings.find(table([]), np.empty((0, 4), np.float16)).evidence == []


@pytest.fixture(scope="module")
def leaking(tmp_path_factory):
    """A store whose split `test` has one picture of `train` as it is and another one turned; and what report says."""
    root = tmp_path_factory.mktemp("leaking")
    for folder in ("airplane", "sunflower"):
        for number, source in enumerate(sorted((EXAMPLES / "images" / folder).iterdir())[:6]):
            target = root / "images" / ("test" if number > 3 else "train") / folder / source.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    first, second = sorted((root / "images" / "train" / "sunflower").iterdir())[:2]
    (root / "images" / "test" / "sunflower" / "again.jpg").write_bytes(first.read_bytes())
    with Image.open(second) as picture:
        picture.transpose(Image.Transpose.ROTATE_90).save(root / "images" / "test" / "sunflower" / "turned.jpg")
    done = run_cli("embed", root / "images", "--store", root / "store")
    assert done.returncode == 0, done.stderr
    done = run_cli("report", "--store", root / "store")
    assert done.returncode == 0, done.stderr
    return root, done.stderr


def test_a_report_finds_leaks_and_says_how_many(leaking):
    root, said = leaking
    found = {finding.path: finding.evidence for finding in ood_audit.open(root / "store").findings("leak")}
    assert sorted(found) == ["test/sunflower/again.jpg", "test/sunflower/turned.jpg"]
    assert found["test/sunflower/again.jpg"].startswith("this picture of test has the same bytes as train/sunflower/")
    assert "the same picture, turned or mirrored, as train/sunflower/" in found["test/sunflower/turned.jpg"]
    assert "leaks: 1 of test is the same picture as one of train; 1 of test has the bytes of one of train" in said
    page = (root / "store" / "reports" / "latest" / "report.html").read_text()
    assert "This picture of test has the same bytes as train/sunflower/" in page


def test_repaired_splits_share_nothing_and_keep_the_rest_where_it_is(leaking):
    root, _ = leaking
    done = run_cli("export", "--format", "split", "--store", root / "store")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert len(rows) == 14
    moved = [row for row in rows if row["split"] != row["old_split"]]
    assert f"images in another split than before: {len(moved)}" in done.stderr
    assert len(moved) == 2
    assert {row["label"] for row in rows} == {"airplane", "sunflower"}
    done = run_cli("export", "--format", "split", "--flagged", "--store", root / "store")
    assert (done.returncode, "select none" in done.stderr) == (2, True)


def test_cleaning_an_evaluation_set_by_a_model_is_warned_of(leaking, tmp_path):
    root, _ = leaking
    listed = tmp_path / "list.txt"
    listed.write_text(f"{next((root / 'images' / 'test' / 'airplane').iterdir())}\n")
    done = run_cli("export", "--paths", listed, "--store", root / "store")
    assert "1 of test are among these images" in done.stderr
    done = run_cli("export", "--unreadable", "--store", root / "store")
    assert "among these images" not in done.stderr


def test_a_split_needs_two_splits(example_store):
    with pytest.raises((UsageError, ood_audit.StoreError)):
        splits.write(ood_audit.open_store(example_store), io.BytesIO())


def test_groups_that_are_torn_are_put_where_their_classes_are_wanted():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(200), 5)
    labels = np.repeat(rng.integers(0, 4, 200), 5)
    old = (rng.random(1000) < 0.2).astype(np.int64)
    new = splits.repaired(old, labels, groups)
    assert all(len(set(new[groups == group])) == 1 for group in range(200))
    for label in range(4):
        assert abs((new[labels == label] == 1).sum() - (old[labels == label] == 1).sum()) <= 5
    alone = splits.repaired(old, labels, np.full(1000, -1))
    assert (alone == old).all()
