"""`embed` in one process: outcomes over edits, sources that meet, features that are read back, the index in step."""

import os
import random
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import ood_audit
from ood_audit.encoders import looks
from ood_audit.errors import OodAuditError, StoreError, UsageError
from ood_audit.images.decode import decode
from ood_audit.images.sources import file_uri
from ood_audit.store.index import neighbours
from ood_audit.store.parts import has_looks, iter_features, iter_looks, looks_of
from tests.conftest import EXAMPLES
from tests.helpers.embedding import rows, run

PHOTOS = [path for path in sorted((EXAMPLES / "images").rglob("*.jpg")) if path.read_bytes().endswith(b"\xff\xd9")]
BROKEN = b"this is no picture\n" * 9


@pytest.fixture(autouse=True)
def warm(encoder, monkeypatch):
    """The session's encoder wherever one is loaded: what is tested here is the store."""
    monkeypatch.setattr("ood_audit.encoders.loading.load_encoder", lambda *args, **options: encoder)
    monkeypatch.setattr("ood_audit.encoders.loading.load_same_encoder", lambda *args, **options: encoder)


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


def features(store):
    """image_id → feature; an id that comes twice is an error."""
    found: dict[str, np.ndarray] = {}
    for batch in iter_features(ood_audit.open_store(store)):
        for image_id, feature in zip(batch.image_ids.to_pylist(), batch.features, strict=True):
            assert image_id not in found
            found[image_id] = feature
    return found


