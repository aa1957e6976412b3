"""Datasets written out again: what is embedded from them is what was embedded before."""

import json
import os
import shutil
import sys
import zipfile

import pyarrow.parquet as pq
import pytest

import ood_audit
from ood_audit.errors import OodAuditError, UsageError
from ood_audit.store.files import write_json
from tests.conftest import run_cli
from tests.helpers.findings import write_findings
from tests.helpers.s3 import s3  # noqa: F401
from tests.images.test_datasets import AIRPLANE, CUP, SUNFLOWER, coco, compose, warm  # noqa: F401

CONTENT = """
SELECT i.content_hash, i.split, CASE WHEN contains(i.uri, '#box=') THEN '' ELSE i.folder END,
       (SELECT list([a.label, round(a.x, 1)::VARCHAR, round(a.y, 1)::VARCHAR, round(a.width, 1)::VARCHAR,
                     round(a.height, 1)::VARCHAR] ORDER BY a.x, a.label)
        FROM annotations AS a WHERE a.image_id = i.image_id)
FROM images AS i WHERE NOT contains(i.uri, '#box=') ORDER BY ALL
"""
pytestmark = pytest.mark.usefixtures("warm")


@pytest.fixture
def objects(tmp_path):
    """A store of two COCO files, one a split, with boxes: (folder, store)."""
    folder = tmp_path / "in"
    for name, files in (("one", (AIRPLANE, CUP)), ("two", (CUP,)), ("bare", ())):
        places = [(10, 20, 150, 100), (200, 50, 120, 160)]
        compose(folder / "images" / f"{name}.png", *((f, *p) for f, p in zip(files, places, strict=False)))
    crowd = {"id": 99, "image_id": 1, "category_id": 2, "bbox": [0, 0, 300, 300], "iscrowd": 1, "segmentation": {}}
    train = coco(
        folder,
        "instances_train.json",
        images=[
            {"id": 1, "file_name": "images/one.png", "width": 400, "height": 300, "license": 4},
            {"id": 7, "file_name": "images/bare.png", "width": 400, "height": 300},
        ],
        annotations=[
            {"id": 11, "image_id": 1, "category_id": 1, "bbox": [10, 20, 150, 100], "segmentation": [[1, 2, 3, 4]]},
            {"id": 12, "image_id": 1, "category_id": 5, "bbox": [200, 50, 120, 160]},
            crowd | {"category_id": 5},
        ],
        categories=[{"id": 5, "name": "cup", "supercategory": "thing"}, {"id": 1, "name": "airplane"}],
    )
    test = coco(
        folder,
        "instances_test.json",
        images=[{"id": 1, "file_name": "images/two.png", "width": 400, "height": 300}],
        annotations=[{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10.25, 20, 150, 100]}],
        categories=[{"id": 1, "name": "cup"}],
    )
    store = ood_audit.embed([train, test], store=tmp_path / "store", device="cpu").store
    return folder, store


def content(store):
    return store.query(CONTENT).rows


def embedded(tmp_path, *sources):
    return ood_audit.embed(list(sources), store=tmp_path / "again", device="cpu").store


def decide(store, path, decision, label="", kind="label", when="2020-01-01T00:00:00"):
    """A verdict about an image, as `apply` leaves it."""
    sql = f"SELECT image_id, path, content_hash FROM images WHERE path = '{path}'"
    ((image_id, path, content_hash),) = store.query(sql).rows
    verdict = {"image_id": image_id, "path": path, "content_hash": content_hash, "kind": kind, "decision": decision}
    verdict |= {"label": label, "when": when}
    (store.root / "verdicts").mkdir(exist_ok=True)
    write_json(store.root / "verdicts" / f"{image_id}.json", {"verdicts": [verdict]})


# Round trips


@pytest.mark.parametrize("copy", [False, True])
def test_coco_of_several_splits_is_a_folder(objects, tmp_path, copy):
    _, store = objects
    done = ood_audit.export_dataset(tmp_path / "out", store, format="coco", copy=copy)
    assert (done.images, done.boxes) == (3, 4)  # and the crowd
    files = sorted((tmp_path / "out" / "annotations").iterdir())
    assert [file.name for file in files] == ["instances_test.json", "instances_train.json"]
    assert (tmp_path / "out" / "images").exists() == copy
    assert content(embedded(tmp_path, *files)) == content(store)


