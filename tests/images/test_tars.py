"""Tar files of images: members are rows, and go through every command."""

import io
import os
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import ood_audit
from ood_audit.errors import OodAuditError, UsageError
from ood_audit.images import access
from ood_audit.images.decode import decode, thumbnail
from ood_audit.images.sources import ScanNotes, resolve, scan
from tests.conftest import EXAMPLES
from tests.helpers.cli import invoke

PHOTOS = (
    sorted((EXAMPLES / "images" / "airplane").glob("*.jpg"))[:3]
    + sorted((EXAMPLES / "images" / "sunflower").glob("*.jpg"))[:3]
)


@pytest.fixture(autouse=True)
def warm(encoder, monkeypatch):
    monkeypatch.setattr("ood_audit.encoders.loading.load_encoder", lambda *args, **options: encoder)
    monkeypatch.setattr("ood_audit.encoders.loading.load_same_encoder", lambda *args, **options: encoder)


def pack(path, members):
    """A tar file of names and contents, later than any of that name before."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    if before:
        os.utime(path, ns=(before + 10**9,) * 2)
    return path


@pytest.fixture
def shards(tmp_path):
    """Two shards with class folders in them and what WebDataset puts beside the images."""
    (tmp_path / "in").mkdir()
    for number in range(2):
        members = []
        for photo in PHOTOS[number::2]:
            key = f"{photo.parent.name}/{number}-{photo.stem}"
            members += [(f"{key}.jpg", photo.read_bytes()), (f"{key}.cls", b"1"), (f"{key}.json", b"{}")]
        pack(tmp_path / "in" / f"shard-{number}.tar", members)
    return tmp_path / "in"


def run(sources, store):
    return dict(+ood_audit.embed(sources, store=store, device="cpu").counts)


def rows(store, columns="path, status", where="true"):
    return ood_audit.open_store(store).query(f"SELECT {columns} FROM images WHERE {where} ORDER BY ALL").rows


def test_members_are_rows(shards, tmp_path):
    result = ood_audit.embed(shards, store=tmp_path / "store", device="cpu")
    assert +result.counts == {"added": 6}
    assert result.skipped == {".cls": 6, ".json": 6}
    store = ood_audit.open_store(tmp_path / "store")
    answer = store.query("SELECT uri, path, folder, content_hash FROM images ORDER BY path").rows
    name = PHOTOS[0].stem
    assert answer[0][:3] == (
        f"file://{shards}/shard-0.tar#airplane/0-{name}.jpg",
        f"shard-0.tar/airplane/0-{name}.jpg",
        "airplane",
    )
    for uri, *_, digest in answer:
        assert decode(uri, np.asarray).content_hash == digest
        assert thumbnail(uri, 32)
    assert run(shards, tmp_path / "store") == {"unchanged": 6}
    assert run([shards / "shard-0.tar", shards], tmp_path / "store") == {"unchanged": 6}


def test_changed_and_removed_shards(shards, tmp_path):
    store = tmp_path / "store"
    run(shards, store)
    pack(shards / "shard-0.tar", [("airplane/new.jpg", PHOTOS[0].read_bytes()), ("x.jpg", b"no picture")])
    assert run(shards, store) == {"moved": 1, "removed": 2, "unchanged": 3, "unreadable": 1}
    (shards / "shard-1.tar").unlink()
    assert run(shards, store) == {"removed": 3, "unchanged": 1, "unreadable": 1}
    assert rows(store) == [("shard-0.tar/airplane/new.jpg", "ok"), ("shard-0.tar/x.jpg", "error")]


def test_a_shard_written_anew_is_embedded_anew(shards, tmp_path):
    store = tmp_path / "store"
    run(shards, store)
    with tarfile.open(shards / "shard-0.tar") as tar:
        content = [(member.name, file.read()) for member in tar if (file := tar.extractfile(member))]
    pack(shards / "shard-0.tar", content[::-1])  # the same members at other places
    assert run(shards, store) == {"changed": 3, "unchanged": 3}
    for uri, digest in rows(store, "uri, content_hash"):
        assert decode(uri, np.asarray).content_hash == digest


@pytest.mark.parametrize("damage", ["truncated", "header", "empty", "no tar"])
def test_a_damaged_shard_is_a_row_beside_its_readable_members(shards, tmp_path, damage):
    store, path = tmp_path / "store", shards / "shard-0.tar"
    with tarfile.open(path) as tar:
        places = [member.offset for member in tar if member.name.endswith(".jpg")]
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[: places[1] + 1024]  # within the second image
    elif damage == "header":
        content[places[1] : places[1] + 512] = b"\xff" * 512
    else:
        content = bytearray() if damage == "empty" else bytearray(PHOTOS[0].read_bytes())
    path.write_bytes(content)
    counts = run(shards, store)
    errors = dict(rows(store, "path, error", "status = 'error'"))
    assert ("a jpeg: name it" if damage == "no tar" else "damaged tar file") in errors.pop("shard-0.tar")
    readable = {"truncated": 1, "header": 1}.get(damage, 0)
    assert len(errors) == (damage == "truncated")  # the image that is cut off
    assert counts == {"added": 3 + readable, "unreadable": 1 + len(errors)}
    assert run(shards, store) == {"unchanged": 3 + readable, "unreadable": 1 + len(errors)}
    pack(path, [("airplane/1.jpg", PHOTOS[0].read_bytes())])
    run(shards, store)
    assert rows(store, "count(*)", "status = 'error'") == [(0,)]


def test_a_shard_that_can_not_be_read_now_keeps_its_images(shards, tmp_path, monkeypatch):
    store = tmp_path / "store"
    run(shards, store)
    opened = access.open_file

    def refuse(uri):
        if uri.endswith("shard-0.tar"):
            raise PermissionError(13, "Permission denied", uri)
        return opened(uri)

    monkeypatch.setattr("ood_audit.images.members.open_file", refuse)
    result = ood_audit.embed(shards, store=store, device="cpu")
    assert +result.counts == {"unchanged": 3}
    assert result.unreadable_folders == {str(shards / "shard-0.tar"): "Permission denied"}
    assert len(rows(store)) == 6


def test_odd_members(tmp_path):
    photo = PHOTOS[0].read_bytes()
    names = [
        "./a.jpg",
        "../../b.jpg",
        "/c.jpg",
        "new\nline.jpg",
        "caf\udce9.jpg",
        "a%20b#?.jpg",
        "deep/" * 30 + "d.jpg",
    ]
    path = pack(
        tmp_path / "odd.tar", [*((name, photo) for name in names), (".hidden.jpg", photo), ("._x/y.jpg", photo)]
    )
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    notes = ScanNotes()
    images = list(scan(resolve(path), notes))
    assert len({image.image_id for image in images}) == len(names)
    assert notes.skipped == {".jpg": 2, "not a regular file": 1}
    for image in images:
        assert access.read(image.uri).data == photo
        image.path.encode()
        image.uri.encode("ascii")


def test_members_are_read_in_threads(shards):
    images = list(scan(str(shards), ScanNotes())) * 20
    with ThreadPoolExecutor(8) as pool:
        for image, content in zip(images, pool.map(lambda image: access.read(image.uri), images), strict=True):
            assert len(content.data) == image.size_bytes


def test_compressed_shards_are_refused(tmp_path):
    (tmp_path / "x.tar.gz").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"make it a \.tar"):
        resolve(tmp_path / "x.tar.gz")


def test_a_shard_without_images(tmp_path):
    with pytest.raises(OodAuditError, match=r"no images.*1 \.cls"):
        run(pack(tmp_path / "x.tar", [("1.cls", b"1")]), tmp_path / "store")


def test_reports_duplicates_lists_and_quarantine(shards, tmp_path):
    """What was found in members is listed, can be left out by a keep-list, and is not moved; files are."""
    store = tmp_path / "store"
    (shards / "airplane").mkdir()
    copy = shutil.copy(PHOTOS[0], shards / "airplane" / "copy.jpg")
    run(shards, store)
    assert invoke("report", "--store", store, "--top", "3", "--no-auto").returncode == 0
    page = (store / "reports" / "latest" / "report.html").read_text()
    assert "data:image/jpeg" in page
    labels = ood_audit.open_store(store).query("SELECT label FROM labels ORDER BY 1").rows
    assert labels == [("airplane",), ("sunflower",)]  # from the folders in the shards
    kept = tmp_path / "keep.txt"
    assert invoke("export", "--duplicates", "--store", store, "--output", kept).returncode == 0
    found = kept.read_text().splitlines()
    assert len(found) == 1
    assert invoke("export", "--duplicates", "--store", store, "--format", "keep-list", "--output", kept).returncode == 0
    lines = kept.read_text().splitlines()
    assert len(lines) == 6
    assert sum(".tar#" in line for line in lines) >= 5
    assert run(kept, store) == {"unchanged": 6}
    assert run(kept, tmp_path / "other") == {"added": 6}
    assert {path for path, _ in rows(tmp_path / "other")} == {
        line.removeprefix(f"{tmp_path}/").replace(".tar#", ".tar/") for line in lines
    }
    done = invoke("quarantine", tmp_path / "away", "--duplicates", "--store", store, "--format", "csv")
    assert done.returncode == 0, done.stderr
    if ".tar#" in found[0]:
        assert "a member of an archive" in done.stdout
    else:
        assert not os.path.exists(copy)
    assert len(list(shards.glob("*.tar"))) == 2
