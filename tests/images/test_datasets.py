"""Datasets with labels, splits and boxes: each format, and each kind of damage, on small pictures of Caltech-101."""

import io
import json
import os
import shutil
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import ood_audit
from ood_audit.embedding import local
from ood_audit.errors import UsageError
from ood_audit.images.decode import load
from ood_audit.images.sources import ScanNotes, listing, resolve
from tests.conftest import EXAMPLES, run_cli

AIRPLANE, CUP, SUNFLOWER = (
    sorted((EXAMPLES / "images" / name).glob("*.jpg"))[0] for name in ("airplane", "cup", "sunflower")
)


def compose(path, *placed, size=(400, 300)):
    """A picture with others in it: (file, x, y, width, height) each."""
    picture = Image.new("RGB", size, (90, 140, 90))
    for file, x, y, width, height in placed:
        with Image.open(file) as image:
            picture.paste(image.convert("RGB").resize((width, height)), (x, y))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path


def rows(source, notes=None, **options):
    """The listing of a source, by path."""
    tables = list(listing(resolve(source), notes or ScanNotes(), **options))
    found = pa.concat_tables(tables).to_pylist() if tables else []
    return {row["path"]: row for row in found}


def labels(source, notes=None, **options):
    """The label and split of each image and box."""
    return {path: (row["label"], row["split"]) for path, row in rows(source, notes, **options).items()}


def place(row):
    return tuple(row["box"][name] for name in ("x", "y", "width", "height"))


def problems(notes):
    return {kind: count for kind, (count, _) in notes.problems.items()}


@pytest.fixture
def scene(tmp_path):
    return compose(tmp_path / "images" / "one.jpg", (AIRPLANE, 10, 20, 150, 100), (CUP, 200, 50, 120, 160))


@pytest.fixture
def warm(encoder, monkeypatch):
    monkeypatch.setattr("ood_audit.encoders.loading.load_encoder", lambda *args, **options: encoder)
    monkeypatch.setattr("ood_audit.encoders.loading.load_same_encoder", lambda *args, **options: encoder)
    return encoder


def coco(folder, name="instances_val2017.json", **changes):
    values = {
        "info": {"year": 2017},
        "images": [{"id": 1, "file_name": "one.jpg", "width": 400, "height": 300}],
        "annotations": [
            {"id": 11, "image_id": 1, "category_id": 1, "bbox": [10, 20, 150, 100], "segmentation": [[1, 2, 3]]},
            {"id": 12, "image_id": 1, "category_id": 2, "bbox": [200, 50, 120, 160]},
        ],
        "categories": [{"id": 1, "name": "airplane"}, {"id": 2, "name": "cup"}],
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(json.dumps(values))
    return path


# COCO


def test_coco(tmp_path, scene):
    notes = ScanNotes()
    found = rows(coco(tmp_path / "annotations"), notes)
    picture, airplane, cup = found.values()
    assert (picture["label"], picture["split"], picture["box"]) == ("", "val", None)
    assert (airplane["label"], place(airplane)) == ("airplane", (10, 20, 150, 100))
    assert cup["uri"] == f"{picture['uri']}#box=12&xywh=200,50,120,160"
    assert picture["uri"].endswith("/images/one.jpg")
    assert (notes.format, notes.classes) == ("COCO", ["airplane", "cup"])
    assert problems(notes) == {"pictures with several classes, which have no label as a whole": 1}


def test_coco_with_images_elsewhere(tmp_path, scene):
    shutil.move(scene.parent, tmp_path / "far")
    path = coco(tmp_path / "near" / "annotations")
    assert all(row["size_bytes"] > 0 for row in rows(path, images=str(tmp_path / "far")).values())
    notes = ScanNotes()
    assert rows(path, notes)  # rows that say what is missing
    assert notes.problems["missing pictures"][0] == 1


def test_coco_damage_is_counted(tmp_path, scene):
    path = coco(
        tmp_path,
        "coco.json",
        images=[
            {"id": 1, "file_name": "images/one.jpg", "width": 400, "height": 300},
            {"id": 2, "file_name": "gone.jpg", "width": 10, "height": 10},
            {"id": 3},
        ],
        annotations=[
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [350, 250, 100, 100]},
            {"id": 2, "image_id": 1, "category_id": 1, "bbox": [500, 50, 10, 10]},
            {"id": 3, "image_id": 1, "category_id": 1, "bbox": [5, 5, 0, 10]},
            {"id": 4, "image_id": 1, "category_id": 9, "bbox": [5, 5, 40, 40]},
            {"id": 5, "image_id": 1, "category_id": 9, "bbox": [5, 5, 40, 40]},
            {"id": 6, "image_id": 1, "category_id": 1, "bbox": [5, None, 40, 40]},
            {"id": 7, "image_id": 77, "category_id": 1, "bbox": [5, 5, 40, 40]},
            {"id": 8, "category_id": 1},
            "nonsense",
        ],
    )
    notes = ScanNotes()
    found = rows(path, notes)
    assert list(found) == ["images/one.jpg", "images/one.jpg#box=1", "images/one.jpg#box=4", "gone.jpg"]
    assert place(found["images/one.jpg#box=1"]) == (350, 250, 50, 50)
    assert found["images/one.jpg#box=4"]["label"] == ""
    counted = problems(notes)
    counted.pop("pictures with several classes, which have no label as a whole")
    assert counted == {
        "images without an id or a file name, left out": 1,
        "annotations whose class has no name": 2,
        "boxes that are no four numbers, left out": 1,
        "annotations without an image, left out": 1,
        "boxes partly outside of their picture, cut off at its edge": 1,
        "boxes that are empty or outside of their picture, left out": 2,
        "boxes given twice, left out": 1,
        "missing pictures": 1,
        "pictures without annotation": 1,
        "images that are annotated and not listed": 1,
    }


