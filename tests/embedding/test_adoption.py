"""Files that were moved, renamed or restored keep their features; sources that are missing are told and forgotten."""

import csv
import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ood_audit
import ood_audit.embedding.run
from ood_audit import ScoreSettings
from ood_audit.actions.quarantine import quarantine, restore
from ood_audit.embedding import adoption
from ood_audit.errors import OodAuditError, UsageError
from ood_audit.images.sources import file_uri
from ood_audit.images.uri import local_path
from ood_audit.store.compaction import compact
from ood_audit.store.forget import forget
from ood_audit.store.parts import PartWriter, iter_features
from ood_audit.store.sources import sources
from tests.conftest import EXAMPLES
from tests.helpers.cli import invoke
from tests.helpers.findings import write_findings


@pytest.fixture(autouse=True)
def warm(encoder, monkeypatch):
    monkeypatch.setattr("ood_audit.encoders.loading.load_encoder", lambda *args, **options: encoder)
    monkeypatch.setattr("ood_audit.encoders.loading.load_same_encoder", lambda *args, **options: encoder)


@pytest.fixture
def embedded(monkeypatch):
    """The paths of the images that were decoded; cleared by the test."""
    from ood_audit.embedding import pipeline

    seen: list[str] = []

    def decode(uri, prepare, **options):
        seen.append(local_path(uri))
        return original(uri, prepare, **options)

    original = pipeline.__dict__["decode"]
    monkeypatch.setattr(pipeline, "decode", decode)
    return seen


@pytest.fixture
def hashed(monkeypatch):
    """The paths of the files that were compared by content."""
    seen: list[str] = []

    def content(uri):
        seen.append(local_path(uri))
        return original(uri)

    original = adoption._content
    monkeypatch.setattr(adoption, "_content", content)
    return seen


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


def run(sources, store, **options):
    return dict(+ood_audit.embed(sources, store=store, device="cpu", **options).counts)


def features(store):
    """path → feature, as stored."""
    found: dict[str, np.ndarray] = {}
    for batch in iter_features(ood_audit.open_store(store)):
        for path, code in zip(batch.paths.to_pylist(), batch.codes, strict=True):
            assert path not in found
            found[path] = code.copy()
    return found


def rows(store, columns="path, status"):
    return ood_audit.open_store(store).query(f"SELECT {columns} FROM images ORDER BY ALL").rows


def check(store, *folders: Path):
    """Each file that is there is in the store once, and nothing else is."""
    expected = sorted(file_uri(str(path)) for folder in folders for path in folder.rglob("*.jpg"))
    assert [uri for (uri,) in rows(store, "uri")] == expected


