import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ood_audit.errors import UsageError
from ood_audit.images.sources import ScanNotes, file_uri, local_path, resolve, scan
from tests.conftest import EXAMPLES

PICTURE = EXAMPLES / "images" / "airplane" / "img_0001.jpg"


def paths(source, notes=None, **options):
    return sorted(image.path for image in scan(resolve(source), notes or ScanNotes(), **options))


def test_folders_are_searched_and_other_files_counted(tmp_path):
    for name in ("a.jpg", "sub/deep/er/b.PNG", ".hidden.jpg", ".git/c.jpg", "notes.txt", "sub/.DS_Store", "no_suffix"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PICTURE, tmp_path / name)
    (tmp_path / "Makefile").write_text("all:\n")
    notes = ScanNotes()
    assert paths(tmp_path, notes) == ["a.jpg", "no_suffix", "sub/deep/er/b.PNG"]
    assert dict(notes.skipped) == {".jpg": 1, ".txt": 1, ".DS_Store": 1, "no extension": 1}


def test_link_loops_and_dangling_links(tmp_path):
    (tmp_path / "a").mkdir()
    shutil.copy(PICTURE, tmp_path / "a" / "1.jpg")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "self.jpg").symlink_to(tmp_path / "self.jpg")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    found = paths(tmp_path)
    assert len([path for path in found if path.endswith("1.jpg")]) == 1
    assert {"gone.jpg", "self.jpg"} < set(found)  # they become rows with their error


def test_pipes_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    notes = ScanNotes()
    assert paths(tmp_path, notes) == []
    assert notes.skipped == {"not a regular file": 1}


def test_the_store_is_not_searched(tmp_path):
    (tmp_path / "store").mkdir()
    shutil.copy(PICTURE, tmp_path / "store" / "1.jpg")
    shutil.copy(PICTURE, tmp_path / "2.jpg")
    assert paths(tmp_path, exclude=os.path.realpath(tmp_path / "store")) == ["2.jpg"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every folder")
def test_unreadable_folders_are_told(tmp_path):
    (tmp_path / "secret").mkdir(mode=0)
    notes = ScanNotes()
    assert paths(tmp_path, notes) == []
    assert list(notes.unreadable) == [str(tmp_path / "secret")]


@pytest.mark.parametrize("name", [b"caf\xe9.jpg", "日本 ü.jpg".encode(), b"new\nline.jpg", b"a%20b#?.jpg"])
def test_uris_keep_every_name_exactly(tmp_path, name):
    path = os.path.join(os.fsencode(tmp_path), name)
    shutil.copy(os.fsencode(PICTURE), path)
    (image,) = scan(str(tmp_path), ScanNotes())
    assert os.fsencode(local_path(image.uri)) == path
    image.path.encode()  # valid UTF-8
    image.uri.encode("ascii")


def test_same_file_same_id_whichever_source(tmp_path):
    (tmp_path / "sub").mkdir()
    shutil.copy(PICTURE, tmp_path / "sub" / "1.jpg")
    (whole,) = scan(str(tmp_path), ScanNotes())
    (part,) = scan(str(tmp_path / "sub"), ScanNotes())
    (single,) = scan(str(tmp_path / "sub" / "1.jpg"), ScanNotes())
    assert whole.image_id == part.image_id == single.image_id
    assert (whole.path, part.path, single.path) == ("sub/1.jpg", "1.jpg", "1.jpg")
    assert (whole.folder, part.folder) == ("sub", "")


def write_list(folder: Path, kind: str, entries: list[str]) -> Path:
    path = folder / f"list.{kind}"
    if kind == "txt":
        path.write_text("\n".join(entries) + "\n")
    elif kind == "csv":
        path.write_text("id,path\n" + "".join(f'{i},"{entry}"\n' for i, entry in enumerate(entries)))
    else:
        pq.write_table(pa.table({"path": entries}), path)
    return path


@pytest.mark.parametrize("kind", ["txt", "csv", "parquet"])
def test_lists(tmp_path, kind):
    (tmp_path / "in").mkdir()
    shutil.copy(PICTURE, tmp_path / "in" / "1.jpg")
    path = write_list(tmp_path, kind, ["in/1.jpg", str(PICTURE), "missing.jpg", "./in/../in/1.jpg"])
    found = list(scan(resolve(path), ScanNotes()))
    assert [image.path for image in found] == ["in/1.jpg", str(PICTURE), "missing.jpg", "in/1.jpg"]
    assert found[0].image_id == found[3].image_id
    assert found[1].uri == file_uri(str(PICTURE))


@pytest.mark.parametrize(
    "content",
    [
        "\ufeff ID;Path \r\n1;in/a b.jpg\r\n",
        "label\tPATH\nx\tin/a b.jpg\n",
        'path,label,"a;b;c;d"\nin/a b.jpg,x,1\n',
        'path,label\n"in/a b.jpg","two\nlines"\n',
        "path\nFILE:{folder}/in/%61%20b.jpg\n",
        "path\nfile://localhost{folder}/in/../in/a%20b.jpg\n",
        "path,uri\nother,file://{folder}/in/%61%20b.jpg\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_lists_as_other_programs_write_them(tmp_path, content, encoding):
    """Each names the one file, by its one URI."""
    (tmp_path / "in").mkdir()
    shutil.copy(PICTURE, tmp_path / "in" / "a b.jpg")
    path = tmp_path / "list.csv"
    path.write_bytes(
        content.replace("{folder}", str(tmp_path)).lstrip("\ufeff" if encoding == "utf-16" else "").encode(encoding)
    )
    (image,) = scan(resolve(path), ScanNotes())
    assert (image.uri, image.path, image.size_bytes > 0) == (file_uri(f"{tmp_path}/in/a b.jpg"), "in/a b.jpg", True)


@pytest.mark.parametrize("name", ["file:x.jpg", "FILE:x.jpg", "#x.jpg", "a;b,c\td.jpg", "sep=;.jpg"])
@pytest.mark.parametrize("kind", ["txt", "parquet"])
def test_lists_take_names_as_they_are(tmp_path, name, kind):
    """However much one looks like something else."""
    shutil.copy(PICTURE, tmp_path / name)
    (image,) = scan(resolve(write_list(tmp_path, kind, [name])), ScanNotes())
    assert (image.uri, image.path, image.size_bytes > 0) == (file_uri(str(tmp_path / name)), name, True)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_lists_need_a_path_column(tmp_path, kind):
    path = tmp_path / f"list.{kind}"
    if kind == "csv":
        path.write_text("file\na.jpg\n")
    else:
        pq.write_table(pa.table({"file": ["a.jpg"]}), path)
    with pytest.raises(UsageError, match="needs a column named 'path'"):
        list(scan(resolve(path), ScanNotes()))


def test_missing_source_is_refused():
    with pytest.raises(UsageError, match="no such file"):
        resolve("/nowhere/at/all")