def test_a_truncated_coco_file_is_read_as_far_as_it_goes(tmp_path, scene):
    path = coco(tmp_path, "coco.json")
    text = path.read_text()
    path.write_text(text[: text.index('"id": 12')])
    notes = ScanNotes()
    assert list(rows(path, notes)) == ["images/one.jpg", "images/one.jpg#box=11"]
    assert notes.problems["damaged annotation files, read as far as they go"] == (1, "coco.json")
    path.write_text('{"a": 1}')
    with pytest.raises(UsageError, match="no list `images`"):
        rows(path)


# YOLO


@pytest.mark.parametrize("layout", ["images/train", "train/images"])
def test_yolo(tmp_path, layout):
    folder = tmp_path / layout
    compose(folder / "one.jpg", (CUP, 200, 50, 100, 150))
    compose(folder / "none.jpg")
    annotations = tmp_path / layout.replace("images", "labels")
    annotations.mkdir(parents=True)
    (annotations / "one.txt").write_text(
        "1 0.625 0.416667 0.25 0.5\n0 0.1 0.1 0.2 0.1 0.2 0.3 0.1 0.3\n7 0.5 0.5 0.1 0.1\nx y\n"
    )
    shutil.copy(CUP, tmp_path / "held.jpg")
    (tmp_path / "held.txt").write_text("0 0.5 0.5 1 1\n")
    (tmp_path / "test.txt").write_text("./held.jpg\n")
    prefix = "" if layout.startswith("images") else "../"
    (tmp_path / "data.yaml").write_text(
        f"train: {prefix}{layout}\nval: missing/images\ntest: test.txt\nnames: {{0: airplane, 1: cup}}\n"
    )
    notes = ScanNotes()
    found = rows(tmp_path / "data.yaml", notes)
    own = [row for path, row in found.items() if "one.jpg#box" in path]
    assert [row["label"] for row in own] == ["cup", "airplane", ""]
    assert place(own[0]) == pytest.approx((200, 50, 100, 150), abs=0.1)
    assert place(own[1]) == pytest.approx((40, 30, 40, 60), abs=0.1)  # around the polygon
    assert {path.rpartition("/")[2]: row["split"] for path, row in found.items() if row["box"] is None} == {
        "one.jpg": "train",
        "none.jpg": "train",
        "held.jpg": "test",
    }
    assert found["held.jpg"]["label"] == "airplane"  # of all its boxes
    assert notes.classes == ["airplane", "cup"]
    assert problems(notes) == {
        "missing splits": 1,
        "pictures without annotation": 1,
        "pictures with several classes, which have no label as a whole": 1,
        "annotations whose class has no name": 1,
        "lines that are no box and no polygon, left out": 1,
    }


@pytest.mark.parametrize(("text", "said"), [("a: [", "not YAML"), ("names: [a]", "names no split"), ("- a", "no YOLO")])
def test_what_is_no_yolo_file(tmp_path, text, said):
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(UsageError, match=said):
        rows(tmp_path / "data.yaml")


# Pascal VOC