def rewrite(path: Path, content: bytes) -> None:
    """Change a file, and its time with certainty."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_bytes(content)
    if path.stat().st_mtime_ns == before:
        os.utime(path, ns=(before + 1_000_000, before + 1_000_000))


# Outcomes


def test_every_edit_has_its_outcome(pictures, store):
    first, second, third = sorted((pictures / "airplane").iterdir())
    assert run(pictures, store) == {"added": 6}
    assert run(pictures, store) == {"unchanged": 6}
    rewrite(first, PHOTOS[-1].read_bytes())
    second.unlink()
    good = third.read_bytes()
    rewrite(third, BROKEN)
    shutil.copy(PHOTOS[-2], pictures / "new.jpg")
    assert run(pictures, store) == {"added": 1, "changed": 1, "removed": 1, "unreadable": 1, "unchanged": 3}
    assert rows(store, "path, error IS NULL", "status = 'error'") == [(f"airplane/{third.name}", False)]
    parts = ood_audit.open_store(store).parts
    assert run(pictures, store) == {"unreadable": 1, "unchanged": 5}  # tried again, but nothing new to write
    assert ood_audit.open_store(store).parts == parts
    rewrite(third, good)
    shutil.copy(PHOTOS[-3], second)
    assert run(pictures, store) == {"changed": 1, "added": 1, "unchanged": 5}
    assert run(pictures, store) == {"unchanged": 7}
    assert Counter(status for _, status in rows(store)) == {"ok": 7}


def test_runs_are_recorded(pictures, store):
    import json

    (pictures / "notes.md").write_text("x")
    run(pictures, store)
    (record,) = [json.loads(path.read_text()) for path in (store / "runs").iterdir()]
    expected = {"added": 6, "unchanged": 0, "changed": 0, "moved": 0, "relabelled": 0, "removed": 0}
    expected["unreadable"] = 0
    assert (record["counts"], record["skipped"], record["interrupted"]) == (expected, {".md": 1}, False)


@pytest.mark.parametrize("seed", range(2))
def test_random_edits(tmp_path, store, seed):
    """Whatever is done to a folder between two runs, the store shows what is there, and counts what was done."""
    dice = random.Random(seed)
    folder = tmp_path / "in"
    small = []
    for photo in dice.sample(PHOTOS, 12):
        with Image.open(photo) as image:
            image.resize((40, 40)).save(tmp_path / "small.jpg")
        small.append((tmp_path / "small.jpg").read_bytes())
    (folder / "sub").mkdir(parents=True)
    now = {"sub/keep.jpg": small[0]}  # a source without any image is refused
    (folder / "sub" / "keep.jpg").write_bytes(small[0])
    truth: dict[str, bytes] = {}  # as of the last run
    for step in range(7):
        for _ in range(dice.randrange(5)):
            name = f"{dice.choice(['', 'sub/'])}{dice.randrange(6)}.jpg"
            if name in now and dice.random() < 0.4:
                del now[name]
                (folder / name).unlink()
            else:
                now[name] = dice.choice([*small, BROKEN + bytes([dice.randrange(9)])]) + bytes(step)
                rewrite(folder / name, now[name])
        expected = Counter(removed=len(truth.keys() - now.keys()))
        for name, content in now.items():
            if content.startswith(BROKEN):
                expected["unreadable"] += 1
            elif name not in truth:
                expected["added"] += 1
            else:
                expected["unchanged" if truth[name] == content else "changed"] += 1
        sources = dice.choice([[folder], [folder / "sub", folder], [folder, folder / "sub" / ".." / "sub"]])
        assert run(sources, store) == dict(+expected), f"step {step}"
        truth = dict(now)
        shown = dict(rows(store, "uri, status"))
        assert shown == {
            file_uri(str(folder / name)): "error" if content.startswith(BROKEN) else "ok"
            for name, content in now.items()
        }
    assert features(store).keys() == {image_id for (image_id,) in rows(store, "image_id", "status = 'ok'")}


def test_unchanged_loads_no_encoder_and_writes_no_part(pictures, store, monkeypatch):
    run(pictures, store)

    def refuse(*args, **options):
        raise AssertionError("there is nothing to embed")

    monkeypatch.setattr("ood_audit.encoders.loading.load_encoder", refuse)
    monkeypatch.setattr("ood_audit.encoders.loading.load_same_encoder", refuse)
    before = {path: path.stat().st_mtime_ns for path in (store / "images").iterdir()}
    assert run(pictures, store, model="starter", precision="fp32") == {"unchanged": 6}
    assert {path: path.stat().st_mtime_ns for path in (store / "images").iterdir()} == before
    sorted((pictures / "airplane").iterdir())[0].unlink()
    assert run(pictures, store) == {"unchanged": 5, "removed": 1}  # nor does taking one out need one


def test_a_folder_that_is_gone_leaves_the_view(pictures, store):
    run(pictures, store)
    shutil.rmtree(pictures / "airplane")
    assert run(pictures, store) == {"unchanged": 3, "removed": 3}
    assert [path.partition("/")[0] for path, _ in rows(store)] == ["sunflower"] * 3
    assert len(features(store)) == 3


def test_an_empty_folder_is_refused_and_removes_nothing(pictures, store):
    """What a disk that is not mounted looks like."""
    run(pictures, store)
    shutil.rmtree(pictures)
    with pytest.raises(UsageError, match="no such file or folder"):
        run(pictures, store)
    pictures.mkdir()
    with pytest.raises(OodAuditError, match="no images"):
        run(pictures, store)
    assert len(rows(store)) == 6


def test_only_the_sources_named_are_brought_into_step(pictures, store, tmp_path):
    shutil.copytree(pictures, tmp_path / "other")
    run([pictures, tmp_path / "other"], store)
    shutil.rmtree(pictures / "airplane")
    shutil.rmtree(tmp_path / "other" / "airplane")
    assert run(pictures, store) == {"unchanged": 3, "removed": 3}
    assert len(rows(store)) == 9


# Sources


def test_one_folder_by_any_name_is_one_source(pictures, store, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(pictures)
    assert run(pictures, store) == {"added": 6}
    monkeypatch.chdir(tmp_path)
    for name in ("pictures", "./pictures/", "link", "pictures/../link", tmp_path / "link", "pictures/airplane/.."):
        assert run(name, store) == {"unchanged": 6}, name
    assert rows(store, "DISTINCT source") == [(str(pictures),)]


def test_overlapping_sources_give_each_image_once(pictures, store, tmp_path):
    one = sorted((pictures / "airplane").iterdir())[0]
    names = tmp_path / "list.txt"
    names.write_text(f"{one}\npictures/airplane/../airplane/{one.name}\n")
    sources = [pictures / "airplane", names, pictures, one]
    assert run(sources, store) == {"added": 6}
    assert run(sources[::-1], store) == {"unchanged": 6}
    assert run(pictures, store) == {"unchanged": 6}
    assert len(features(store)) == 6


def test_a_parent_folder_answers_for_its_subfolders(pictures, store):
    run(pictures / "airplane", store)
    one = sorted((pictures / "airplane").iterdir())[0]
    run(one, store)
    one.unlink()
    assert run(pictures, store) == {"added": 3, "unchanged": 2, "removed": 1}
    assert len(rows(store)) == 5


def test_a_subfolder_answers_for_what_its_parent_found(pictures, store):
    run(pictures, store)
    sorted((pictures / "airplane").iterdir())[0].unlink()
    sorted((pictures / "sunflower").iterdir())[0].unlink()
    assert run(pictures / "airplane", store) == {"unchanged": 2, "removed": 1}
    assert len(rows(store)) == 5  # the other folder was not looked at


def test_a_folder_that_can_not_be_read_now_keeps_its_images(pictures, store, monkeypatch):
    """A share that is away for a while: its images are not gone, and the run says so."""
    run(pictures, store)
    closed = str(pictures / "airplane")
    scandir = os.scandir

    def refuse(folder):
        if folder == closed:
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr("ood_audit.images.sources.os.scandir", refuse)
    result = ood_audit.embed(pictures, store=store, device="cpu")
    assert +result.counts == {"unchanged": 3}
    assert result.unreadable_folders == {closed: "Permission denied"}
    assert len(rows(store)) == 6


def test_what_was_named_itself_stays_while_it_is_there(pictures, store):
    """A hidden folder, a file with a foreign ending: a run of the parent passes them over, and must not remove them."""
    shutil.copytree(pictures / "airplane", pictures / ".hidden")
    odd = Path(shutil.copy(PHOTOS[-1], pictures / "odd.dat"))
    assert run([pictures / ".hidden", odd, pictures], store) == {"added": 10}
    assert run(pictures, store) == {"unchanged": 6}
    assert len(rows(store)) == 10
    odd.unlink()
    assert run(pictures, store) == {"unchanged": 6, "removed": 1}


def test_an_image_that_two_sources_name_stays_while_one_does(pictures, store, tmp_path):
    one, two, _ = sorted((pictures / "airplane").iterdir())
    names = tmp_path / "list.txt"
    names.write_text(f"{one}\n{two}\n")
    run(pictures, store)
    run(names, store)
    names.write_text(f"{one}\n")
    assert run(names, store) == {"unchanged": 1}
    assert len(rows(store)) == 6


def test_folders_that_look_like_each_other(pictures, store, tmp_path):
    """`pictures2` and `pictures%` are no part of `pictures`."""
    for name in ("pictures2", "pictures%", "pictures%2F", "Pictures"):
        shutil.copytree(pictures / "airplane", tmp_path / name)
        run(tmp_path / name, store)
    run(pictures, store)
    for name in ("pictures2", "pictures%", "pictures%2F", "Pictures"):
        shutil.rmtree(tmp_path / name)
    assert run(pictures, store) == {"unchanged": 6}


@pytest.mark.parametrize("kind", ["txt", "csv", "parquet"])
def test_lists_with_entries_that_are_missing(pictures, store, tmp_path, kind):
    one, two, _ = sorted((pictures / "airplane").iterdir())
    null = kind != "csv" or sys.version_info >= (3, 11)  # before, csv refuses a file with a null byte
    entries = [f"pictures/airplane/{one.name}", str(two), "missing.jpg", "pictures", *["pictures/nul\0.jpg"] * null]
    names = tmp_path / f"list.{kind}"

    def write(entries):
        if kind == "txt":
            names.write_text("\n".join(entries))
        elif kind == "csv":
            names.write_text("label,path\n" + "".join(f'x,"{entry}"\n' for entry in entries))
        else:
            pq.write_table(pa.table({"path": [*entries, None]}), names)

    write(entries)
    assert run(names, store) == {"added": 2, "unreadable": 2 + null}
    errors = dict(rows(store, "path, error", "status = 'error'"))
    assert errors["missing.jpg"] == "no such file, or a link to nothing"
    assert errors["pictures"] == "is a directory"
    assert not null or "null byte" in errors["pictures/nul\0.jpg"]
    shutil.copy(PHOTOS[-1], tmp_path / "missing.jpg")
    write(entries[1:3])
    assert run(names, store) == {"unchanged": 1, "changed": 1, "removed": 2 + null}
    assert {status for _, status in rows(store)} == {"ok"}


@pytest.mark.parametrize("paths", [[1, 2], [b"x.jpg"], [["x.jpg"]], [1.5]])
def test_parquet_lists_of_other_types_are_refused(store, tmp_path, paths):
    pq.write_table(pa.table({"path": paths}), tmp_path / "list.parquet")
    with pytest.raises(UsageError, match="path"):
        run(tmp_path / "list.parquet", store)


def test_an_empty_name_is_no_source(store, tmp_path, monkeypatch, pictures):
    """`ood-audit embed "$UNSET"` must not mean the current folder."""
    monkeypatch.chdir(pictures)
    with pytest.raises(UsageError, match="no such file"):
        run("", store)


def test_the_store_inside_of_its_source(pictures):
    assert run(pictures, pictures / "store") == {"added": 6}
    shutil.copy(PHOTOS[-1], pictures / "store" / "stray.jpg")
    assert run(pictures, pictures / "store") == {"unchanged": 6}


def test_the_first_unreadable_image_that_is_told_is_one_of_this_run(pictures, store, tmp_path):
    (pictures / "a-broken.jpg").write_bytes(BROKEN)
    run(pictures, store)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "z-empty.jpg").touch()
    with pytest.raises(OodAuditError, match=r"z-empty\.jpg: empty file"):
        run(tmp_path / "bad", store)


# Features


def test_features_do_not_depend_on_the_batch(pictures, tmp_path, encoder):
    got = {}
    for batch_size in (1, 7, None):
        run(pictures, tmp_path / f"store{batch_size}", batch_size=batch_size)
        got[batch_size] = features(tmp_path / f"store{batch_size}")
    for image_id, feature in got[1].items():
        assert feature @ got[7][image_id] > 0.9999
        assert feature @ got[None][image_id] > 0.9999


def test_features_read_back_are_those_of_the_encoder(pictures, store, encoder):
    (pictures / "broken.jpg").write_bytes(BROKEN)  # between the others: null lists must not shift their neighbours
    run(pictures, store, batch_size=3)
    got = features(store)
    images = rows(store, "image_id, uri", "status = 'ok'")
    assert len(images) == len(got) == 6
    for image_id, uri in images:
        expected = encoder.encode_images([decode(uri, encoder.prepare).pixels])[0]
        np.testing.assert_allclose(got[image_id], expected, atol=1e-3)
        assert got[image_id].dtype == np.float32
        assert abs(np.linalg.norm(got[image_id]) - 1) < 1e-6


def test_features_do_not_depend_on_how_they_are_streamed(pictures, store):
    (pictures / "broken.jpg").write_bytes(BROKEN)
    run(pictures, store)
    whole = features(store)
    opened = ood_audit.open_store(store)
    batches = list(iter_features(opened, batch_rows=2))
    assert max(len(batch.features) for batch in batches) <= 2
    for batch in batches:
        for image_id, feature in zip(batch.image_ids.to_pylist(), batch.features, strict=True):
            np.testing.assert_array_equal(feature, whole[image_id])


def test_superseded_rows_are_not_streamed(pictures, store, encoder):
    run(pictures, store)
    one, two, three = sorted((pictures / "airplane").iterdir())
    old = features(store)
    rewrite(one, PHOTOS[-1].read_bytes())
    rewrite(two, BROKEN)
    three.unlink()
    run(pictures, store)
    new = features(store)
    ids = dict(rows(store, "path, image_id"))
    changed = ids[f"airplane/{one.name}"]
    expected = encoder.encode_images([decode(file_uri(str(PHOTOS[-1])), encoder.prepare).pixels])[0]
    np.testing.assert_allclose(new[changed], expected, atol=1e-3)
    assert len(old) == 6
    assert len(new) == 4
    assert new.keys() <= old.keys()
    assert ids[f"airplane/{two.name}"] not in new


def test_the_parts_open_without_this_tool(pictures, store):
    """Other readers see lists of half-precision numbers, and null where there is no feature."""
    (pictures / "broken.jpg").write_bytes(BROKEN)
    run(pictures, store)
    table = pq.read_table(next((store / "images").glob("*.parquet")))
    field = table.schema.field("embedding").type
    assert field.value_type == pa.float16()
    by_status = dict(zip(table["status"].to_pylist(), table["embedding"].to_pylist(), strict=True))
    assert by_status["error"] is None
    assert len(by_status["ok"]) == ood_audit.open_store(store).encoder.dimension


def test_every_readable_image_has_a_look(pictures, store, encoder):
    """In the order of the features, whatever was unreadable, removed or moved; not in parts of an older version."""
    (pictures / "broken.jpg").write_bytes(BROKEN)
    run(pictures, store)
    first, second, *_ = sorted((pictures / "airplane").iterdir())
    first.rename(pictures / "moved.jpg")
    second.unlink()
    assert run(pictures, store) == {"moved": 1, "removed": 1, "unchanged": 4, "unreadable": 1}
    own = ood_audit.open_store(store)
    assert has_looks(own.parts)
    paths = [path for batch in iter_features(own) for path in batch.paths.to_pylist()]
    found = np.concatenate(list(iter_looks(own)))
    decoded = [decode(file_uri(str(pictures / path)), encoder.prepare, at_least=encoder.decode_size) for path in paths]
    expected = encoder.encode([picture.pixels for picture in decoded])[1]
    assert len(found) == 5
    assert (found * expected).sum(axis=1).min() > 0.999
    ids = [i for batch in iter_features(own) for i in batch.image_ids.to_pylist()]
    np.testing.assert_array_equal(looks.read([look for look in looks_of(own, ids) if look]), found)
    assert looks_of(own, ["none of them"]) == [None]
    old = own.parts[0]
    pq.write_table(pq.read_table(old).drop_columns(["look"]), old)
    assert not has_looks(own.parts)
    assert looks_of(own, ids)[0] is None


# The index


def test_the_index_is_in_step(pictures, store):
    def check():
        opened = ood_audit.open_store(store)
        stored = features(store)
        ids, cosines = neighbours(opened, np.stack(list(stored.values())), 3)
        assert [nearest[0] for nearest in ids] == list(stored)
        np.testing.assert_allclose(cosines[:, 0], 1, atol=1e-3)
        assert (np.diff(cosines, axis=1) <= 0).all()
        assert {image_id for nearest in ids for image_id in nearest} <= stored.keys()

    run(pictures, store)
    check()
    one, two, three = sorted((pictures / "airplane").iterdir())
    rewrite(one, PHOTOS[-1].read_bytes())
    two.unlink()
    rewrite(three, BROKEN)
    shutil.copy(PHOTOS[-2], pictures / "new.jpg")
    run(pictures, store)
    check()
    shutil.rmtree(store / "index")  # it can always be built again
    check()


def test_an_index_built_while_images_are_added(pictures, store, monkeypatch):
    """What came in meanwhile is not taken for indexed."""
    import ood_audit.store.index as module

    run(pictures, store)
    shutil.rmtree(store / "index")

    def slowly(*arguments, **options):
        yield from iter_features(*arguments, **options)
        monkeypatch.undo()
        shutil.copy(PHOTOS[-1], pictures / "new.jpg")
        before = shutil.copytree(store, store.with_name("other"))
        ood_audit.embed(pictures, store=before, device="cpu")  # as another process would: the part appears
        shutil.copy(ood_audit.open_store(before).parts[-1], store / "images")

    monkeypatch.setattr(module, "iter_features", slowly)
    opened = ood_audit.open_store(store)
    one = next(iter(features(store).values()))[None]
    neighbours(opened, one, 1)
    assert len(neighbours(opened, one, 9)[0][0]) == 7


def test_more_neighbours_than_images_and_none_at_all(pictures, store):
    run(pictures, store)
    opened = ood_audit.open_store(store)
    one = next(iter(features(store).values()))[None]
    ids, _ = neighbours(opened, one, 50)
    assert len(ids[0]) == 6
    shutil.rmtree(pictures / "airplane")
    shutil.rmtree(pictures / "sunflower")
    (pictures / "broken.jpg").write_bytes(BROKEN)
    with pytest.raises(OodAuditError, match="none of the 1 images could be read"):
        run(pictures, store)
    assert neighbours(opened, one, 5)[0] == [[]]


# What a store refuses


def test_a_store_without_its_manifest_is_not_started_over(pictures, store):
    """The features in it are of an encoder that nothing names any more."""
    run(pictures, store)
    (store / "store.json").unlink()
    with pytest.raises(StoreError, match=r"store\.json"):
        run(pictures, store)
    assert not (store / "store.json").exists()


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"model": "ViT-B-32/openai"}])
def test_another_encoder_is_refused(pictures, store, options, monkeypatch):
    import socket

    run(pictures, store)
    monkeypatch.setattr(socket, "create_connection", lambda *args, **kwargs: pytest.fail("asked the network"))
    with pytest.raises(StoreError, match="another store with `store=DIR`"):
        run(pictures, store, **options)
    assert run(pictures, store) == {"unchanged": 6}


# Faults


def test_files_that_vanish_between_the_scan_and_their_turn(pictures, store, monkeypatch):
    """Each is a row with its error, nothing else is lost, and once they are back they are embedded."""
    gone = sorted(pictures.rglob("*.jpg"))[1::3]
    kept = {path: path.read_bytes() for path in gone}

    def vanish(uri, prepare, **options):
        for path in gone:
            path.unlink(missing_ok=True)
        return decode(uri, prepare, **options)

    monkeypatch.setattr("ood_audit.embedding.pipeline.decode", vanish)
    assert run(pictures, store, batch_size=2) == {"added": 4, "unreadable": 2}
    errors = rows(store, "path, error", "status = 'error'")
    assert errors == [(str(path.relative_to(pictures)), "no such file, or a link to nothing") for path in gone]
    monkeypatch.setattr("ood_audit.embedding.pipeline.decode", decode)
    for path, content in kept.items():
        path.write_bytes(content)
    assert run(pictures, store) == {"unchanged": 4, "changed": 2}
    assert {status for _, status in rows(store)} == {"ok"}
    assert len(features(store)) == 6
