"""What differs between systems, played on this one: the paths of Windows, its files, and other encodings of text."""

import ast
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import Any, cast

import pytest

import ood_audit
from ood_audit.actions import moving
from ood_audit.classes import annotations
from ood_audit.images.sources import ScanNotes, resolve, scan
from ood_audit.images.uri import file_uri, is_file, is_remote, local_path
from ood_audit.store import files
from tests.conftest import EXAMPLES

PACKAGE = Path(ood_audit.__file__).parent


@pytest.fixture
def windows_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ood_audit.images.uri._WINDOWS", True)


@pytest.fixture
def windows_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files as Windows has them: no handles of folders, no fsync of what is only read, no owners, no names twice."""
    flags: dict[int, int] = {}
    opened, renamed, unlinked = os.open, os.rename, os.unlink

    def open_file(path: str, mode: int, *args: int, **kwargs: int) -> int:
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        flags[handle := opened(path, mode, *args, **kwargs)] = mode
        return handle

    def fsync(handle: int) -> None:
        if flags.get(handle) == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")

    def rename(source: str, target: str) -> None:
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "File exists", target)
        renamed(source, target)

    def unlink(path: str, *, dir_fd: int | None = None) -> None:
        if not os.stat(path, dir_fd=dir_fd).st_mode & stat.S_IWRITE:
            raise PermissionError(errno.EACCES, "Access is denied", path)
        unlinked(path, dir_fd=dir_fd)

    for module in (files, moving):
        monkeypatch.setattr(module, "_WINDOWS", True)
    monkeypatch.setattr(shutil, "_use_fd_functions", False)  # `rmtree` goes by names there
    monkeypatch.setattr(os, "open", open_file)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(os, "unlink", unlink)
    monkeypatch.delattr(os, "fchown")
    monkeypatch.delattr(os, "link")


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        (r"C:\images\a b.jpg", "file:///C:/images/a%20b.jpg"),
        (r"c:\images/a b.jpg", "file:///C:/images/a%20b.jpg"),
        (r"\\?\C:\images\a b.jpg", "file:///C:/images/a%20b.jpg"),
        ("C:\\", "file:///C:/"),
        (r"C:\été\100%#1.jpg", "file:///C:/%C3%A9t%C3%A9/100%25%231.jpg"),
        (r"\\server\share\a.jpg", "file://server/share/a.jpg"),
        (r"//SERVER/share\a.jpg", "file://server/share/a.jpg"),
        (r"\\?\UNC\server\share\a.jpg", "file://server/share/a.jpg"),
    ],
)
def test_a_windows_path_has_one_uri(path: str, uri: str, windows_paths: None) -> None:
    assert file_uri(path) == uri
    assert is_file(uri)
    assert not is_remote(uri)
    assert PureWindowsPath(local_path(uri)) == PureWindowsPath(path.replace("\\\\?\\UNC", "\\").replace("\\\\?\\", ""))
    assert file_uri(local_path(uri)) == uri
    assert uri == PureWindowsPath(local_path(uri)).as_uri()


def test_a_windows_folder_is_a_prefix_of_what_lies_in_it(windows_paths: None) -> None:
    for folder in ("C:\\", r"C:\images", r"\\server\share", r"\\server\share\images"):
        prefix = file_uri(folder).rstrip("/") + "/"
        for inside in ("a.jpg", r"sub\a.jpg"):
            # By a walk of the folder, which puts URIs together; and by a list, which names the whole path.
            walked = prefix + inside.replace("\\", "/")
            assert file_uri(folder.rstrip("\\") + "\\" + inside) == walked
            assert walked.startswith(prefix)
    assert not file_uri(r"C:\images2\a.jpg").startswith(file_uri(r"C:\images") + "/")


def test_a_drive_is_no_scheme() -> None:
    assert not is_remote("C://images")
    assert is_remote("s3://bucket")


def test_posix_paths_keep_their_uris() -> None:
    assert file_uri("/a b/\udcff\\c.jpg") == "file:///a%20b/%FF%5Cc.jpg"
    assert local_path("file:///a%20b/%FF%5Cc.jpg") == "/a b/\udcff\\c.jpg"


def test_windows_can_write_durably(tmp_path: Path, windows_files: None) -> None:
    files.write_json(tmp_path / "a.json", {"name": "é"})
    assert files.read_json(tmp_path / "a.json") == {"name": "é"}
    for text in ("old", "new"):
        with files.replacing(tmp_path / "report") as folder:
            folder.mkdir()
            (folder / "a.txt").write_text(text, encoding="utf-8")
        assert (tmp_path / "report" / "a.txt").read_text(encoding="utf-8") == text
    assert sorted(os.listdir(tmp_path)) == ["a.json", "report"]


def test_a_file_that_is_just_being_read_is_replaced_a_moment_later(
    tmp_path: Path, windows_files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = [PermissionError(errno.EACCES, "Access is denied")] * 2
    replace = Path.replace

    def refuse(path: Path, target: Path) -> Path:
        if refusals:
            raise refusals.pop()
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", refuse)
    files.write_json(tmp_path / "a.json", {"a": 1})
    assert files.read_json(tmp_path / "a.json") == {"a": 1}
    assert not refusals


def test_windows_moves_files_that_are_read_only(tmp_path: Path, windows_files: None) -> None:
    source, target = tmp_path / "a.jpg", tmp_path / "aside" / "a.jpg"
    source.write_bytes(b"a")
    source.chmod(0o444)
    moving.move(str(source), str(target), f"{target}.tmp")
    assert (target.read_bytes(), source.exists()) == (b"a", False)
    source.write_bytes(b"other")
    with pytest.raises(FileExistsError):
        moving.move(str(source), str(target), f"{target}.tmp")
    assert (target.read_bytes(), source.read_bytes()) == (b"a", b"other")


def test_windows_moves_files_to_another_drive(
    tmp_path: Path, windows_files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "a.jpg", tmp_path / "aside" / "a.jpg"
    source.write_bytes(b"a")
    source.chmod(0o444)
    rename = os.rename

    def between_drives(old: str, new: str) -> None:
        if Path(old).parent != Path(new).parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(old, new)

    monkeypatch.setattr(os, "rename", between_drives)
    moving.move(str(source), str(target), f"{target}.tmp")
    assert (target.read_bytes(), source.exists()) == (b"a", False)
    assert os.listdir(target.parent) == ["a.jpg"]


def test_a_missing_drive_is_an_error_and_no_endless_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "isdir", lambda path: False)
    monkeypatch.setattr(os, "mkdir", lambda path: (_ for _ in ()).throw(FileNotFoundError(errno.ENOENT, "gone", path)))
    with pytest.raises(FileNotFoundError):
        moving.move(str(tmp_path / "a.jpg"), str(tmp_path / "aside" / "a.jpg"), "unused")


def _calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def test_every_text_file_is_read_and_written_as_utf8() -> None:
    """Without `encoding`, Python before 3.15 takes the one of the system, which on Windows is not UTF-8."""
    unnamed = []
    for path in PACKAGE.rglob("*.py"):
        for call in _calls(ast.parse(path.read_text(encoding="utf-8"))):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            owner = (
                call.func.value.id
                if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name)
                else ""
            )
            if owner in ("os", "Image", "tarfile", "archive", "opened") or name not in (
                "open",
                "read_text",
                "write_text",
                "TextIOWrapper",
                "fdopen",
            ):
                continue
            texts = [a.value for a in (*call.args, *(k.value for k in call.keywords)) if isinstance(a, ast.Constant)]
            binary = any(isinstance(text, str) and "b" in text and len(text) <= 3 for text in texts)
            if not binary and "encoding" not in {keyword.arg for keyword in call.keywords}:
                unnamed.append(f"{path.relative_to(PACKAGE)}:{call.lineno}")
    assert not unnamed


@pytest.fixture
def case_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the test's folder, files are found by their names in either case, as on Windows and macOS."""

    def played(look: Any) -> Any:
        def find(path: Any, **options: Any) -> os.stat_result:
            found = path
            if isinstance(path, str | Path) and Path(path).is_relative_to(tmp_path):
                found = tmp_path
                for name in Path(path).relative_to(tmp_path).parts:
                    listed = os.listdir(found) if os.path.isdir(found) else []
                    found = found / next((entry for entry in listed if entry.lower() == name.lower()), name)
            return cast(os.stat_result, look(found, **options))

        return find

    stat_, isdir = os.stat, os.path.isdir
    monkeypatch.setattr(os.path, "isdir", lambda path: stat.S_ISDIR(stat_(path).st_mode) if isdir(path) else False)
    for name in ("stat", "lstat"):
        monkeypatch.setattr(os, name, played(getattr(os, name)))