def test_coco_keeps_what_the_original_has(objects, tmp_path):
    folder, store = objects
    ood_audit.forget([folder / "instances_test.json"], store=store.root)
    ood_audit.export_dataset(folder / "out.json", store, format="coco")
    values = json.loads((folder / "out.json").read_text())
    cup, airplane = sorted(values["categories"], key=lambda one: -one["id"])
    assert (cup, airplane) == ({"id": 5, "name": "cup", "supercategory": "thing"}, {"id": 1, "name": "airplane"})
    images = {image["id"]: image for image in values["images"]}
    assert (images[1]["license"], images[1]["file_name"]) == (4, "images/one.png")
    assert images.keys() == {1, 7}
    own = {entry["id"]: entry for entry in values["annotations"]}
    assert own[11]["segmentation"] == [[1, 2, 3, 4]]
    assert (own[12]["category_id"], own[99]["iscrowd"]) == (5, 1)
    assert content(embedded(tmp_path, folder / "out.json")) == content(store)


ABOUT = {"info": {"year": 2026, "url": "http://example.org"}, "licenses": [{"id": 4, "name": "CC BY 4.0"}]}


def about(path, **values):
    """Give a COCO file further values beside its lists."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_what_coco_files_say_of_themselves_is_kept_where_they_agree(objects, tmp_path):
    folder, store = objects
    about(folder / "instances_train.json", **ABOUT, extra=1)
    about(folder / "instances_test.json", **ABOUT, extra=2)
    ood_audit.export_dataset(tmp_path / "all.json", store, format="coco")
    values = json.loads((tmp_path / "all.json").read_text())
    assert {name: values.get(name) for name in (*ABOUT, "extra")} == ABOUT | {"extra": None}
    ood_audit.forget([folder / "instances_test.json"], store=store.root)
    ood_audit.export_dataset(tmp_path / "train.json", store, format="coco")
    assert json.loads((tmp_path / "train.json").read_text())["extra"] == 1


@pytest.mark.parametrize("agree", [True, False])
def test_numbers_of_classes_are_kept_where_all_files_agree(objects, tmp_path, agree):
    folder, store = objects
    categories = [{"id": 5, "name": "cup"}, {"id": 1, "name": "airplane"}]
    if agree:
        about(folder / "instances_test.json", categories=categories)
    ood_audit.export_dataset(tmp_path / "all.json", store, format="coco")
    values = json.loads((tmp_path / "all.json").read_text())
    numbers = {one["name"]: one["id"] for one in values["categories"]}
    assert numbers == ({"cup": 5, "airplane": 1} if agree else {"cup": 1, "airplane": 2})
    assert {one["category_id"] for one in values["annotations"]} == set(numbers.values())
    assert [one.get("supercategory") for one in values["categories"]] == ["thing", None]


def test_coco_in_a_zip_file_keeps_its_fields(objects, tmp_path):
    folder, _ = objects
    for name in ("instances_train.json", "instances_test.json"):
        about(folder / name, **ABOUT)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in folder.rglob("*.*"):
            archive.write(path, path.relative_to(folder))
    store = ood_audit.embed([tmp_path / "all.zip"], store=tmp_path / "zipped", device="cpu").store
    ood_audit.export_dataset(tmp_path / "out", store, format="coco", copy=True)
    train = json.loads((tmp_path / "out" / "annotations" / "instances_train.json").read_text())
    assert {name: train.get(name) for name in ABOUT} == ABOUT
    assert {image["file_name"]: image.get("license") for image in train["images"]} == {"bare.png": None, "one.png": 4}
    assert [one.get("segmentation") for one in train["annotations"]] == [[[1, 2, 3, 4]], None, {}]


def test_coco_on_a_server_keeps_its_fields_and_numbers(objects, tmp_path, s3):  # noqa: F811
    folder, _ = objects
    about(folder / "instances_train.json", **ABOUT)
    for path in folder.rglob("*.*"):
        s3.put(f"in/{path.relative_to(folder).as_posix()}", path.read_bytes())
    source = "s3://bucket/in/instances_train.json"
    store = ood_audit.embed([source], store=tmp_path / "remote", device="cpu").store
    ood_audit.export_dataset(tmp_path / "out.json", store, format="coco")
    values = json.loads((tmp_path / "out.json").read_text())
    assert {name: values.get(name) for name in ABOUT} == ABOUT
    assert {one["id"] for one in values["annotations"]} == {11, 12, 99}
    assert {image["id"]: image.get("license") for image in values["images"]} == {1: 4, 7: None}
    assert values["images"][0]["file_name"].startswith("s3://bucket/in/images/")


def test_a_backslash_in_a_name_is_part_of_it_where_there_is_such_a_file(tmp_path):
    if os.sep == "\\":
        pytest.skip("Windows has no such names")
    folder = tmp_path / "in"
    compose(folder / "a\\b.png", (CUP, 10, 20, 150, 100))
    compose(folder / "c" / "d.png", (AIRPLANE, 10, 20, 150, 100))
    names = ["a\\b.png", "c\\d.png"]
    images = [{"id": n, "file_name": name, "width": 400, "height": 300, "n": n} for n, name in enumerate(names)]
    boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [10, 20, 150, 100]} for n in range(2)]
    source = coco(folder, "odd.json", images=images, annotations=boxes, categories=[{"id": 1, "name": "cup"}])
    store = ood_audit.embed([source], store=tmp_path / "store", device="cpu").store
    assert {row[0] for row in store.query("SELECT status FROM images").rows} == {"ok"}
    ood_audit.export_dataset(folder / "out.json", store, format="coco")
    values = json.loads((folder / "out.json").read_text())
    assert [(image["file_name"], image["n"]) for image in values["images"]] == [("a\\b.png", 0), ("c/d.png", 1)]
    assert content(embedded(tmp_path, folder / "out.json")) == content(store)


def test_boxes_without_a_class_that_yolo_leaves_out_are_counted(tmp_path):
    folder = tmp_path / "in"
    compose(folder / "one.png", (CUP, 10, 20, 150, 100), (AIRPLANE, 200, 50, 120, 160))
    boxes = [
        {"image_id": 1, "category_id": 1, "bbox": [10, 20, 150, 100]},
        {"image_id": 1, "bbox": [200, 50, 120, 160]},
    ]
    image = {"id": 1, "file_name": "one.png", "width": 400, "height": 300}
    source = coco(folder, "a.json", images=[image], annotations=boxes, categories=[{"id": 1, "name": "cup"}])
    store = ood_audit.embed([source], store=tmp_path / "store", device="cpu").store
    done = ood_audit.export_dataset(tmp_path / "out", store, format="yolo")
    assert (done.images, done.boxes, done.left_out) == (1, 1, 1)
    said = run_cli("export", "--format", "yolo", "--output", tmp_path / "again", "--store", store.root)
    assert "boxes left out, as they have no class and YOLO's have one: 1" in said.stderr


def test_one_coco_file_has_the_splits_too(objects, tmp_path):
    _, store = objects
    ood_audit.export_dataset(tmp_path / "all.json", store, format="coco")
    values = json.loads((tmp_path / "all.json").read_text())
    assert len({entry["id"] for entry in values["annotations"]}) == 4
    assert all(image["file_name"].startswith("in/images/") for image in values["images"])
    assert content(embedded(tmp_path, tmp_path / "all.json")) == content(store)


@pytest.mark.parametrize("copy", [False, True])
def test_yolo(objects, tmp_path, copy):
    _, store = objects
    done = ood_audit.export_dataset(tmp_path / "out", store, format="yolo", copy=copy)
    assert (done.images, done.boxes) == (3, 3)
    assert (tmp_path / "out" / "images" / "train" / "one.png").is_symlink() == (not copy and sys.platform != "win32")
    again = embedded(tmp_path, tmp_path / "out" / "data.yaml")
    assert content(again) == [
        (one, split, "" if split == "train" else folder, boxes) for one, split, folder, boxes in content(store)
    ]


@pytest.mark.parametrize("name", ["out", "out.parquet"])
def test_parquet_of_the_hub(objects, tmp_path, name, monkeypatch):
    _, store = objects
    monkeypatch.setattr("ood_audit.actions.datasets.hub._ROWS", 1)
    monkeypatch.setattr("ood_audit.actions.datasets.hub._SHARD", 400_000)
    ood_audit.export_dataset(tmp_path / name, store, format="parquet")
    shards = sorted((tmp_path / name).glob("data/*.parquet")) or [tmp_path / name]
    assert all(pq.ParquetFile(shard).num_row_groups == pq.read_metadata(shard).num_rows for shard in shards)
    features = json.loads(pq.read_schema(shards[0]).metadata[b"huggingface"])["info"]["features"]
    assert features["objects"]["category"]["feature"]["names"] == ["cup", "airplane"]
    assert content(embedded(tmp_path, tmp_path / name)) == content(store)


def test_csv_names_boxes_so_that_they_are_found_again(objects, tmp_path):
    _, store = objects
    ood_audit.export_dataset(tmp_path / "out.csv", store, format="csv")
    assert content(embedded(tmp_path, tmp_path / "out.csv")) == content(store)


@pytest.fixture
def folders(tmp_path):
    """A store of class folders in splits, of which one image is in a zip file."""
    for path, file in (("train/cup/é 1.jpg", CUP), ("train/airplane/1.jpg", AIRPLANE), ("val/cup/1.jpg", SUNFLOWER)):
        (tmp_path / "in" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp_path / "in" / path)
    with zipfile.ZipFile(tmp_path / "in" / "val" / "more.zip", "w") as archive:
        archive.write(AIRPLANE, "airplane/9.jpg")
    return ood_audit.embed(tmp_path / "in", store=tmp_path / "store", device="cpu").store


@pytest.mark.parametrize("name", ["coco.json", "list.csv", "hub.parquet", "hub"])
def test_class_folders(folders, tmp_path, name):
    format = {"coco": "coco", "list": "csv", "hub": "parquet"}[name.partition(".")[0]]
    ood_audit.export_dataset(tmp_path / name, folders, format=format)
    again = embedded(tmp_path, tmp_path / name)
    labels = {(one, split, folder.rpartition("/")[2]) for one, split, folder, _ in content(folders)}
    assert {row[:3] for row in content(again)} == labels
    assert len(labels) == 4
    with pytest.raises(UsageError, match="none of these images has a box of a class"):
        ood_audit.export_dataset(tmp_path / "yolo", folders, format="yolo")
    assert not (tmp_path / "yolo").exists()


# What is written


def test_what_is_found_and_what_is_kept(objects, tmp_path):
    _, store = objects
    write_findings(store.root, {"images/one.png#box=12": "ood", "images/two.png": "near-duplicate"})
    kinds = ["ood", "near-duplicate"]

    def written(keep):
        ood_audit.export_dataset(tmp_path / "out.csv", store, format="csv", kinds=kinds, keep=keep)
        lines = (tmp_path / "out.csv").read_text().splitlines()[1:]
        return [line.partition("/images/")[2].partition(",")[0].strip('"').partition("&")[0] for line in lines]

    assert written(keep=False) == ["two.png", "two.png#box=1", "one.png", "one.png#box=12"]
    assert written(keep=True) == ["bare.png", "one.png", "one.png#box=11"]


def test_verdicts_correct_labels_and_remove(objects, tmp_path):
    _, store = objects
    decide(store, "images/one.png#box=12", "relabel", "mug")
    decide(store, "images/one.png#box=11", "remove")
    decide(store, "images/bare.png", "remove", kind="ood")
    done = ood_audit.export_dataset(tmp_path / "out.parquet", store, format="parquet")
    assert (done.images, done.boxes, done.relabelled) == (2, 2, 1)
    again = embedded(tmp_path, tmp_path / "out.parquet")
    assert [label for (label,) in again.query("SELECT label FROM annotations ORDER BY label").rows] == ["cup", "mug"]


def test_embedding_atlas_has_what_verdicts_left(objects, tmp_path):
    _, store = objects
    decide(store, "images/one.png", "remove")
    decide(store, "images/two.png#box=1", "relabel", "mug")
    ood_audit.export_dataset(tmp_path / "a.parquet", store, format="atlas")
    rows = {row["path"]: row["given_label"] for row in pq.read_table(tmp_path / "a.parquet").to_pylist()}
    assert rows.keys() == {"images/two.png", "images/two.png#box=1", "images/bare.png"}
    assert rows["images/two.png#box=1"] == "mug"


def test_embedding_atlas(objects, tmp_path):
    _, store = objects
    done = run_cli("export", "--format", "atlas", "--store", store.root, "--output", tmp_path / "a.parquet")
    assert done.returncode == 0, done.stderr
    assert "embedding-atlas" in done.stderr
    table = pq.read_table(tmp_path / "a.parquet")
    rows = table.to_pylist()
    assert len(rows) == 6
    assert {row["path"] for row in rows} >= {"images/one.png", "images/one.png#box=12"}
    for number, row in enumerate(rows):
        assert 0 <= row["x"] <= 1
        assert sorted([number, *row["neighbors"]["ids"]]) == list(range(6))  # all others
        assert row["neighbors"]["distances"] == sorted(row["neighbors"]["distances"])
        assert row["image"]["bytes"][:2] == b"\xff\xd8"  # JPEG
    by_path = {row["path"]: number for number, row in enumerate(rows)}
    nearest = rows[by_path["images/one.png#box=12"]]["neighbors"]["ids"][0]
    assert rows[nearest]["path"] == "images/two.png#box=1"  # the other cup


def test_the_command_line(objects, tmp_path):
    _, store = objects
    write_findings(store.root, {"images/two.png": "ood"})
    out = tmp_path / "kept.json"
    done = run_cli("export", "--flagged", "--keep", "--format", "coco", "--output", out, "--store", store.root)
    assert done.returncode == 0, done.stderr
    assert f"images written: 2, boxes: 3, in {out}" in done.stderr
    assert "biases the evaluation" in done.stderr
    done = run_cli("export", "--flagged", "--keep", "--format", "paths", "--store", store.root)
    kept = [line.partition("/images/")[2] for line in done.stdout.splitlines()]
    places = ["one.png#box=11&xywh=10,20,150,100", "one.png#box=12&xywh=200,50,120,160"]
    assert kept == ["bare.png", "one.png", *places, "two.png#box=1&xywh=10.25,20,150,100"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--format", "coco"], "needs --output PATH"),
        (["--format", "coco", "--keep", "--output", "x.json"], "select kinds of findings"),
        (["--format", "coco", "--copy", "--output", "x.json"], "--copy needs a folder"),
        (["--format", "yolo", "--output", "taken"], "taken is there already; name a new folder"),
        (["--format", "paths", "--flagged", "--copy"], "--copy is for the formats coco and yolo"),
    ],
)
def test_what_makes_no_sense(objects, tmp_path, options, said):
    _, store = objects
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    done = run_cli("export", *options, "--store", store.root, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert said in done.stderr


@pytest.mark.parametrize(("format", "copy"), [("parquet", False), ("coco", True), ("yolo", False)])
def test_an_image_that_is_gone_stops_what_needs_its_bytes(objects, tmp_path, format, copy):
    folder, store = objects
    os.unlink(folder / "images" / "two.png")
    with pytest.raises(OodAuditError, match=r"cannot read .*two\.png: no such file.*; run `ood-audit embed` again"):
        ood_audit.export_dataset(tmp_path / "out", store, format=format, copy=copy)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", ["coco", "parquet"])
def test_names_of_splits_are_only_names(tmp_path, format):
    """They are in no other folder, and none takes another's place."""
    splits = ["../../out of it", "a/b", "a_b", "data", ""]
    for n in range(len(splits)):
        shutil.copy(AIRPLANE, tmp_path / f"{n}.jpg")
    lines = [f"{tmp_path}/{n}.jpg,{split}" for n, split in enumerate(splits)]
    (tmp_path / "list.csv").write_text("\n".join(["path,split", *lines]))
    store = ood_audit.embed(tmp_path / "list.csv", store=tmp_path / "store", device="cpu").store
    before = {path for path in tmp_path.rglob("*") if tmp_path / "store" not in path.parents}
    done = ood_audit.export_dataset(tmp_path / "deep" / "out", store, format=format)
    assert done.images == len(splits)
    added = {path for path in tmp_path.rglob("*") if tmp_path / "store" not in path.parents} - before
    files = [path for path in added if path.is_file()]
    assert len(files) == len(splits)
    assert all(tmp_path / "deep" / "out" in path.parents for path in files)


