"""Annotations and truth: one reader, which image a row means, and what can't be meant."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ood_audit.classes import annotations
from ood_audit.classes.annotations import Truth
from ood_audit.classes.vocabulary import Vocabulary
from ood_audit.encoders.identity import EncoderIdentity
from ood_audit.errors import UsageError
from ood_audit.images.decode import Decoded
from ood_audit.images.sources import ImageRef, file_uri
from ood_audit.store import create_store
from ood_audit.store.parts import PartWriter
from ood_audit.text import storable

CLASSES = Vocabulary((("cat", "kitty"), ("air plane",), ("dog",)))


def make(root: Path, *sources_and_paths: tuple[str, str], uris: tuple[str, ...] = ()):
    """A store of images SOURCE/PATH, and of some other URIs."""
    store = create_store(root, EncoderIdentity("made-up", None, "none", "0" * 64, {}, "gelu", "fp32", 4))
    images = [ImageRef(file_uri(f"{s}/{p}"), s, storable(p), 1, 1) for s, p in sources_and_paths]
    images += [ImageRef(uri, uri.partition("#")[0], uri.rpartition("/")[2], 1, 1) for uri in uris]
    with PartWriter(store, "run") as writer:
        for image in images:
            decoded = Decoded(8, 8, "PNG", 1, 1, image.image_id)
            writer.add(image, decoded, np.full(4, 0.5, np.float32), supersedes=False)
    return store, [image.image_id for image in images]


@pytest.fixture
def one(tmp_path):
    """A store of cat/1.jpg and dog/2.jpg in /made/in, and their ids."""
    return make(tmp_path / "store", ("/made/in", "cat/1.jpg"), ("/made/in", "dog/2.jpg"))


@pytest.fixture
def two(tmp_path):
    """Two sources with the same name inside."""
    return make(tmp_path / "store", ("/made/a", "cat/1.jpg"), ("/made/b", "cat/1.jpg"))


def write(folder: Path, content: str | bytes, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


ROWS = [{"path": "cat/1.jpg", "label": "cat"}, {"path": "dog/2.jpg", "label": "Dog "}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "path,label\ncat/1.jpg,cat\ndog/2.jpg,Dog \n"),
        ("t.csv", b"\xef\xbb\xbf Path ,LABEL\r\ncat/1.jpg,cat\r\n\r\ndog/2.jpg ,Dog\r\n"),
        ("t.csv", "path;label\ncat/1.jpg;cat\ndog/2.jpg;dog\n"),
        ("t.csv", "path,label\ncat/1.jpg,cat\ndog/2.jpg,dog\n".encode("utf-16")),
        ("t.tsv", "label\tpath\nkitty\t./cat/1.jpg\ndog\tdog//2.jpg\n"),
        ("t.txt", "path\tlabel\ncat/1.jpg\tcat\ndog/2.jpg\tdog\n"),
        ("t.csv", "path|label\ncat/1.jpg|cat\ndog/2.jpg|dog\n"),
        ("t.csv", "sep=;\r\npath;label\r\ncat/1.jpg;cat\r\ndog/2.jpg;dog\r\n"),
        ("t.csv", "# made by hand, in a hurry\npath,label\ncat/1.jpg,cat\ndog/2.jpg,dog\n"),
        ("t.csv", 'path,label,"a|b|c|d",x;y;z;w\ncat/1.jpg,cat,1,2\ndog/2.jpg,dog,3,4\n'),
        ("t.csv", "#,path,label\n1,cat/1.jpg,cat\n2,dog/2.jpg,dog\n"),
        ("t.csv", "path,label\rcat/1.jpg,cat\rdog/2.jpg,dog\r"),
        ("t.csv", "PATH,Label\nFILE:///made/in/cat/1.jpg,cat\nfile:/made/in/d%6fg/2.jpg,dog\n"),
        ("t.json", json.dumps(ROWS)),
        ("t.json", '{"cat/1.jpg": "cat", "dog/2.jpg": "dog"}'),
        ("t.jsonl", "\n".join(map(json.dumps, ROWS)) + "\n"),
    ],
)
def test_every_format_is_read(one, tmp_path, name, content):
    store, (cat, dog) = one
    assert annotations.labels(store, CLASSES, write(tmp_path, content, name)) == {cat: "cat", dog: "dog"}


def test_parquet_is_read(one, tmp_path):
    store, (cat, dog) = one
    pq.write_table(pa.table({"path": ["cat/1.jpg", "dog/2.jpg"], "is_ood": [True, False]}), tmp_path / "t.parquet")
    known, _, missing = annotations.truth(store, tmp_path / "t.parquet")
    assert known == {cat: Truth(True, None), dog: Truth(False, None)}
    assert not missing


def test_an_image_may_be_named_in_every_form_that_is_written(tmp_path):
    inside = tmp_path / "real" / "in"
    (inside / "cat").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    name = "cat/a b\udcff é.jpg"
    member = f"{file_uri('/made/shard.tar')}#cat/1%20x.jpg"
    store, (own, tar, remote) = make(tmp_path / "store", (str(inside), name), uris=(member, "s3://bucket/cat/9.jpg"))
    absolute = os.path.join(inside, name)
    forms = {
        own: [
            own,
            file_uri(absolute),
            file_uri(absolute).replace("file://", "file:"),
            absolute,
            storable(absolute),  # as `export --format csv` writes it
            str(tmp_path / "link" / "in" / name),
            str(inside / ".." / "in" / name),
            f"./{name}",
            name,
            storable(name),
            f"in/{name}",
            f"real/in/{name}",  # from the folder of the file
            f"{name} ",
            name.replace("/", "\\"),
            storable(name).replace("é", "e\u0301"),
        ],
        tar: [member, "/made/shard.tar#cat/1 x.jpg"],
        remote: ["s3://bucket/cat/9.jpg"],
    }
    for image_id, names in forms.items():
        found = annotations.images(store, names, tmp_path / "t.csv")
        assert {written: list(meant) for written, meant in found.items()} == {written: [image_id] for written in names}


@pytest.mark.parametrize("name", ["file:x.jpg", "FILE:x.jpg", "#x.jpg"])
def test_a_name_may_look_like_a_uri(tmp_path, name):
    store, (image_id,) = make(tmp_path / "store", (str(tmp_path), name))
    assert list(annotations.images(store, [name], tmp_path / "t.csv")[name]) == [image_id]


def test_columns_of_ids_and_uris_come_before_paths(two, tmp_path):
    store, (a, b) = two
    rows = f"path,image_id,is_ood\ncat/1.jpg,{a},0\ncat/1.jpg,{b},1\n"
    assert annotations.truth(store, write(tmp_path, rows))[0] == {a: Truth(False, None), b: Truth(True, None)}
    rows = "path,uri,is_ood\ncat/1.jpg,file:///made/a/cat/1.jpg,0\nb/cat/1.jpg,,1\n"
    assert annotations.truth(store, write(tmp_path, rows))[0] == {a: Truth(False, None), b: Truth(True, None)}


@pytest.mark.parametrize("read", ["truth", "labels"])
def test_a_name_of_two_images_is_refused_with_the_remedy(two, tmp_path, read):
    store, _ = two
    path = write(tmp_path, "path,is_ood,label\n/made/a/cat/1.jpg,0,cat\ncat/1.jpg,0,cat\n")
    with pytest.raises(UsageError, match=r"line 3: cat/1\.jpg is 2 images .*/made/a/cat/1\.jpg and /made/b.*; write"):
        _read(read, store, path)


def _read(what, store, path):
    return annotations.truth(store, path) if what == "truth" else annotations.labels(store, CLASSES, path)


@pytest.mark.parametrize(
    ("read", "rows", "complaint"),
    [
        ("truth", "path,is_ood\ncat/1.jpg,0\ndog/2.jpg,0\ncat/1.jpg,1\n", "is ID in line 2 and OOD in line 4; remove"),
        ("truth", "path,is_ood\n./cat/1.jpg,1\n/made/in/cat/1.jpg,0\n", "is OOD in line 2 and ID in line 3"),
        ("truth", "path,is_ood\ngone.jpg,1\n./gone.jpg,0\n", "is OOD in line 2 and ID in line 3"),
        ("truth", "path,is_ood,label\ncat/1.jpg,0,cat\ncat/1.jpg,0,dog\n", r"ID \(cat\) in line 2 and ID \(dog\)"),
        (
            "labels",
            "path,label\ncat/1.jpg,cat\n\ncat/1.jpg,dog\n",
            "is 'cat' in line 2 and 'dog' in line 4; remove one",
        ),
        (
            "labels",
            'path,label\n"cat/1.jpg","a\nb"\ncat/1.jpg,zzz\n',
            r"'a\\nb' \(line 2\), 'zzz' \(line 4\) are not in",
        ),
        ("labels", "path,label\ncat/1.jpg,airplanes\n", r"'airplanes' \(line 2, close to 'air plane'\) is not in"),
        ("labels", "path,label\ncat/1.jpg, \n", "line 2: no label; write one"),
        ("labels", "path,label\n ,cat\n", "line 2: no path; write one"),
        (
            "labels",
            "path,label\ngone.jpg,cat\naway.jpg,cat\n",
            r"2 images that the store has no .*\(gone\.jpg in line 2",
        ),
        ("labels", "path,class\ncat/1.jpg,cat\n", r"columns path and label \(missing: label; found: path, class\)"),
        ("labels", "path,label,Label\ncat/1.jpg,cat,dog\n", "two columns 'Label'"),
        (
            "labels",
            "path,label\ncat/1,5.jpg,cat\n",
            "^the annotations .*t.csv, line 2: 3 values in 2 columns; put a path with a comma in quotes",
        ),
        ("labels", b"path,label\ncat/1.jpg,caf\xe9\n", "line 2: label is not UTF-8"),
        ("labels", b"path,label\ncat/1.jpg,c\0t\n", "line 2 has a null byte"),
        ("truth", b"\x89PNG\r\n\x1a\n\0\0\0", "cannot read the truth .* null byte"),
        ("truth", "path,is_ood\n" + "x" * 10_000_000 + ",0\n", "cannot read the truth .*field larger than field limit"),
        ("truth", "", r"missing: is_ood, path; found: none"),
        ("truth", "cat/1.jpg,0\n", r"found: cat/1\.jpg, 0"),
        ("truth", "path,is_ood\ncat/1.jpg,perhaps\n", "line 2: is_ood is 'perhaps'; write 0 or 1"),
    ],
)
def test_what_can_not_be_meant_is_refused_with_the_line(one, tmp_path, read, rows, complaint):
    with pytest.raises(UsageError, match=complaint) as error:
        _read(read, one[0], write(tmp_path, rows))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("t.json", "[{]", "cannot read the annotations"),
        ("t.json", "[" * 100_000, "cannot read the annotations"),
        ("t.json", '{"cat/1.jpg": "cat", "cat/1.jpg": "dog"}', "'cat/1.jpg' has two values"),
        ("t.json", "[1]", "entry 1: no object with path and label"),
        ("t.jsonl", '{"path": "cat/1.jpg"}\n', "missing: label; found: path"),
        ("t.parquet", "no parquet", "cannot read the annotations"),
        ("t.parquet", "", "cannot read the annotations"),
    ],
)
def test_other_formats_that_are_broken(one, tmp_path, name, content, complaint):
    with pytest.raises(UsageError, match=complaint) as error:
        annotations.labels(one[0], CLASSES, write(tmp_path, content, name))
    assert "\n" not in str(error.value)


def test_rows_that_say_the_same_twice_are_fine(one, tmp_path):
    store, (cat, _) = one
    path = write(tmp_path, "path,is_ood,label\ncat/1.jpg,0,cat\n./cat/1.jpg ,no,CAT\ngone.jpg,1,\ngone.jpg,1,\n")
    known, said, missing = annotations.truth(store, path)
    assert known == {cat: Truth(False, "CAT")}
    assert said == [("cat", "line 2"), ("CAT", "line 3")]
    assert missing == ["gone.jpg"]


def test_labels_are_compared_as_names_are(one, tmp_path):
    store, (cat, dog) = one
    assert annotations.labels(store, CLASSES, write(tmp_path, "path,label\ncat/1.jpg,Air_Plane\n")) == {
        cat: "air plane"
    }
    assert annotations.labels(store, CLASSES, write(tmp_path, "path,label\ndog/2.jpg,n02084071\n")) == {dog: "dog"}