def record(store):
    newest = max((store / "runs").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    return json.loads(newest.read_text())


# Moves


def test_a_folder_that_was_renamed(pictures, store, tmp_path, embedded):
    run(pictures, store)
    before = features(store)
    facts = rows(store, "path, width, height, format, size_bytes, mtime_ns, content_hash, status")
    embedded.clear()
    new = pictures.rename(tmp_path / "renamed")
    done = invoke("embed", new, "--store", store, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("0 added, 0 unchanged, 0 changed, 6 moved, 0 removed, 0 unreadable; ")
    assert embedded == []
    assert record(store)["counts"] == {
        **dict.fromkeys(ood_audit.embedding.run.OUTCOMES, 0),
        "moved": 6,
    }
    check(store, new)
    assert rows(store, "DISTINCT source") == [(str(new),)]
    assert rows(store, "path, width, height, format, size_bytes, mtime_ns, content_hash, status") == facts
    after = features(store)
    assert after.keys() == before.keys()
    for path, code in after.items():
        np.testing.assert_array_equal(code, before[path])
    assert run(new, store) == {"unchanged": 6}


@pytest.mark.parametrize("nested", [False, True])
def test_a_folder_that_moved_and_was_changed_in_part(pictures, store, tmp_path, embedded, nested):
    """A changed file is at its new place only; one that is gone stays, with a warning, as its source is missing."""
    run(pictures, store)
    embedded.clear()
    new = tmp_path / "above" / "renamed" if nested else tmp_path / "renamed"
    new.parent.mkdir(exist_ok=True)
    pictures.rename(new)
    shutil.copy(min((new / "sunflower").iterdir()), new / "airplane" / "img_0001.jpg")
    (new / "airplane" / "img_0001.jpg").open("ab").write(b"x")
    (new / "airplane" / "more.jpg").write_bytes((new / "airplane" / "img_0001.jpg").read_bytes() + b"y")
    (new / "airplane" / "img_0003.jpg").unlink()
    assert run(new.parent if nested else new, store) == {"moved": 4, "added": 2}
    assert sorted(map(os.path.basename, embedded)) == ["img_0001.jpg", "more.jpg"]
    assert [(one.images, one.state) for one in sorted(sources(store), key=lambda one: one.images)] == [
        (1, "missing"),
        (6, "present"),
    ]


def test_a_folder_that_was_renamed_inside_of_its_source(pictures, store, embedded):
    run(pictures, store)
    embedded.clear()
    (pictures / "airplane").rename(pictures / "plane")
    (pictures / "new.jpg").write_bytes((pictures / "plane" / "img_0001.jpg").read_bytes() + b"x")
    assert run(pictures, store) == {"unchanged": 3, "moved": 3, "added": 1}
    assert embedded == [str(pictures / "new.jpg")]
    check(store, pictures)
    assert [folder for (folder,) in rows(store, "DISTINCT folder")] == ["", "plane", "sunflower"]


def test_one_file_that_was_renamed_loads_no_encoder(pictures, store, monkeypatch):
    run(pictures, store)
    before = features(store)
    monkeypatch.setattr("ood_audit.encoders.loading.load_same_encoder", lambda *a, **o: pytest.fail("nothing to embed"))
    (pictures / "airplane" / "img_0001.jpg").rename(pictures / "sunflower" / "odd name é.jpg")
    assert run(pictures, store) == {"unchanged": 5, "moved": 1}
    np.testing.assert_array_equal(features(store)["sunflower/odd name é.jpg"], before["airplane/img_0001.jpg"])
    check(store, pictures)


def test_files_that_were_moved_between_two_sources(pictures, store, tmp_path, embedded):
    other = tmp_path / "other"
    shutil.copytree(pictures / "airplane", other)
    run([pictures, other], store)
    embedded.clear()
    (pictures / "sunflower").rename(other / "sunflower")
    assert run([pictures, other], store) == {"unchanged": 6, "moved": 3}
    (other / "sunflower").rename(pictures / "back")
    assert run(pictures, store) == {"unchanged": 3, "moved": 3}  # also where only the new place is embedded
    assert embedded == []
    check(store, pictures, other)


def test_a_copy_is_no_move(pictures, store, tmp_path):
    run(pictures, store)
    shutil.copytree(pictures, tmp_path / "copy")
    assert run(tmp_path / "copy", store) == {"added": 6}
    check(store, pictures, tmp_path / "copy")


def test_copies_of_what_is_gone(pictures, store, tmp_path, embedded):
    """One of them has moved; the others are new, and need not be embedded either."""
    run(pictures, store)
    before = features(store)["airplane/img_0001.jpg"]
    embedded.clear()
    one = pictures / "airplane" / "img_0001.jpg"
    for name in ("b.jpg", "sunflower/img_0001-copy.jpg", "sub/img_0001.jpg"):
        (pictures / name).parent.mkdir(exist_ok=True)
        shutil.copy(one, pictures / name)
    one.unlink()
    assert run(pictures, store) == {"unchanged": 5, "moved": 1, "added": 2}
    assert embedded == []
    check(store, pictures)
    for name in ("b.jpg", "sunflower/img_0001-copy.jpg", "sub/img_0001.jpg"):
        np.testing.assert_array_equal(features(store)[name], before)


def test_copies_that_moved_together_keep_their_names(pictures, store, tmp_path):
    """Of files with the same bytes, that with the same path is the same image, then that with the same name."""
    for name in ("sunflower/copy.jpg", "z.jpg"):
        shutil.copy(pictures / "airplane" / "img_0001.jpg", pictures / name)
    run(pictures, store)
    ids = dict(rows(store, "path, image_id"))
    new = pictures.rename(tmp_path / "a")
    (new / "sunflower" / "copy.jpg").rename(new / "copy.jpg")
    pairs = {}
    original = PartWriter.adopt

    def adopt(self, image, *arguments, instead_of, **options):
        pairs[image.path] = instead_of.image_id
        original(self, image, *arguments, instead_of=instead_of, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PartWriter, "adopt", adopt)
        assert run(new, store) == {"moved": 8}
    ids["copy.jpg"] = ids.pop("sunflower/copy.jpg")
    assert pairs == ids


def test_a_source_that_is_a_link_to_its_new_place_now(pictures, store, tmp_path):
    run(pictures, store)
    new = pictures.rename(tmp_path / "larger disk")
    pictures.symlink_to(new)
    assert sources(store)[0].state == "link"
    assert run(pictures, store) == {"moved": 6}
    check(store, new)


def test_same_size_but_other_bytes(pictures, store, embedded):
    run(pictures, store)
    old = pictures / "airplane" / "img_0001.jpg"
    content = old.read_bytes()
    old.unlink()
    (pictures / "other.jpg").write_bytes(content[:-3] + b"?" + content[-2:])
    embedded.clear()
    assert run(pictures, store) == {"unchanged": 5, "removed": 1, "added": 1}
    assert embedded == [str(pictures / "other.jpg")]


def test_only_files_of_the_right_size_are_read(pictures, store, hashed):
    run(pictures, store)
    (pictures / "longer.jpg").write_bytes((pictures / "airplane" / "img_0001.jpg").read_bytes() + b"x")
    assert run(pictures, store) == {"unchanged": 6, "added": 1}
    shutil.copy(pictures / "airplane" / "img_0001.jpg", pictures / "copy.jpg")  # the file of that size is not gone
    assert run(pictures, store) == {"unchanged": 7, "added": 1}
    (pictures / "airplane" / "img_0002.jpg").unlink()
    assert run(pictures, store) == {"unchanged": 7, "removed": 1}
    assert hashed == []
    (pictures / "airplane" / "img_0003.jpg").rename(pictures / "renamed.jpg")
    assert run(pictures, store) == {"unchanged": 6, "moved": 1}
    assert hashed == [str(pictures / "renamed.jpg")]


def test_files_that_only_have_another_time(pictures, store, embedded):
    """What a checkout, or a copy without times, does to a whole folder."""
    run(pictures, store)
    before = features(store)
    embedded.clear()
    for path in pictures.rglob("*.jpg"):
        os.utime(path, ns=(10**18, 10**18))
    assert run(pictures, store) == {"changed": 6}
    assert embedded == []
    assert rows(store, "DISTINCT mtime_ns") == [(10**18,)]
    for path, code in features(store).items():
        np.testing.assert_array_equal(code, before[path])
    assert run(pictures, store) == {"unchanged": 6}


def test_a_chain_of_renames(pictures, store, embedded):
    """b → c, a → b: the new name is new, the one between has changed, and nothing is embedded."""
    a, b, c = (pictures / "airplane" / f"{name}.jpg" for name in "abc")
    for number, path in enumerate((a, b), start=1):
        (pictures / "airplane" / f"img_000{number}.jpg").rename(path)
    same = max(a.stat().st_size, b.stat().st_size)
    for path in (a, b):
        path.write_bytes(path.read_bytes().ljust(same, b"\0"))
    run(pictures, store)
    before = features(store)
    embedded.clear()
    b.rename(c)
    a.rename(b)
    assert run(pictures, store) == {"unchanged": 4, "added": 1, "changed": 1, "removed": 1}
    assert embedded == []
    check(store, pictures)
    after = features(store)
    np.testing.assert_array_equal(after["airplane/c.jpg"], before["airplane/b.jpg"])
    np.testing.assert_array_equal(after["airplane/b.jpg"], before["airplane/a.jpg"])


def test_an_unreadable_image_that_moved_is_tried_again(pictures, store, tmp_path):
    (pictures / "broken.jpg").write_bytes(b"no picture")
    run(pictures, store)
    new = pictures.rename(tmp_path / "renamed")
    assert run(new, store) == {"moved": 6, "unreadable": 1}
    check(store, new)
    assert run(new, store) == {"unchanged": 6, "unreadable": 1}


def test_a_tar_file_that_was_renamed(pictures, store, tmp_path, embedded):
    with tarfile.open(tmp_path / "one.tar", "w") as tar:
        tar.add(pictures, "in")
    run(tmp_path / "one.tar", store)
    before = features(store)
    embedded.clear()
    (tmp_path / "one.tar").rename(tmp_path / "two.tar")
    assert run(tmp_path / "two.tar", store) == {"moved": 6}
    assert embedded == []
    after = {path.replace("two.tar", "one.tar"): code for path, code in features(store).items()}
    assert after.keys() == before.keys()
    assert all((after[path] == before[path]).all() for path in before)
    assert run(tmp_path / "two.tar", store) == {"unchanged": 6}


def test_a_folder_that_can_not_be_read_now_has_not_moved(pictures, store, tmp_path, monkeypatch):
    run(pictures, store)
    shutil.copytree(pictures / "airplane", tmp_path / "copy")
    closed = str(pictures / "airplane")
    lstat = os.lstat

    def refuse(path, **options):
        if str(path).startswith(closed):
            raise PermissionError(13, "Permission denied", path)
        return lstat(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr("ood_audit.images.access.os.lstat", refuse)
        assert run(tmp_path / "copy", store) == {"added": 3}
    check(store, pictures, tmp_path / "copy")


def test_images_that_moved_are_in_the_index_and_in_a_report_once(pictures, store, tmp_path):
    run(pictures, store)
    ood_audit.report(
        store, labels=["airplane", "sunflower"], device="cpu", settings=ScoreSettings(auto=False, background=False)
    )
    new = pictures.rename(tmp_path / "renamed")
    run(new, store)
    result = ood_audit.report(
        store, labels=["airplane", "sunflower"], device="cpu", settings=ScoreSettings(auto=False, background=False)
    )
    assert sorted(row["path"] for row in result.rows) == [path for path, _ in rows(store)]
    compact(ood_audit.open_store(store))
    check(store, new)
    assert len(features(store)) == 6


@pytest.mark.parametrize("parts_written", [0, 1, 2])
def test_killed_halfway(pictures, store, tmp_path, monkeypatch, parts_written):
    """An image is never in the view twice or not at all, and the next run ends the move."""
    import ood_audit.store.parts as module

    run(pictures, store)
    before = features(store)
    new = pictures.rename(tmp_path / "renamed")
    monkeypatch.setattr(module, "PART_ROWS", 3)  # odd: a part must not end between the two rows of a move
    written: list[int] = []
    original = module.PartWriter._write

    def write(self, path, number):
        if len(written) == parts_written:
            raise KeyboardInterrupt
        original(self, path, number)
        written.append(number)

    with monkeypatch.context() as patch:
        patch.setattr(module.PartWriter, "_write", write)
        with pytest.raises(KeyboardInterrupt):
            run(new, store)
    assert features(store).keys() == before.keys()  # `features` refuses a path that comes twice
    left = 6 - sum(uri.startswith(file_uri(str(new))) for (uri,) in rows(store, "uri"))
    assert left == 6 - 2 * parts_written
    expected = {"moved": left, "unchanged": 6 - left}
    assert run(new, store) == {outcome: count for outcome, count in expected.items() if count}
    check(store, new)
    assert all((code == before[path]).all() for path, code in features(store).items())


def test_progress_reaches_its_end(pictures, store, tmp_path):
    run(pictures, store)
    new = pictures.rename(tmp_path / "renamed")
    (new / "new.jpg").write_bytes((new / "airplane" / "img_0001.jpg").read_bytes() + b"x")
    stages: dict[str, list[tuple[int, int | None]]] = {}
    run(new, store, on_progress=lambda stage, done=0, total=None: stages.setdefault(stage, []).append((done, total)))
    assert stages["comparing files with the store"] == [(done, 6) for done in range(1, 7)]
    assert [done for done, _ in stages["taking over moved files"]] == list(range(1, 7))
    assert stages["embedding"] == [(0, 1), (1, 1)]


def test_many_files_at_once(tmp_path, store, monkeypatch, embedded):
    """More than are listed, hashed and read back together."""
    monkeypatch.setattr(adoption, "_TOGETHER", 3)
    monkeypatch.setattr(adoption, "_ROWS", 4)
    (tmp_path / "in").mkdir()
    for i in range(20):
        Image.new("RGB", (8, 8), (i, 10 * i, 255 - i)).save(tmp_path / "in" / f"{i:02}.bmp")  # all of one size
    run(tmp_path / "in", store)
    before = features(store)
    embedded.clear()
    (tmp_path / "in").rename(tmp_path / "in2")
    assert run(tmp_path / "in2", store) == {"moved": 20}
    assert embedded == []
    after = features(store)
    assert all((after[path] == before[path]).all() for path in before)


# Out of a quarantine


def test_undo_after_embed_keeps_the_features(pictures, store, tmp_path, embedded):
    run(pictures, store)
    before = features(store)
    write_findings(store, {"airplane/img_0001.jpg": "ood", "sunflower/img_0002.jpg": "ood"})
    aside = tmp_path / "aside"
    assert quarantine(aside, store, kinds=["ood"]).counts == {"moved": 2}
    assert run(pictures, store) == {"unchanged": 4, "removed": 2}
    restore(aside)
    embedded.clear()
    assert run(pictures, store) == {"unchanged": 4, "added": 2}
    assert embedded == []
    after = features(store)
    assert all((after[path] == before[path]).all() for path in before)
    check(store, pictures)


def test_undo_after_compaction_embeds_again(pictures, store, tmp_path, embedded):
    run(pictures, store)
    write_findings(store, {"airplane/img_0001.jpg": "ood"})
    quarantine(tmp_path / "aside", store, kinds=["ood"])
    run(pictures, store)
    compact(ood_audit.open_store(store))
    restore(tmp_path / "aside")
    embedded.clear()
    assert run(pictures, store) == {"unchanged": 5, "added": 1}
    assert embedded == [str(pictures / "airplane" / "img_0001.jpg")]


# Sources


@pytest.fixture
def two(pictures, store, tmp_path):
    """A store of two folders, of which one has gone."""
    (pictures / "broken.jpg").write_bytes(b"no picture")
    shutil.copytree(pictures / "airplane", tmp_path / "other")
    run([pictures, tmp_path / "other"], store)
    pictures.rename(tmp_path / "elsewhere")
    return pictures, tmp_path / "other"


def test_sources_are_listed(two, store):
    gone, other = two
    expected = [
        {"source": str(other), "images": 3, "unreadable": 0, "state": "present"},
        {"source": str(gone), "images": 6, "unreadable": 1, "state": "missing"},
    ]
    done = invoke("sources", "--store", store, "--format", "json")
    assert (done.returncode, json.loads(done.stdout)) == (0, expected)
    assert done.stderr.startswith("missing or empty: 1 of 2 sources; ")
    table = invoke("sources", "--store", store).stdout
    assert table.splitlines()[0].split() == ["source", "images", "unreadable", "state"]
    found = list(csv.DictReader(io.StringIO(invoke("sources", "--store", store, "--format", "csv").stdout)))
    assert [row["source"] for row in found] == [str(other), str(gone)]
    assert [source.source for source in ood_audit.sources(store)] == [str(other), str(gone)]


def test_an_empty_folder_and_odd_names(tmp_path, store):
    names = [tmp_path / "empty", Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))]
    for name in names:
        name.mkdir()
        shutil.copy(EXAMPLES / "images" / "airplane" / "img_0001.jpg", name / "1.jpg")
    run(names, store)
    (tmp_path / "empty" / "1.jpg").unlink()
    assert {source.state for source in sources(store)} == {"empty", "present"}
    shutil.rmtree(names[1])
    assert sorted(source.state for source in sources(store)) == ["empty", "missing"]
    assert [source.images for source in forget(names[1], store)] == [1]
    assert len(rows(store)) == 1


def test_a_source_is_forgotten(two, store, tmp_path, embedded):
    gone, other = two
    dry = invoke("sources", "--forget", gone, "--dry-run", "--store", store, "--format", "json")
    assert [row["source"] for row in json.loads(dry.stdout)] == [str(gone)]
    assert dry.stderr == "images that would be removed from the store: 7; their files are unchanged\n"
    assert len(rows(store)) == 10
    parts = len(ood_audit.open_store(store).parts)
    done = invoke("sources", "--forget", gone, "--store", store)
    assert (done.returncode, done.stderr) == (0, "images removed from the store: 7; their files are unchanged\n")
    assert len(ood_audit.open_store(store).parts) == parts + 1
    check(store, other)
    assert (tmp_path / "elsewhere" / "broken.jpg").exists()
    assert record(store)["counts"] == {"removed": 7}
    (status,) = json.loads(invoke("status", "--store", store, "--format", "json").stdout)
    assert (status["sources"], status["missing_sources"], status["images"]) == (1, 0, 3)
    # What was forgotten by mistake is not embedded again
    (tmp_path / "elsewhere").rename(gone)
    embedded.clear()
    assert run(gone, store) == {"added": 6, "unreadable": 1}
    assert embedded == [str(gone / "broken.jpg")]


def test_a_source_is_forgotten_by_any_of_its_names(two, store, tmp_path, monkeypatch):
    gone, other = two
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(other)
    for name in (f"./{gone.name}/", gone, f"other/../{gone.name}"):
        assert [source.source for source in forget(name, store, dry_run=True)] == [str(gone)]
    assert [source.source for source in forget(["link", gone.name], store)] == [str(other), str(gone)]
    assert rows(store) == []


def test_a_name_that_is_no_source(two, store, tmp_path):
    gone, _ = two
    for name, hint in (
        (tmp_path / "pictuers", f"did you mean {gone}?"),
        ("/nowhere/pictures", f"did you mean {gone}?"),
        ("s3://bucket/q", "`ood-audit sources` lists the sources"),
        ("", "`ood-audit sources` lists the sources"),
    ):
        done = invoke("sources", "--forget", name, "--store", store)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert done.stderr.startswith("error: the store has no source ")
        assert hint in done.stderr
    assert len(rows(store)) == 10
    done = invoke("sources", "--dry-run", "--store", store)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_commands_warn_of_a_missing_source(two, store):
    gone, _ = two
    start = f"warning: the source {gone} is missing (7 images); embed the place it moved to, or drop it with "
    remedy = f"`ood-audit sources --forget {gone}`"
    report = ("report", "--labels", EXAMPLES / "classes.txt", "--no-auto", "--background", "off", "--device", "cpu")
    for command in (report, ("status",), ("export", "--unreadable", "--format", "keep-list")):
        done = invoke(*command, "--store", store) if command[0] != "export" else run_export(command, store)
        assert done.returncode == 0, done.stderr
        assert [line for line in done.stderr.splitlines() if "warning" in line] == [start + remedy], command
    (status,) = json.loads(invoke("status", "--store", store, "--format", "json").stdout)
    assert status["missing_sources"] == 1


def run_export(command, store):
    return invoke(*command, "--store", store, "--output", store.parent / "list.txt")


def test_commands_warn_of_several_missing_sources_in_one_line(two, store):
    shutil.rmtree(two[1])
    done = invoke("status", "--store", store)
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"warning: 2 sources are missing (10 images), the first {two[1]}; ")