@pytest.fixture
def cats(tmp_path: Path) -> Path:
    for name in ("1.jpg", "Two.JPG"):
        (tmp_path / "Cats" / name).parent.mkdir(exist_ok=True)
        shutil.copy(EXAMPLES / "images" / "cup" / "img_0001.jpg", tmp_path / "Cats" / name)
    return tmp_path / "Cats"


def uris(source: Path | str) -> list[str]:
    return sorted(image.uri for image in scan(resolve(source), ScanNotes()))


def test_one_file_has_one_uri_where_case_is_ignored(tmp_path: Path, cats: Path, case_is_ignored: None) -> None:
    walked = uris(cats)
    assert walked == [file_uri(str(cats / "1.jpg")), file_uri(str(cats / "Two.JPG"))]
    assert resolve(tmp_path / "cATS") == resolve(cats) == str(cats)
    assert uris(tmp_path / "CATS") == walked
    assert uris(tmp_path / "cats" / "TWO.jpg") == walked[1:]
    (tmp_path / "list.txt").write_text(f"cats/1.JPG\nCATS/two.jpg\n{tmp_path}/cAtS/TWO.JPG\nCats/gone.jpg\n", "utf-8")
    assert uris(tmp_path / "LIST.txt") == sorted([*walked, walked[1], file_uri(str(cats / "gone.jpg"))])
    (cats / "1.jpg").rename(cats / "x.jpg")
    (cats / "x.jpg").rename(cats / "1.JPG")
    os.utime(cats, ns=(1, 1))
    assert file_uri(str(cats / "1.JPG")) in uris(tmp_path / "list.txt")


