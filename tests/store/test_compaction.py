"""Merged parts: the same rows in force, whenever a kill comes and whoever reads meanwhile."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import ood_audit
from ood_audit import ScoreSettings
from ood_audit.classes import prototypes
from ood_audit.classes.vocabulary import Vocabulary
from ood_audit.cli import cli
from ood_audit.errors import StoreError
from ood_audit.findings import records
from ood_audit.images.decode import Decoded
from ood_audit.images.sources import ImageRef
from ood_audit.scoring import references, similarity, table
from ood_audit.store import compaction, findings, open_store, writing
from ood_audit.store.compaction import compact
from ood_audit.store.index import neighbours
from ood_audit.store.parts import PartWriter, iter_features
from tests.conftest import ROOT
from tests.helpers.made import make_store, problem, unit

CLASSES = 6


class Kill(BaseException):
    """What a kill is to the code: nothing that it has does run any more, except to leave."""


def image(number, size=1):
    return ImageRef(f"file:///made-up/{number:03}.png", "/made-up", f"{number:03}.png", size, size)


def add(store, numbers, size=1, *, supersedes=False, error=None, run="more"):
    """A part of images with features of their own."""
    with PartWriter(store, run) as writer:
        for number in numbers:
            features = None if error else unit(np.random.default_rng([number, size]).normal(size=16))
            decoded = Decoded(8, 8, "PNG", size, size, f"{number}-{size}", error=error)
            writer.add(image(number, size), decoded, features, supersedes=supersedes)


def remove(store, numbers):
    with PartWriter(store, "gone") as writer:
        for number in numbers:
            writer.remove(image(number))


@pytest.fixture
def store(tmp_path):
    """Images added, unreadable, changed (twice), removed, and one that came back, in twelve parts."""
    features, _, text = problem(CLASSES, 40)
    vocabulary = Vocabulary(tuple((f"class {k}",) for k in range(CLASSES)))
    made = make_store(tmp_path / "store", features, [f"a/{i}.png" for i in range(40)], vocabulary, text)
    for start in range(0, 40, 10):
        add(made, range(start, start + 10))
    add(made, [90, 91], error="damaged PNG: no picture")
    add(made, [5, 15], size=2, supersedes=True)
    remove(made, [7, 8, 91])
    add(made, [15, 25], size=3, supersedes=True)
    add(made, [8], size=4)
    add(made, [100, 101, 102])
    remove(made, [25])
    return made


def seen(store):
    """What readers see: the rows of the view, with the number of each, and the features."""
    images = store.query("SELECT * FROM images ORDER BY image_id")
    features = {
        image_id: tuple(row.tolist())
        for batch in iter_features(store)
        for image_id, row in zip(batch.image_ids.to_pylist(), batch.codes, strict=True)
    }
    assert len(features) == sum(row["status"] == "ok" for row in images.dicts())
    return images.rows, dict(sorted(features.items()))


def rows_on_disk(store):
    return sum(pq.read_metadata(part).num_rows for part in store.parts)


def test_the_view_is_the_same_and_rows_are_dropped(store):
    before, on_disk = seen(store), rows_on_disk(store)
    assert len(before[0]) > 40
    generation, parts = store.generation, len(store.parts)
    done = compact(store)
    assert seen(store) == before
    assert (done.parts_before, done.parts_after, done.left) == (parts, 1, 0)
    assert rows_on_disk(store) == len(before[0])  # nothing but what counts: not even removals, as nothing is older
    assert done.dropped == on_disk - len(before[0])
    assert store.generation == generation
    assert done.bytes_after < done.bytes_before
    assert [path.name for path in store.images.iterdir()] == [f"part-00000001-{generation:08}.parquet"]
    again = compact(store)
    assert (again.parts_before, again.parts_after, again.dropped) == (1, 1, 0)


@pytest.mark.parametrize("rows", [1, 13, 25, 60])
def test_merged_into_several(store, monkeypatch, rows):
    """Removals and changes still take the rows of older parts out, where these are in another merged part."""
    before = seen(store)
    monkeypatch.setattr(compaction, "PART_ROWS", rows)
    for _ in range(2):
        compact(store)
        assert seen(store) == before
    monkeypatch.setattr(compaction, "PART_ROWS", 1000)
    assert compact(store).parts_after == 1
    assert seen(store) == before
    assert rows_on_disk(store) == len(before[0])


def test_a_part_that_mostly_no_longer_counts_is_written_anew_alone(store, monkeypatch):
    monkeypatch.setattr(compaction, "PART_ROWS", 1)
    add(store, range(200, 210))
    add(store, range(200, 205), size=2, supersedes=True)
    before = seen(store)
    done = compact(store)
    assert done.dropped >= 5
    assert seen(store) == before
    assert compact(store).dropped == 0


def test_findings_are_acted_on_as_before(store):
    """Those about images that changed since the report are left out, before and after."""
    ood_audit.report(store, settings=ScoreSettings(auto=False))
    add(store, [90], error="damaged PNG: still no picture", size=9, supersedes=True)
    with records.selecting(store, findings.KINDS) as (db, outdated):
        selected = sorted(db.execute("FROM selected").fetchall()), outdated
    assert outdated == 1
    compact(store)
    with records.selecting(store, findings.KINDS) as (db, outdated):
        assert (sorted(db.execute("FROM selected").fetchall()), outdated) == selected


def test_scores_and_index_are_not_made_again(store):
    assert not ood_audit.score(store, settings=ScoreSettings(auto=False)).reused
    one = next(iter_features(store)).features[:1]
    nearest = neighbours(store, one, 5)[0]
    built = store.index.stat().st_mtime_ns
    compact(store)
    assert ood_audit.score(store, settings=ScoreSettings(auto=False)).reused
    assert neighbours(store, one, 5)[0] == nearest
    assert store.index.stat().st_mtime_ns == built


# Kills


STEPS = ("version", "writing", "before the name", "after the name", "between deletions")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("rows", [25, 1000])
def test_killed_at_each_step(store, monkeypatch, step, rows):
    """The old parts or the merged one, never both; the next run completes it."""
    before = seen(store)
    parts = store.parts
    monkeypatch.setattr(compaction, "PART_ROWS", rows)

    def kill(*arguments, **options):
        raise Kill

    with monkeypatch.context() as patch:
        if step == "version":
            patch.setattr(compaction, "raise_version", kill)
        elif step == "writing":
            patch.setattr(pq.ParquetWriter, "write_table", kill)
        elif step == "before the name":
            patch.setattr(Path, "replace", lambda path, to: kill() if "part-" in to.name else rename(path, to))
        elif step == "after the name":
            patch.setattr(compaction, "_sweep", lambda store: kill() if compaction._replaced(store) else None)
        else:
            unlinked = []

            def unlink(path, **options):
                if path.name.startswith("part-"):
                    unlinked.append(path)
                    if len(unlinked) == 3:
                        raise Kill
                Path_unlink(path, **options)

            patch.setattr(Path, "unlink", unlink)
        with pytest.raises(Kill):
            compact(store)
    assert seen(store) == before
    if step in STEPS[:3]:
        assert store.parts == parts
    else:
        assert len(store.parts) < len(parts)
        assert compaction._replaced(store)
        add(store, [300])  # as an embed does that comes next
        remove(store, [300])
        assert seen(store) == before
    assert compact(store).left == 0
    assert seen(store) == before
    assert compaction._replaced(store) == []
    assert [path for path in store.root.rglob("*") if ".tmp" in path.name] == []


rename = Path.replace
Path_unlink = Path.unlink


def test_a_full_disk(store, monkeypatch):
    before, parts = seen(store), store.parts

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_table", full)
        with pytest.raises(StoreError, match="free some space and run the same command again"):
            compact(store)
    assert (seen(store), store.parts) == (before, parts)
    assert [path for path in store.root.rglob("*") if ".tmp" in path.name] == []
    compact(store)
    assert seen(store) == before


# Others at work


def test_a_reader_meanwhile(store):
    """It began before and goes on after: it has the same rows, or is told to come again, never half of them."""
    before = seen(store)
    batches = iter_features(store)
    first = next(batches)
    with writing(store.root, "scores"):  # as a report does
        assert compact(store).left > 0
        read = [first, *batches]
        assert sum(len(batch.codes) for batch in read) == len(before[1])
        assert seen(store) == before
    assert compact(store).left == 0
    assert seen(store) == before


def test_a_reader_without_a_lock_is_told(store):
    parts = store.parts
    compact(store)
    from ood_audit.store.views import connect

    with pytest.raises(StoreError, match="run the command again"), connect(store, parts) as db:
        db.execute("SELECT count(*) FROM images").fetchall()


def test_writers_keep_each_other_out(store):
    with writing(store.root, "images"), pytest.raises(StoreError, match="another ood-audit"):
        compact(store)


def test_embed_goes_on_after_it(pictures, tmp_path):
    root = tmp_path / "store"
    opened = ood_audit.embed(pictures, store=root, device="cpu").store
    for number in range(3):
        path = pictures / "airplane" / f"more-{number}.jpg"
        shutil.copy(sorted((pictures / "sunflower").iterdir())[0], path)
        path.write_bytes(path.read_bytes() + bytes([number]))
        ood_audit.embed(pictures, store=root, device="cpu")
    assert compact(opened).parts_after == 1
    unchanged = ood_audit.embed(pictures, store=root, device="cpu").counts
    assert (unchanged["unchanged"], unchanged.total()) == (9, 9)
    sorted((pictures / "airplane").iterdir())[0].unlink()
    changed = sorted((pictures / "sunflower").iterdir())[1]
    changed.write_bytes(changed.read_bytes() + b"x")
    counts = ood_audit.embed(pictures, store=root, device="cpu").counts
    assert (counts["removed"], counts["changed"], counts["unchanged"]) == (1, 1, 7)
    before = seen(opened)
    compact(opened)
    assert seen(opened) == before
    assert len(before[0]) == 8


def test_the_command(store):
    done = CliRunner().invoke(cli, ["compact", "--store", str(store.root)])
    assert done.exit_code == 0, done.output
    assert "parts became 1; " in done.output
    assert " rows dropped; " in done.output


# Versions


def set_version(store, version):
    path = store.root / "store.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": version}))


def test_a_store_of_version_1_is_read_and_added_to(store):
    """Its layout is that of version 2 without merged parts."""
    before = seen(store)
    set_version(store, 1)
    opened = open_store(store.root)
    assert seen(opened) == before
    assert ood_audit.report(opened, settings=ScoreSettings(auto=False)).rows
    add(opened, [400])
    assert json.loads((store.root / "store.json").read_text())["version"] == 1
    before = seen(opened)
    compact(opened)
    assert json.loads((store.root / "store.json").read_text())["version"] == 2
    assert seen(open_store(store.root)) == before


@pytest.mark.parametrize("version", [3, 0, "2", None, 1.5, [1]])
def test_another_version_is_refused(store, version):
    set_version(store, version)
    with pytest.raises(StoreError, match=r"format version .* reads up to version 2; use the ood-audit that made it"):
        open_store(store.root)
    done = CliRunner().invoke(cli, ["compact", "--store", str(store.root)])
    assert isinstance(done.exception, StoreError)


def test_a_file_that_is_no_part_is_named(store):
    (store.images / "part-of-it.parquet").write_bytes(b"")
    with pytest.raises(StoreError, match="part-of-it"):
        store.query("SELECT 1")


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
@pytest.mark.parametrize("what", ["compact", "score"])
def test_files_that_can_not_grow(store, what):
    """As on a full disk, in a process of its own: what was there stays in force."""
    ood_audit.score(store, settings=ScoreSettings(auto=False, prototypes=False))
    before, parts, scores = seen(store), store.parts, store.query("SELECT * FROM scores ORDER BY image_id").rows
    code = (
        "import resource, signal, sys\n"
        "import ood_audit, torch\n"
        "from ood_audit.scoring.settings import ScoreSettings\n"
        "from ood_audit.store.compaction import compact\n"
        "settings = ScoreSettings(auto=False, prototypes=False, top_c=3)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2500, 2500))\n"
        "store = ood_audit.open_store(sys.argv[1])\n"
        "compact(store) if sys.argv[2] == 'compact' else ood_audit.score(store, settings=settings)"
    )
    done = subprocess.run([sys.executable, "-c", code, store.root, what], capture_output=True, text=True, cwd=ROOT)
    assert "StoreError: cannot write to the store" in done.stderr, done.stderr
    assert "free some space and run the same command again" in done.stderr
    assert (seen(store), store.parts) == (before, parts)
    assert store.query("SELECT * FROM scores ORDER BY image_id").rows == scores
    assert [path for path in store.root.rglob("*") if ".tmp" in path.name] == []
    assert len(list(store.scores.glob("*.parquet"))) == 1


def test_a_full_disk_while_scores_are_written_in_their_thread(store, monkeypatch):
    ood_audit.score(store, settings=ScoreSettings(auto=False))
    before = store.query("SELECT * FROM scores ORDER BY image_id").rows

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(table, "_GROUP_ROWS", 20)
    with monkeypatch.context() as patch:
        patch.setattr(similarity, "_CHUNK_BYTES", 7 * 4 * CLASSES)
        patch.setattr(pq.ParquetWriter, "write_table", full)
        with pytest.raises(StoreError, match="free some space and run the same command again"):
            ood_audit.score(store, settings=ScoreSettings(auto=False, top_c=3))
    assert store.query("SELECT * FROM scores ORDER BY image_id").rows == before
    whole = ood_audit.score(store, settings=ScoreSettings(auto=False, top_c=3))
    rows = store.query("SELECT image_id, ood_score FROM scores ORDER BY 1").rows
    whole.path.unlink()
    monkeypatch.setattr(similarity, "_CHUNK_BYTES", 7 * 4 * CLASSES)  # in chunks and groups of other sizes
    ood_audit.score(store, settings=ScoreSettings(auto=False, top_c=3))
    again = store.query("SELECT image_id, ood_score FROM scores ORDER BY 1").rows
    assert [row[0] for row in again] == [row[0] for row in rows]
    np.testing.assert_allclose([row[1] for row in again], [row[1] for row in rows], rtol=1e-4, atol=1e-6)


def test_without_prototypes_there_is_no_product_with_them(store, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(prototypes.Prototypes, "cosines", _never)
        patch.setattr(references, "_cosines", lambda features, folds, those, to_text, text: to_text)
        ood_audit.score(store, settings=ScoreSettings(auto=False, prototypes=False))
    assert store.query("SELECT count(*), count(distance) FROM scores").rows[0][1] == 0
    ood_audit.score(store, settings=ScoreSettings(auto=False))
    total, distances = store.query("SELECT count(*), count(distance) FROM scores").rows[0]
    assert total == distances


def _never(*arguments):
    raise AssertionError("a product with prototypes")