_OBJECT = (
    "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


def test_voc(tmp_path):
    root = tmp_path / "VOC2012"
    for name in ("one", "two", "bare"):
        compose(root / "JPEGImages" / f"{name}.jpg", (AIRPLANE, 10, 20, 150, 100))
    (root / "Annotations").mkdir()
    size = "<size><width>400</width><height>300</height></size>"
    whole = f"<annotation>{size}{_OBJECT.format('airplane', 11, 21, 160, 120)}</annotation>"
    (root / "Annotations" / "one.xml").write_text(whole)
    (root / "Annotations" / "two.xml").write_text(
        whole[: -len("</annotation>")] + _OBJECT.format("", 1, 2, "x", 4)[:50]
    )
    (root / "Annotations" / "lost.xml").write_text(whole)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "train.txt").write_text("one\nlost\n")
    (root / "ImageSets" / "Main" / "val.txt").write_text("two\none\n")
    notes = ScanNotes()
    found = rows(root, notes)
    assert place(found["JPEGImages/one.jpg#box=0"]) == (10, 20, 150, 100)
    assert {path: (row["label"], row["split"]) for path, row in found.items() if row["box"] is None} == {
        "JPEGImages/one.jpg": ("airplane", "train"),
        "JPEGImages/two.jpg": ("airplane", "val"),
        "JPEGImages/bare.jpg": ("", None),
        "JPEGImages/lost.jpg": ("airplane", "train"),
    }
    assert (notes.format, notes.classes) == ("Pascal VOC", ["airplane"])
    assert problems(notes) == {
        "pictures in two splits, kept in the first": 1,
        "damaged annotation files, read as far as they go": 1,
        "pictures without annotation": 1,
        "missing pictures": 1,
    }


# Parquet of the Hugging Face Hub


def shard(path, files, label_values, names=("airplane", "cup"), group=2):
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    images = [None if file is None else {"bytes": file.read_bytes(), "path": file.name} for file in files]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(images, kind), "label": pa.array(label_values, pa.int64())})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)
    return path


def test_parquet_of_the_hub(tmp_path, warm):
    data = tmp_path / "repository" / "data"
    shard(data / "train-00000-of-00002.parquet", [AIRPLANE, CUP, AIRPLANE], [0, 1, 7])
    shard(data / "train-00001-of-00002.parquet", [CUP, None], [1, -1])
    shard(data / "test-00000-of-00001.parquet", [SUNFLOWER], [0])
    notes = ScanNotes()
    found = labels(tmp_path / "repository", notes)
    assert found["data/train-00000-of-00002.parquet/00000001"] == ("cup", "train")
    assert found["data/train-00000-of-00002.parquet/00000002"] == ("7", "train")
    assert found["data/train-00001-of-00002.parquet/00000001"] == ("", "train")
    assert found["data/test-00000-of-00001.parquet/00000000"] == ("airplane", "test")
    assert (notes.format, notes.classes) == ("Hugging Face Parquet", ["airplane", "cup"])
    assert problems(notes) == {"annotations whose class has no name": 1, "pictures without annotation": 1}

    store = tmp_path / "store"
    result = ood_audit.embed(tmp_path / "repository", store=store, device="cpu")
    assert +result.counts == {"added": 5, "unreadable": 1}
    again = ood_audit.embed(tmp_path / "repository", store=store, device="cpu")
    assert +again.counts == {"unchanged": 5, "unreadable": 1}
    ((same,),) = result.store.query("SELECT count(DISTINCT content_hash) FROM images WHERE folder = 'cup'").rows
    assert same == 1  # the bytes are those of the file
    os.utime(shard(data / "test-00000-of-00001.parquet", [AIRPLANE], [0]), ns=(1, 2))
    assert +ood_audit.embed(tmp_path / "repository", store=store, device="cpu").counts == {
        "changed": 1,
        "unchanged": 4,
        "unreadable": 1,
    }
    with open(data / "test-00000-of-00001.parquet", "r+b") as file:
        file.truncate(100)
    left = ood_audit.embed(tmp_path / "repository", store=store, device="cpu")  # its image is left alone
    assert left.counts["removed"] == 0
    assert len(left.unreadable_folders) == 1


# Folders, archives and lists with labels