def test_sources_and_annotations_that_differ_in_case_alone_are_the_same(
    tmp_path: Path, cats: Path, case_is_ignored: None, encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ood_audit.encoders.loading.load_encoder", lambda *args, **options: encoder)
    monkeypatch.setattr("ood_audit.encoders.loading.load_same_encoder", lambda *args, **options: encoder)
    done = ood_audit.embed([cats, tmp_path / "CATS"], store=tmp_path / "store", device="cpu")
    assert done.counts["added"] == 2
    done = ood_audit.embed(tmp_path / "cats", store=tmp_path / "store", device="cpu")
    assert (done.counts["unchanged"], done.counts["added"], done.counts["removed"]) == (2, 0, 0)
    assert [source.source for source in ood_audit.sources(tmp_path / "store")] == [str(cats)]
    truth = tmp_path / "truth.csv"
    truth.write_text(f"path,is_ood\n{tmp_path}/CATS/TWO.jpg,1\n", "utf-8")
    known, _, missing = annotations.truth(done.store, truth)
    assert (len(known), missing) == (1, [])
    assert ood_audit.forget(tmp_path / "caTS", store=tmp_path / "store")[0].images == 2


def test_files_that_differ_in_case_alone_stay_two_where_case_counts(tmp_path: Path, cats: Path) -> None:
    if (cats / "ONE.jpg").exists() or (cats / "1.JPG").exists():
        pytest.skip("this file system ignores case")
    os.link(cats / "1.jpg", cats / "1.JPG")
    (tmp_path / "list.txt").write_text("Cats/1.jpg\nCats/1.JPG\ncats/1.jpg\n", "utf-8")
    names = [cats / "1.JPG", cats / "1.jpg", tmp_path / "cats" / "1.jpg"]
    assert uris(tmp_path / "list.txt") == [file_uri(str(name)) for name in names]