def test_a_file_is_not_written_over_what_it_is_made_of(objects, tmp_path):
    folder, store = objects
    original = (folder / "instances_train.json").read_bytes()
    with pytest.raises(UsageError, match="is a source of these images"):
        ood_audit.export_dataset(folder / "instances_train.json", store, format="coco")
    assert (folder / "instances_train.json").read_bytes() == original


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes with names there")
def test_a_pipe_stays_one_and_a_link_too(objects, tmp_path):
    _, store = objects
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="is not a regular file"):
        ood_audit.export_dataset(tmp_path / "pipe", store, format="csv")
    (tmp_path / "target.csv").touch()
    (tmp_path / "link.csv").symlink_to(tmp_path / "target.csv")
    ood_audit.export_dataset(tmp_path / "link.csv", store, format="csv")
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "target.csv").read_text().startswith("path,label,split,uri")


def test_what_came_under_the_name_meanwhile_stays(objects, tmp_path, monkeypatch):
    _, store = objects

    def add(self, picture):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "precious").touch()
        return "name"

    monkeypatch.setattr("ood_audit.actions.datasets.files.Copies.add", add)
    with pytest.raises(UsageError, match="is there already"):
        ood_audit.export_dataset(tmp_path / "out", store, format="coco", copy=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_not_utf8_are_written(tmp_path):
    (tmp_path / "in" / "cup").mkdir(parents=True)
    shutil.copy(CUP, tmp_path / "in" / "cup" / os.fsdecode(b"a\xff.jpg"))
    store = ood_audit.embed(tmp_path / "in", store=tmp_path / "store", device="cpu").store
    ood_audit.export_dataset(tmp_path / "out.json", store, format="coco")
    assert content(embedded(tmp_path, tmp_path / "out.json"))[0][0] == content(store)[0][0]


def test_a_copy_that_was_removed_stays_away_whatever_is_said_of_the_other(tmp_path):
    for folder in ("cat", "dog"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        shutil.copy(CUP, tmp_path / "in" / folder / "1.jpg")
    store = ood_audit.embed(tmp_path / "in", store=tmp_path / "store", device="cpu").store
    decide(store, "cat/1.jpg", "remove")
    decide(store, "dog/1.jpg", "relabel", "cup", when="2021-01-01T00:00:00")
    ood_audit.export_dataset(tmp_path / "out.csv", store, format="csv")
    (line,) = (tmp_path / "out.csv").read_text().splitlines()[1:]
    assert "/dog/1.jpg,cup," in line


# Boxes by their names


def test_boxes_are_named_in_lists(objects, tmp_path):
    from ood_audit.classes import annotations

    folder, store = objects
    path = f"{folder}/images/one.png#box=12"
    names = [path, f"{path}&xywh=200,50,120,160", "images/one.png#box=12", "in/images/one.png#box=12"]
    found = annotations.images(store, names, tmp_path / "list.txt")
    assert [list(found[name].values()) for name in names] == [[f"file://{path}&xywh=200,50,120,160"]] * 4
    (tmp_path / "list.txt").write_text(f"{path}\n")
    done = run_cli("export", "--paths", tmp_path / "list.txt", "--store", store.root)
    assert done.stdout == f"{path}&xywh=200,50,120,160\n"
    (tmp_path / "keep.txt").write_text(done.stdout)
    done = run_cli("quarantine", tmp_path / "aside", "--paths", tmp_path / "list.txt", "--store", store.root)
    assert "1 of 1 images" in done.stderr
    assert "no file of its own" in done.stdout or "box" in done.stdout
    assert (folder / "images" / "one.png").exists()
    again = ood_audit.embed(tmp_path / "keep.txt", store=tmp_path / "again", device="cpu").store
    assert again.query("SELECT width, height FROM images").rows == [(120, 160)]