def test_image_folder_with_metadata(tmp_path):
    for name in ("train/a.jpg", "train/b.jpg", "test/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(CUP, tmp_path / name)
    (tmp_path / "train" / "metadata.csv").write_text("file_name,label\na.jpg,cup\ngone.jpg,cup\n,cup\n")
    box = {"bbox": [[1, 2, 30, 40], ["x"]], "categories": ["cup", "cup"]}
    lines = [json.dumps({"file_name": "c.jpg", "objects": box}), "{", "3"]
    (tmp_path / "test" / "metadata.jsonl").write_text("\n".join(lines))
    notes = ScanNotes()
    assert labels(tmp_path, notes) == {
        "train/a.jpg": ("cup", "train"),
        "train/b.jpg": ("", None),  # its folder says the split
        "test/c.jpg": ("cup", "test"),
        "test/c.jpg#box=0": ("cup", "test"),
        "train/gone.jpg": ("cup", "train"),
    }
    assert notes.classes == ["cup"]
    assert problems(notes) == {
        "rows without a file name, left out": 1,
        "boxes that are no four numbers, left out": 1,
        "lines that are no JSON object, left out": 2,
        "missing pictures": 1,
        "pictures without annotation": 1,
    }


def test_webdataset(tmp_path):
    path = tmp_path / "train-000.tar"
    members = {"0.jpg": CUP.read_bytes(), "0.cls": b"3", "0.json": b'{"class_name": "cup"}'}
    members |= {"1.jpg": CUP.read_bytes(), "1.cls": b"4\n", "2.jpg": CUP.read_bytes(), "3.json": b"{"}
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    notes = ScanNotes()
    assert {p: label for p, (label, _) in labels(path, notes).items()} == {
        "train-000.tar/0.jpg": "cup",
        "train-000.tar/1.jpg": "4",
        "train-000.tar/2.jpg": "",
    }
    assert notes.classes == ["cup"]
    assert problems(notes) == {
        "damaged annotation files, left out": 1,
        "classes without a name": 1,
        "pictures without annotation": 1,
    }


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_lists_with_labels_and_splits(tmp_path, warm, suffix):
    shutil.copy(CUP, tmp_path / "a.jpg")
    shutil.copy(AIRPLANE, tmp_path / "b.jpg")
    entries = [("a.jpg", "cup", "valid"), ("b.jpg", "", ""), ("b.jpg", "airplane", ""), ("a.jpg", "mug", "valid")]
    path = tmp_path / f"list{suffix}"
    if suffix == ".csv":
        path.write_text("path,label,split\n" + "".join(f"{','.join(entry)}\n" for entry in entries))
    else:
        pq.write_table(pa.table(dict(zip(("path", "label", "split"), zip(*entries, strict=True), strict=True))), path)
    notes: list[str] = []
    result = ood_audit.embed(path, store=tmp_path / "store", device="cpu", on_note=notes.append)
    assert result.store.query("SELECT path, folder, split FROM images ORDER BY path").rows == [
        ("a.jpg", "", "val"),
        ("b.jpg", "airplane", None),
    ]
    assert any("several labels, which have none: 1; the first: a.jpg" in note for note in notes)


# In the store


def test_boxes_are_images_of_their_own(tmp_path, scene, warm, monkeypatch):
    path = coco(tmp_path / "annotations")
    loaded: list[str] = []

    def counted(uri, **options):
        loaded.append(uri)
        return load(uri, **options)

    monkeypatch.setattr("ood_audit.embedding.pipeline.load", counted)
    notes: list[str] = []
    result = ood_audit.embed(path, store=tmp_path / "store", device="cpu", on_note=notes.append)
    store = result.store
    assert result.counts["added"] == 3
    assert len(loaded) == 1  # one decode for the picture and its boxes
    assert any("several classes" in note for note in notes)
    assert store.query("SELECT path, folder, width, height, split FROM images ORDER BY path").rows == [
        ("images/one.jpg", "", 400, 300, "val"),
        ("images/one.jpg#box=11", "airplane", 150, 100, "val"),
        ("images/one.jpg#box=12", "cup", 120, 160, "val"),
    ]
    boxes = store.query("SELECT box_id, label, x, y, width, height, split FROM annotations ORDER BY box_id").rows
    assert boxes[0] == ("11", "airplane", 10.0, 20.0, 150.0, 100.0, "val")
    ((whole,),) = store.query("SELECT image_id FROM images WHERE NOT contains(uri, '#box=')").rows
    assert store.query("SELECT DISTINCT image_id FROM annotations").rows == [(whole,)]
    assert +ood_audit.embed(path, store=store.root, device="cpu").counts == {"unchanged": 3}
    off = ood_audit.embed(path, store=store.root, device="cpu", crops="off")
    assert +off.counts == {"unchanged": 1, "removed": 2}
    ood_audit.forget([path], store=store.root)
    assert store.query("SELECT count(*) FROM annotations").rows == [(0,)]


def test_a_box_shows_its_object_with_a_margin(tmp_path, scene):
    from ood_audit.images.decode import decode, thumbnail
    from ood_audit.images.uri import in_picture

    uri = rows(coco(tmp_path))["images/one.jpg#box=12"]["uri"]
    seen = []

    def prepare(image):
        seen.append(image)
        return np.zeros((224, 224, 3), np.uint8)

    found = decode(uri, prepare)
    assert (found.width, found.height, found.error, found.note) == (120, 160, None, None)
    assert seen[0].size == (144, 192)
    small = uri.replace("200,50,120,160", "200,50,12,16")
    assert thumbnail(uri, 96) is not None
    with Image.open(io.BytesIO(thumbnail(in_picture(uri) or "", 400) or b"")) as whole:
        assert whole.size == (400, 300)
        red, green, blue = whole.getpixel((260, 50))[:3]
        assert min(red, green) > max(150, blue + 50)  # the upper edge of the box, in yellow
    assert in_picture(uri.partition("#")[0]) is None
    assert decode(small, prepare).note == "box too small to tell: 12 × 16 pixels"
    outside = decode(uri.replace("200,50,120,160", "700,50,12,16"), prepare)
    assert outside.error == "the box is outside of its image, which has 400 × 300 pixels"
    assert len({decode(one, prepare).content_hash for one in (uri, small, uri.partition("#")[0])}) == 3


def test_a_new_label_needs_no_embedding(tmp_path, scene, warm, monkeypatch):
    path = coco(tmp_path)
    store = ood_audit.embed(path, store=tmp_path / "store", device="cpu").store
    coco(tmp_path, categories=[{"id": 1, "name": "plane"}, {"id": 2, "name": "cup"}])
    monkeypatch.setattr(local, "embed_images", None)
    result = ood_audit.embed(path, store=tmp_path / "store", device="cpu")
    assert +result.counts == {"relabelled": 1, "unchanged": 2}
    assert store.query("SELECT folder FROM images WHERE path LIKE '%box=11'").rows == [("plane",)]


def test_the_classes_of_the_dataset_are_the_vocabulary(tmp_path, scene, warm):
    store = tmp_path / "store"
    done = run_cli("embed", coco(tmp_path), "--store", store)
    assert done.returncode == 0, done.stderr
    assert "warning: instances_val2017.json: pictures with several classes" in done.stderr
    done = run_cli("report", "--store", store, "--top", 3)
    assert done.returncode == 0, done.stderr
    assert "vocabulary: the 2 classes of the dataset: airplane, cup" in done.stderr
    found = ood_audit.open_store(store).query("SELECT path, given_label FROM report ORDER BY path").rows
    assert [label for _, label in found] == [None, "airplane", "cup"]


def test_crops_on_needs_boxes(tmp_path, pictures, warm):
    with pytest.raises(UsageError, match="needs a dataset with boxes"):
        ood_audit.embed(pictures, store=tmp_path / "store", device="cpu", crops="on")


# Findings about boxes


def test_boxes_of_one_picture_are_no_duplicates_and_those_of_two_are(tmp_path, warm):
    from ood_audit.findings.duplicates import find

    for name, x in (("one.jpg", 40), ("two.jpg", 90)):
        compose(tmp_path / "images" / name, (AIRPLANE, x, 60, 250, 180))
    places = [[40, 60, 250, 180], [42, 62, 248, 178], [90, 60, 250, 180]]
    path = coco(
        tmp_path,
        "coco.json",
        images=[{"id": n, "file_name": f"{name}.jpg"} for n, name in enumerate(("one", "two"))],
        annotations=[
            {"id": n, "image_id": image, "category_id": 1, "bbox": places[n]} for n, image in enumerate((0, 0, 1))
        ],
    )
    store = ood_audit.embed(path, store=tmp_path / "store", device="cpu").store
    boxes = {row.path for row in find(store, device="cpu").rows if "#box" in row.path}
    assert "images/two.jpg#box=2" in boxes
    assert len(boxes) == 2  # and one of the two in the other picture


def test_boxes_too_small_to_tell_are_not_judged(tmp_path, scene, warm):
    from ood_audit.findings import label_issues
    from ood_audit.store.views import connect

    small = {"id": 13, "image_id": 1, "category_id": 1, "bbox": [300, 200, 12, 9]}
    path = coco(tmp_path, annotations=[*json.loads(coco(tmp_path).read_text())["annotations"], small])
    store = tmp_path / "store"
    assert run_cli("embed", path, "--store", store).returncode == 0
    assert run_cli("report", "--store", store, "--top", 3).returncode == 0
    with connect(ood_audit.open_store(store)) as db:
        notes = dict(db.execute("SELECT path, note FROM images WHERE contains(uri, '#box=')").fetchall())
        assert notes.pop("images/one.jpg#box=13") == "box too small to tell: 12 × 9 pixels"
        assert set(notes.values()) == {None}
        assert label_issues.find(db).labelled == 2


# In zip files


def zipped(folder, path):
    """What is in a folder as a zip file."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder).as_posix())
    return path


def test_coco_in_a_zip_file_with_a_file_for_each_split(tmp_path, warm):
    for split, number in (("train", 1), ("valid", 2)):
        compose(tmp_path / "in" / split / f"{number}.jpg", (AIRPLANE, 10, 20, 150, 100))
        entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 20, 150, 100]}
        images = [{"id": 1, "file_name": f"{number}.jpg", "width": 400, "height": 300}]
        coco(tmp_path / "in" / split, "_annotations.coco.json", images=images, annotations=[entry])
    (tmp_path / "in" / "train" / "lost.json").write_text("{}")
    shutil.copy(CUP, tmp_path / "in" / "valid" / "mask.jpg")
    path = zipped(tmp_path / "in", tmp_path / "data.zip")
    notes = ScanNotes()
    found = rows(path, notes)
    assert {path: (row["label"], row["split"]) for path, row in found.items()} == {
        "data.zip/train/1.jpg": ("airplane", "train"),
        "data.zip/train/1.jpg#box=1": ("airplane", "train"),
        "data.zip/valid/2.jpg": ("airplane", "val"),
        "data.zip/valid/2.jpg#box=1": ("airplane", "val"),
    }
    left = {"images in the zip file that no annotation names, left out": (1, "valid/mask.jpg")}
    assert (notes.format, notes.problems) == ("COCO", left)
    store = tmp_path / "store"
    assert +ood_audit.embed(path, store=store, device="cpu").counts == {"added": 4}
    assert +ood_audit.embed(path, store=store, device="cpu").counts == {"unchanged": 4}


def test_yolo_in_a_zip_file(tmp_path):
    compose(tmp_path / "in" / "data" / "train" / "images" / "one.jpg", (CUP, 200, 50, 100, 150))
    (tmp_path / "in" / "data" / "train" / "labels").mkdir()
    (tmp_path / "in" / "data" / "train" / "labels" / "one.txt").write_text("0 0.625 0.416667 0.25 0.5\n")
    (tmp_path / "in" / "data" / "data.yaml").write_text("train: ../train/images\nnames: [cup]\n")
    notes = ScanNotes()
    found = rows(zipped(tmp_path / "in", tmp_path / "a.zip"), notes)
    assert place(found["a.zip/data/train/images/one.jpg#box=0"]) == pytest.approx((200, 50, 100, 150), abs=0.1)
    assert (notes.format, notes.classes, problems(notes)) == ("YOLO", ["cup"], {})


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_parquet_in_a_zip_file(tmp_path, warm, method):
    photos = [{"bytes": path.read_bytes(), "path": path.name} for path in (CUP, AIRPLANE, SUNFLOWER)]
    shard = tmp_path / "shard.parquet"
    pq.write_table(pa.table({"image": photos, "label": ["cup", "plane", "flower"]}), shard, row_group_size=2)
    path = tmp_path / "hub.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.write(shard, "a b/data/test-00000-of-00001.parquet")
    store = ood_audit.embed([path], store=tmp_path / "store", device="cpu").store
    found = store.query("SELECT path, folder, split, status, content_hash FROM images ORDER BY path").rows
    assert [row[1:4] for row in found] == [(label, "test", "ok") for label in ("cup", "plane", "flower")]
    assert found[2][0] == "hub.zip/a b/data/test-00000-of-00001.parquet/00000002"
    plain = ood_audit.embed([CUP], store=tmp_path / "plain", device="cpu").store
    assert plain.query("SELECT content_hash FROM images").rows[0][0] == found[0][4]
    again = ood_audit.embed([path], store=store.root, device="cpu")
    assert dict(+again.counts) == {"unchanged": 3}


def test_voc_and_image_folders_in_zip_files(tmp_path):
    root = tmp_path / "in" / "VOC2007"
    compose(root / "JPEGImages" / "one.jpg", (AIRPLANE, 10, 20, 150, 100))
    (root / "Annotations").mkdir()
    (root / "Annotations" / "one.xml").write_text(f"<annotation>{_OBJECT.format('cup', 11, 21, 160, 120)}</annotation>")
    found = rows(zipped(tmp_path / "in", tmp_path / "voc.zip"))
    assert found["voc.zip/VOC2007/JPEGImages/one.jpg#box=0"]["label"] == "cup"
    (tmp_path / "other" / "top").mkdir(parents=True)
    shutil.copy(CUP, tmp_path / "other" / "top" / "a.jpg")
    (tmp_path / "other" / "top" / "metadata.csv").write_text("file_name,label\na.jpg,cup\ngone.jpg,cup\n")
    notes = ScanNotes()
    found = rows(zipped(tmp_path / "other", tmp_path / "f.zip"), notes)
    assert {path: row["label"] for path, row in found.items()} == {"f.zip/top/a.jpg": "cup"}
    assert problems(notes) == {"missing pictures": 1}


def test_boxes_around_a_crowd_are_no_objects(tmp_path, scene):
    entries = [{"id": 1, "image_id": 1, "category_id": 2, "bbox": [5, 5, 90, 90], "iscrowd": 1, "segmentation": {}}]
    notes = ScanNotes()
    found = labels(coco(tmp_path, annotations=entries), notes)
    assert found == {"images/one.jpg": ("cup", "val")}
    assert problems(notes) == {"boxes around a crowd, which are no single object, left out": 1}


# As strangers write them


def test_coco_ids_of_other_types_are_the_same(tmp_path, scene):
    notes = ScanNotes()
    path = coco(
        tmp_path,
        images=[{"id": "1", "file_name": "images/one.jpg", "width": 400.0, "height": 300}],
        annotations=[
            {"id": "a", "image_id": 1, "category_id": "7", "bbox": ["10", "20", "150", "100"]},
            {"id": "b", "image_id": 1.0, "category_id": 7.0, "segmentation": [[200, 50, 320, 50, 320, 210], [210, 40]]},
            {"id": "c", "image_id": "1", "category_id": 7, "segmentation": {"counts": "x", "size": [300, 400]}},
        ],
        categories=[{"id": 7, "name": "cup"}],
    )
    found = rows(path, notes)
    assert [row["label"] for row in found.values()] == ["cup"] * 3
    assert place(found["images/one.jpg#box=a"]) == (10, 20, 150, 100)
    assert place(found["images/one.jpg#box=b"]) == (200, 40, 120, 170)
    assert notes.problems == {}


def test_coco_ids_that_are_given_twice_are_said(tmp_path, scene):
    shutil.copy(scene, scene.with_name("two.jpg"))
    names = ("images/one.jpg", "images/two.jpg", "images/one.jpg")
    notes = ScanNotes()
    path = coco(
        tmp_path,
        images=[{"id": min(n, 1), "file_name": name, "width": 400, "height": 300} for n, name in enumerate(names)],
        annotations=[{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 20, 150, 100]}],
        categories=[{"id": 1, "name": "cup"}, {"id": 1, "name": "mug"}],
    )
    assert labels(path, notes)["images/two.jpg"] == ("cup", "val")
    assert problems(notes) == {
        "classes with the id of another, left out": 1,
        "images with the id of another, whose annotations are taken for both": 1,
        "pictures without annotation": 1,
    }


def yolo(tmp_path, scene, lines, values="names: [airplane, cup]\n"):
    """A YOLO dataset of one picture, as bytes of its text file."""
    (tmp_path / "labels").mkdir(exist_ok=True)
    (tmp_path / "labels" / "one.txt").write_bytes(lines)
    (tmp_path / "data.yaml").write_text(f"train: images\n{values}")
    return tmp_path / "data.yaml"


def test_yolo_lines_whose_class_is_no_number_are_counted(tmp_path, scene):
    notes = ScanNotes()
    lines = b"\xef\xbb\xbf1 .5 .5 .2 .2\r\nnan .5 .5 .2 .2\n1e999 .5 .5 .2 .2\n0.5 .5 .5 .2 .2\n0.0 .3 .3 .2 .2\n"
    found = labels(yolo(tmp_path, scene, lines), notes)
    assert found["images/one.jpg#box=0"] == ("cup", "train")
    assert found["images/one.jpg#box=4"] == ("airplane", "train")
    assert problems(notes)["lines that are no box and no polygon, left out"] == 3


@pytest.mark.parametrize("dimensions", [2, 3])
def test_yolo_poses_are_boxes_with_keypoints(tmp_path, scene, dimensions):
    lines = b"1 .5 .5 .2 .4" + b" .9" * (4 * dimensions)
    path = yolo(tmp_path, scene, lines, f"names: [airplane, cup]\nkpt_shape: [4, {dimensions}]\n")
    assert place(rows(path)["images/one.jpg#box=0"]) == pytest.approx((160, 90, 80, 120))


def test_a_yolo_picture_in_two_splits_is_said(tmp_path, scene):
    notes = ScanNotes()
    path = yolo(tmp_path, scene, b"1 .5 .5 .2 .2\n", "val: images\nnames: [airplane, cup]\n")
    assert labels(path, notes)["images/one.jpg"] == ("cup", "train")
    assert problems(notes) == {"pictures in two splits, kept in the first": 1}


def test_the_nearest_folder_of_images_has_the_labels_of_yolo(tmp_path, scene):
    shutil.move(scene.parent, tmp_path / "images2" / "images")
    shutil.move(tmp_path / "images2", tmp_path / "images")
    path = yolo(tmp_path, scene, b"")
    (tmp_path / "images" / "labels").mkdir()
    (tmp_path / "images" / "labels" / "one.txt").write_text("1 .5 .5 .2 .2\n")
    assert labels(path)["images/images/one.jpg"] == ("cup", "train")


def photos(*files):
    return [{"bytes": file.read_bytes(), "path": file.name} for file in files]


def written(path, columns, **features):
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.table(columns).replace_schema_metadata(about), path)
    return path


KINDS = {"_type": "ClassLabel", "names": ["airplane", "cup"]}


@pytest.mark.parametrize(
    ("objects", "feature"),
    [
        ([{"bbox": [1.0, 2.0, 30.0, 40.0], "category": 1}], [{"category": KINDS}]),
        ({"bbox": [[1.0, 2.0, 30.0, 40.0]], "labels": ["cup"]}, None),
    ],
)
def test_objects_of_the_hub_in_other_shapes(tmp_path, objects, feature):
    features = {} if feature is None else {"objects": feature}
    path = written(tmp_path / "a.parquet", {"image": photos(CUP), "objects": [objects]}, **features)
    found = rows(path)["a.parquet/00000000#box=0"]
    assert (found["label"], place(found)) == ("cup", (1, 2, 30, 40))


def test_labels_that_pandas_made_floats(tmp_path):
    columns = {"image": photos(AIRPLANE, CUP, SUNFLOWER), "label": [0.0, 1.0, float("nan")]}
    notes = ScanNotes()
    found = labels(written(tmp_path / "a.parquet", columns, label=KINDS), notes)
    assert [label for label, _ in found.values()] == ["airplane", "cup", ""]
    assert problems(notes) == {"pictures without annotation": 1}


def test_columns_of_plain_bytes_are_images_by_their_name(tmp_path, warm):
    path = written(tmp_path / "a.parquet", {"md5": [b"x"], "jpg": [CUP.read_bytes()], "label": ["cup"]})
    store = ood_audit.embed([path], store=tmp_path / "store", device="cpu").store
    assert store.query("SELECT status, folder, format FROM images").rows == [("ok", "cup", "JPEG")]


def test_a_second_column_of_images_is_said(tmp_path):
    notes = ScanNotes()
    assert len(rows(written(tmp_path / "a.parquet", {"left": photos(CUP), "right": photos(CUP)}), notes)) == 1
    assert notes.problems["further columns of images, left out"] == (1, "a.parquet, right")


@pytest.mark.parametrize("name", ["default/test/0000.parquet", "plain_text/test-00000-of-00001.parquet"])
def test_configurations_of_the_hub_are_folders(tmp_path, name):
    written(tmp_path / "hub" / name, {"image": photos(CUP), "label": ["cup"]})
    assert labels(tmp_path / "hub") == {f"{name}/00000000": ("cup", "test")}


def test_voc_with_folders_of_pictures(tmp_path):
    for folder, name in (("a", "cup"), ("b", "airplane")):
        compose(tmp_path / "JPEGImages" / folder / "1.jpg", (CUP, 10, 20, 150, 100))
        xml = tmp_path / "Annotations" / folder / "1.xml"
        xml.parent.mkdir(parents=True)
        bounds = "<bndbox><xmin>11</xmin><ymin>21</ymin><xmax>160</xmax><ymax>120</ymax></bndbox>"
        xml.write_text(f"<annotation><object><name>{name}</name>{bounds}</object></annotation>")
    (tmp_path / "ImageSets").mkdir()
    (tmp_path / "ImageSets" / "train.txt").write_text("a/1\n")
    (tmp_path / "ImageSets" / "val.txt").write_text("b/1\n")
    found = labels(tmp_path)
    assert found["JPEGImages/a/1.jpg"] == ("cup", "train")
    assert found["JPEGImages/b/1.jpg"] == ("airplane", "val")


def test_folders_are_classes_where_metadata_has_none(tmp_path):
    for name in ("cup", "airplane"):
        compose(tmp_path / "test" / name / "1.jpg", (CUP, 10, 20, 150, 100))
    lines = [{"file_name": f"{name}/1.jpg", "text": "a caption"} for name in ("cup", "airplane")]
    (tmp_path / "test" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    notes = ScanNotes()
    found = labels(tmp_path, notes)
    assert found == {f"test/{name}/1.jpg": (name, "test") for name in ("cup", "airplane")}
    assert (sorted(notes.classes), notes.problems) == (["airplane", "cup"], {})
