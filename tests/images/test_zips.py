"""Zip files of images: members are rows, as those of tar files are, and nothing in one can do harm."""

import io
import os
import stat
import struct
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import ood_audit
from ood_audit.errors import UsageError
from ood_audit.images import access, archives
from ood_audit.images.decode import decode, thumbnail
from ood_audit.images.sources import ScanNotes, resolve, scan
from ood_audit.images.uri import file_uri, location
from tests.conftest import EXAMPLES
from tests.helpers.cli import invoke

PHOTOS = [sorted((EXAMPLES / "images" / name).glob("*.jpg"))[0] for name in ("airplane", "sunflower", "chair")]


@pytest.fixture(autouse=True)
def warm(encoder, monkeypatch):
    monkeypatch.setattr("ood_audit.encoders.loading.load_encoder", lambda *args, **options: encoder)
    monkeypatch.setattr("ood_audit.encoders.loading.load_same_encoder", lambda *args, **options: encoder)


def pack(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def found(path, notes=None):
    """The images of a source, as path → what `decode` makes of it."""
    images = scan(resolve(path), notes or ScanNotes())
    return {image.path: decode(image.uri, np.asarray) for image in images}


def test_a_zip_file_goes_through_the_commands(tmp_path):
    folder, store = tmp_path / "in", tmp_path / "store"
    folder.mkdir()
    path = pack(
        folder / "photos.ZIP", [(f"{p.parent.name}/{p.name}", p.read_bytes()) for p in PHOTOS] + [("a.txt", "x")]
    )
    result = ood_audit.embed(folder, store=store, device="cpu")
    assert (+result.counts, result.skipped) == ({"added": 3}, {".txt": 1})
    rows = ood_audit.open_store(store).query("SELECT uri, path, folder FROM images ORDER BY path").rows
    name = PHOTOS[0].name
    assert rows[0] == (f"file://{path}#airplane/{name}", f"photos.ZIP/airplane/{name}", "airplane")
    assert all(thumbnail(uri, 32) for uri, *_ in rows)
    listed = folder / "list.txt"
    listed.write_text(f"photos.ZIP#airplane/{name}\n{location(rows[1][0])}\n")
    assert +ood_audit.embed([path, listed], store=store, device="cpu").counts == {"unchanged": 3}
    away = invoke("quarantine", tmp_path / "away", "--kind", "ood", "--store", store)
    assert "internal error" not in away.stderr
    pack(path, [("new.jpg", PHOTOS[0].read_bytes())])
    os.utime(path, ns=(path.stat().st_mtime_ns + 10**9,) * 2)
    assert +ood_audit.embed(folder, store=store, device="cpu").counts == {"moved": 1, "removed": 2}


@pytest.mark.parametrize(
    "method",
    [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA],
    ids=["0", "8", "12", "14"],
)
def test_members_are_read_at_random_and_in_threads(tmp_path, method):
    path = pack(tmp_path / "x.zip", [(f"{i}-{p.name}", p.read_bytes()) for i in range(3) for p in PHOTOS], method)
    images = list(scan(str(path), ScanNotes())) * 10
    assert len(images) == 90
    with ThreadPoolExecutor(8) as pool:
        for image, content in zip(images, pool.map(lambda image: access.read(image.uri), images), strict=True):
            original = next(p for p in PHOTOS if image.path.endswith(p.name) and p.stat().st_size == image.size_bytes)
            assert content.data == original.read_bytes()


def test_odd_members(tmp_path):
    photo = PHOTOS[0].read_bytes()
    names = ["./a.jpg", "../../b.jpg", "/c.jpg", "new\nline.jpg", "日本.jpg", "a%20b#?.jpg", "x.zip#y.jpg"]
    members = [*((name, photo) for name in names), (".hidden.jpg", photo), ("__MACOSX/._a.jpg", b"x"), ("folder/", b"")]
    link = zipfile.ZipInfo("link.jpg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    notes = ScanNotes()
    path = pack(tmp_path / "odd.zip", [*members, (link, "/etc/passwd")])
    assert [result.error for result in found(path, notes).values()] == [None] * len(names)
    assert notes.skipped == {".jpg": 2, "not a regular file": 1}


def test_what_can_not_be_read_is_a_row(tmp_path):
    photo = PHOTOS[0].read_bytes()
    path = pack(
        tmp_path / "x.zip", [("good.jpg", photo), ("inner.zip", b"PK"), ("inner.tar", b"x"), ("text.jpg", b"x")]
    )
    assert {name.partition("/")[2]: result.error for name, result in found(path).items()} == {
        "good.jpg": None,
        "inner.zip": (nested := "an archive within an archive; unpack it, and name it as a source of its own"),
        "inner.tar": nested,
        "text.jpg": "not an image: its bytes are of no known format",
    }


def test_damage_encryption_and_unknown_methods(tmp_path):
    photo = PHOTOS[0].read_bytes()
    path = pack(tmp_path / "x.zip", [("a.jpg", photo)], zipfile.ZIP_STORED)
    whole = path.read_bytes()
    central = whole.index(b"PK\x01\x02")
    flipped, locked, unknown = bytearray(whole), bytearray(whole), bytearray(whole)
    flipped[1000] ^= 1
    locked[6] |= 1
    locked[central + 8] |= 1
    unknown[8:10] = unknown[central + 10 : central + 12] = struct.pack("<H", 9)  # Deflate64
    overlong = bytearray(whole)
    overlong[central + 24 : central + 28] = struct.pack("<I", len(photo) + 5)
    for content, words in (
        (flipped, "damaged in the zip file: bad crc-32"),
        (locked, "encrypted in the zip file; unpack it with the password"),
        (unknown, "packed by a method that cannot be unpacked here"),
        (overlong, "damaged in the zip file"),
        (whole[: len(whole) // 2], "damaged zip file: file is not a zip file"),
        (b"", "damaged zip file: empty file"),
        (photo, "not a zip file but a jpeg: name it .jpg"),
    ):
        path.write_bytes(content)
        (result,) = found(path).values()
        assert result.error is not None and words in result.error, result.error


def test_bombs_are_not_unpacked(tmp_path):
    huge = io.BytesIO()
    with zipfile.ZipFile(huge, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("bomb.png", bytes(1 << 20))
    content = bytearray(huge.getvalue())
    central = content.index(b"PK\x01\x02")
    content[central + 24 : central + 28] = struct.pack("<I", 3 << 30)
    (tmp_path / "big.zip").write_bytes(content)
    (result,) = found(tmp_path / "big.zip").values()
    assert result.error is not None and result.error.startswith("decompression bomb: ")
    content[central + 24 : central + 28] = struct.pack("<I", 1000)  # it lies: no more than that is unpacked
    (tmp_path / "liar.zip").write_bytes(content)
    (result,) = found(tmp_path / "liar.zip").values()
    assert result.error is not None and "damaged in the zip file" in result.error


def test_mutated_zip_files_are_rows_with_an_error(tmp_path):
    whole = pack(tmp_path / "x.zip", [(f"{i}.png", bytes(200)) for i in range(5)]).read_bytes()
    rng = np.random.default_rng(0)
    for turn in range(300):
        content = bytearray(whole)
        for at in rng.integers(len(content), size=3):
            content[at] = int(rng.integers(256))
        path = tmp_path / f"{turn}.zip"
        path.write_bytes(content)
        assert all(result.error for result in found(path).values())
        path.unlink()


def test_archives_over_http_are_refused():
    with pytest.raises(UsageError, match="members of an archive can't be read over HTTP"):
        resolve("https://example.org/photos.zip")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.tar", b"PK\x03\x04", "not a tar file but a zip file: name it .zip"),
        ("a.zip", bytes(257) + b"ustar\x0000", "not a zip file but a tar file: name it .tar"),
        ("a.zip", b"\xff\xd8\xff\xe0", "not a zip file but a JPEG: name it .jpg"),
        ("a.tar", b"\x1f\x8b\x08\0", "not a tar file but a gzip file: unpack it first"),
        ("a.parquet", b"PK\x03\x04", "not a Parquet file but a zip file: name it .zip"),
        ("a.zip", b"version https://git-lfs.github.com/spec/v1\n", "run `git lfs pull`"),
        ("a.zip", b"<!DOCTYPE html><html>", "not a zip file but a web page: download it again"),
        ("a.zip", b"", "damaged zip file: empty file"),
    ],
)
def test_what_has_the_name_of_an_archive_and_is_none_is_named(tmp_path, name, content, words):
    path = tmp_path / "in" / name
    path.parent.mkdir()
    path.write_bytes(content.ljust(600, b"\0") if content else b"")
    with path.open("rb") as file:
        assert words in str(archives.index(file_uri(str(path)), file, path.stat().st_size, 0).damage)


def test_folders_of_zip_files_from_windows(tmp_path):
    """Some of its programs put backslashes into the names, against the standard."""
    picture = next((EXAMPLES / "images" / "cup").iterdir()).read_bytes()
    for name, other in (("win.zip", "dog\\b.jpg"), ("unix.zip", "dog/b.jpg")):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("cat\\a.jpg", picture)
            archive.writestr(other, picture)
    found = {name: list(scan(str(tmp_path / name), ScanNotes())) for name in ("win.zip", "unix.zip")}
    assert [image.path for image in found["win.zip"]] == ["win.zip/cat/a.jpg", "win.zip/dog/b.jpg"]
    assert [image.path for image in found["unix.zip"]] == ["unix.zip/cat\\a.jpg", "unix.zip/dog/b.jpg"]
    for images in found.values():
        assert all(decode(image.uri, np.asarray).error is None for image in images)