def test_remote_sources_are_not_asked_for(pictures, store, monkeypatch):
    run(pictures, store)
    monkeypatch.setattr("ood_audit.images.access._remote", lambda uri: pytest.fail("asked the network"))
    from ood_audit.images.sources import ImageRef

    opened = ood_audit.open_store(store)
    with PartWriter(opened, "run") as writer:
        row = {"content_hash": "0" * 32, "status": "ok"}
        image = ImageRef("s3://bucket/a.jpg", "s3://bucket", "a.jpg", 1, 1)
        writer.adopt(image, row, next(iter(features(store).values())), supersedes=False)
    assert [(source.source, source.state) for source in sources(store)][1] == ("s3://bucket", "not checked")
    assert invoke("status", "--store", store).stderr == ""


def test_embed_names_the_remedy_where_a_source_is_gone(two, store, tmp_path):
    gone, _ = two
    with pytest.raises(UsageError, match=f"no such file or folder: .*; if it moved, .*--forget {gone}`"):
        run([gone, tmp_path / "elsewhere"], store)
    gone.mkdir()
    with pytest.raises(OodAuditError, match=f"no images in .*; if it moved, .*--forget {gone}`"):
        run(gone, store)
    with pytest.raises(UsageError) as error:
        run(tmp_path / "never there", store)
    assert "--forget" not in str(error.value)
    assert len(rows(store)) == 10


def test_quarantine_names_the_remedy_where_files_are_gone(two, store, tmp_path):
    gone, other = two
    (other / "img_0001.jpg").unlink()
    write_findings(store, {"airplane/img_0001.jpg": "ood", "img_0001.jpg": "ood"})
    result = quarantine(tmp_path / "aside", store, kinds=["ood"])
    assert [row.reason for row in sorted(result.outcomes, key=lambda row: row.reason)] == [
        f"its source {gone} is gone; embed the place it moved to, or run `ood-audit sources --forget {gone}`",
        f"no such file any more; run `ood-audit embed {other}`, with the place it moved to if that is elsewhere",
    ]
