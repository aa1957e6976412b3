"""Sources on a local S3 server and a local HTTP server: outcomes, requests, faults."""

import io
import json
import os
import tarfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ood_audit
from ood_audit.errors import OodAuditError, UsageError
from ood_audit.images import access, http, object_store
from ood_audit.images.sources import ScanNotes, resolve, scan
from tests.conftest import EXAMPLES
from tests.helpers.cli import invoke
from tests.helpers.embedding import rows, run
from tests.helpers.gs import gs  # noqa: F401
from tests.helpers.s3 import BUCKET, s3  # noqa: F401

PHOTOS = [path.read_bytes() for path in sorted((EXAMPLES / "images" / "airplane").glob("*.jpg"))[:6]]
SOURCE = f"s3://{BUCKET}/in"


@pytest.fixture(autouse=True)
def warm(encoder, monkeypatch):
    monkeypatch.setattr("ood_audit.encoders.loading.load_encoder", lambda *args, **options: encoder)
    monkeypatch.setattr("ood_audit.encoders.loading.load_same_encoder", lambda *args, **options: encoder)


@pytest.fixture
def bucket(s3):  # noqa: F811
    for number, photo in enumerate(PHOTOS):
        s3.put(f"in/{'cat' if number < 3 else 'dog'}/{number}.jpg", photo)
    s3.put("in/notes.md", b"x")
    s3.put("in/.hidden/x.jpg", PHOTOS[0])
    s3.put("other/x.jpg", PHOTOS[0])
    return s3


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


# Google Cloud Storage


def test_a_folder_of_google_cloud_storage(gs, store):  # noqa: F811
    for number, photo in enumerate(PHOTOS[:4]):
        gs.put(f"in/{'cat' if number < 2 else 'a dog'}/{number}.jpg", photo)
    source = gs.uri("in")
    assert run(source, store) == {"added": 4}
    assert rows(store, "path, folder")[-1] == ("cat/1.jpg", "cat")
    assert run(source, store) == {"unchanged": 4}
    gs.delete("in/cat/0.jpg")
    gs.put("in/cat/1.jpg", PHOTOS[0])
    assert run(source, store) == {"unchanged": 2, "changed": 1, "removed": 1}


def test_datasets_of_google_cloud_storage(gs, store):  # noqa: F811
    box = {"id": 3, "image_id": 1, "category_id": 1, "bbox": [5, 5, 90, 90]}
    values = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [box]}
    gs.put("coco/coco.json", json.dumps(values | {"categories": [{"id": 1, "name": "plane"}]}).encode())
    gs.put("coco/a.jpg", PHOTOS[0])
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": [{"bytes": PHOTOS[1], "path": "b"}], "label": ["plane"]}), sink)
    gs.put("hub/data/train-00000-of-00001.parquet", sink.getvalue())
    assert run([gs.uri("coco/coco.json"), gs.uri("hub")], store) == {"added": 3}
    assert sorted(rows(store, "folder, split"), key=str) == [("plane", "train"), ("plane", None), ("plane", None)]


@pytest.mark.parametrize(("key", "message"), [("nothing", "nothing there"), ("../other", "nothing there")])
def test_what_is_not_in_google_cloud_storage_is_said(gs, key, message):  # noqa: F811
    with pytest.raises(UsageError, match=message):
        resolve(gs.uri(key))


def test_a_server_that_cannot_be_reached_is_said(monkeypatch):
    monkeypatch.setattr(object_store, "_RETRIED", 1)
    with pytest.raises(OodAuditError, match="cannot be reached; the images in the store are unchanged"):
        resolve("gs://bucket/in?anonymous=true&endpoint_override=127.0.0.1%3A1&scheme=http")


# S3


def test_every_edit_has_its_outcome(bucket, store):
    assert run(SOURCE, store) == {"added": 6}
    assert rows(store, "uri, source, path, folder")[0] == (f"{SOURCE}/cat/0.jpg", SOURCE, "cat/0.jpg", "cat")
    bucket.requests.clear()
    assert run(SOURCE + "/", store) == {"unchanged": 6}
    assert bucket.requests["GET"] <= 6  # listings
    assert bucket.requests["HEAD"] <= 2
    bucket.put("in/cat/0.jpg", PHOTOS[0] + b"x")
    bucket.put("in/cat/1.jpg", b"no picture")
    bucket.delete("in/dog/3.jpg")
    bucket.put("in/odd name #?é.JPG", PHOTOS[3])
    assert run(SOURCE, store) == {"changed": 1, "unreadable": 1, "removed": 1, "added": 1, "unchanged": 3}
    assert run(SOURCE, store) == {"unchanged": 5, "unreadable": 1}
    for uri, digest in rows(store, "uri, content_hash", "status = 'ok'"):
        assert access.read(uri).data in (PHOTOS[0] + b"x", *PHOTOS)
        assert len(digest) == 32


def test_each_image_is_read_once(bucket, store):
    reads: Counter[str] = Counter()

    def count(method, path):
        if method == "GET" and path.endswith(".jpg"):
            reads[path] += 1

    bucket.fail = count
    run(SOURCE, store)
    assert len(reads) == 6
    assert set(reads.values()) == {1}


def test_an_object_that_goes_between_listing_and_reading(bucket, store):
    def gone(method, path):
        return 404 if method in ("GET", "HEAD") and path.endswith("/4.jpg") else None

    bucket.fail = gone
    assert run(SOURCE, store) == {"added": 5, "unreadable": 1}
    assert rows(store, "path, error", "status = 'error'") == [("dog/4.jpg", "no such object any more")]
    bucket.fail = lambda method, path: None
    bucket.delete("in/dog/4.jpg")
    assert run(SOURCE, store) == {"unchanged": 5, "removed": 1}


def test_an_object_that_may_not_be_read(bucket, store):
    bucket.fail = lambda method, path: 403 if path.endswith("/4.jpg") else None
    assert run(SOURCE, store) == {"added": 5, "unreadable": 1}
    assert "access denied" in rows(store, "error", "status = 'error'")[0][0]


def test_a_server_that_stops_midway(bucket, store, monkeypatch):
    """What was read is kept, what was not is a row with its error, and the next run reads just that."""
    monkeypatch.setattr("ood_audit.store.parts.PART_ROWS", 1)
    seen = []

    def fail(method, path):
        if method == "GET" and path.endswith(".jpg"):
            seen.append(path)
        return 400 if len(seen) > 2 and path.endswith(".jpg") else None

    bucket.fail = fail
    counts = run(SOURCE, store, batch_size=1)
    assert counts["added"] + counts["unreadable"] == 6
    assert 1 <= counts["added"] <= 2
    bucket.fail = lambda method, path: None
    assert run(SOURCE, store) == {"changed": counts["unreadable"], "unchanged": counts["added"]}
    assert [status for _, status in rows(store)] == ["ok"] * 6


def test_an_unreachable_bucket_changes_nothing(bucket, store):
    run(SOURCE, store)
    before = sorted(store.rglob("*.parquet"))
    bucket.stop()
    with pytest.raises(OodAuditError, match=r"cannot read s3://bucket/in: cannot be reached") as raised:
        run(SOURCE, store)
    assert "not-for-any-log" not in str(raised.value)
    bucket.start_again()
    bucket.fail = lambda method, path: 403 if method == "GET" else None
    with pytest.raises(OodAuditError, match="access denied"):
        run(SOURCE, store)
    bucket.fail = lambda method, path: None
    with pytest.raises(UsageError, match="nothing there"):
        run(f"s3://{BUCKET}/inn", store)
    assert sorted(store.rglob("*.parquet")) == before
    assert len(rows(store)) == 6


def test_a_listing_that_breaks_off_removes_nothing(bucket, store):
    run(SOURCE, store)
    listings = []

    def fail(method, path):
        if method == "GET" and path == f"/{BUCKET}":
            listings.append(path)
            return 403 if len(listings) >= 5 else None  # its kind, its top twice, a folder, the other one
        return None

    bucket.fail = fail
    with pytest.raises(OodAuditError, match="cannot list"):
        run(SOURCE, store)
    bucket.fail = lambda method, path: None
    assert run(SOURCE, store) == {"unchanged": 6}


def test_single_objects_lists_and_shards(bucket, store, tmp_path):
    run([f"{SOURCE}/cat/0.jpg", f"{SOURCE}/dog"], store)
    assert len(rows(store)) == 4
    bucket.put("in/list.txt", b"cat/0.jpg\ndog/3.jpg\ncat/none.jpg\n")
    (tmp_path / "urls.csv").write_text(f"url\n{SOURCE}/cat/1.jpg\nftp://nowhere/x.jpg\n")
    assert run([f"{SOURCE}/list.txt", tmp_path / "urls.csv"], store) == {"unchanged": 2, "added": 1, "unreadable": 2}
    shard = io.BytesIO()
    with tarfile.open(fileobj=shard, mode="w") as tar:
        for number, photo in enumerate(PHOTOS[:3]):
            info = tarfile.TarInfo(f"cat/{number}.jpg")
            info.size = len(photo)
            tar.addfile(info, io.BytesIO(photo))
    bucket.put("shards/a.tar", shard.getvalue())
    assert run(f"s3://{BUCKET}/shards", store) == {"added": 3}
    assert run(f"s3://{BUCKET}/shards/a.tar", store) == {"unchanged": 3}
    uri = f"s3://{BUCKET}/shards/a.tar#cat/1.jpg"
    assert rows(store, "path, folder", f"uri = '{uri}'") == [("a.tar/cat/1.jpg", "cat")]
    assert access.read(uri).data == PHOTOS[1]
    kept = tmp_path / "keep.txt"
    kept.write_text("\n".join(uri for (uri,) in rows(store, "uri", "status = 'ok'")))
    assert set(run(kept, store)) == {"unchanged"}


def test_the_report_shows_remote_pictures(bucket, store):
    run(SOURCE, store)
    done = invoke("report", "--store", store, "--top", "2", "--no-auto")
    assert done.returncode == 0, done.stderr
    assert "data:image/jpeg" in (store / "reports" / "latest" / "report.html").read_text()
    done = invoke("quarantine", store.parent / "away", "--kind", "ood", "--store", store)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://key:not-for-any-log@bucket/in", "leave credentials out"),
        ("s3:///in", "names no bucket"),
        ("ftp://host/x", "not supported"),
        ("s3://bucket/in?colour=red", "no option colour"),
    ],
)
def test_uris_that_are_refused(uri, message):
    with pytest.raises(UsageError, match=message) as raised:
        resolve(uri)
    assert "not-for-any-log" not in str(raised.value)


def test_the_endpoint_may_be_in_the_uri(bucket, store, monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    query = f"?endpoint_override=127.0.0.1:{bucket.port}&scheme=http"
    assert run(SOURCE + query, store) == {"added": 6}
    assert run(SOURCE + query, store) == {"unchanged": 6}
    (uri,) = rows(store, "uri", "path = 'cat/0.jpg'")[0]
    object_store._filesystem.cache_clear()
    assert access.read(uri).data == PHOTOS[0]


# HTTP


class Handler(BaseHTTPRequestHandler):
    files: dict[str, tuple[bytes, dict[str, str]]] = {}  # noqa: RUF012
    status: dict[str, int] = {}  # noqa: RUF012
    asked: list[tuple[str, str]] = []  # noqa: RUF012
    slow = 0.0

    def do_GET(self):
        self.asked.append((self.command, self.path))
        time.sleep(self.slow)
        path = self.path.partition("?")[0]
        status = self.status.get(path, 200 if path in self.files else 404)
        body, headers = self.files.get(path, (b"", {})) if status == 200 else (b"", {})
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


@pytest.fixture
def host(monkeypatch):
    for name, value in (("files", {}), ("status", {}), ("asked", []), ("slow", 0.0)):
        monkeypatch.setattr(Handler, name, value)
    for number, photo in enumerate(PHOTOS):
        Handler.files[f"/p/{number}.jpg"] = (photo, {"Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_lists_of_urls(host, store, tmp_path):
    names = tmp_path / "urls.parquet"
    urls = [f"{host}/p/{number}.jpg" for number in range(5)] + [f"{host}/p/none.jpg"]
    pq.write_table(pa.table({"url": urls}), names)
    assert run(names, store) == {"added": 5, "unreadable": 1}
    assert rows(store, "uri, error", "status = 'error'") == [(urls[-1], "not found (http 404)")]
    gets = [path for method, path in Handler.asked if method == "GET" and path != "/p/none.jpg"]
    assert len(gets) == len(set(gets)) == 5
    Handler.asked.clear()
    assert run(names, store) == {"unchanged": 5, "unreadable": 1}
    assert {path for method, path in Handler.asked if method == "GET"} == {"/p/none.jpg"}
    Handler.files["/p/0.jpg"] = (PHOTOS[5], {"ETag": '"1"'})
    assert run(names, store) == {"changed": 1, "unchanged": 4, "unreadable": 1}
    assert run(names, store) == {"unchanged": 5, "unreadable": 1}
    Handler.files["/p/0.jpg"] = (PHOTOS[5], {"ETag": '"2"'})
    assert run(names, store)["changed"] == 1
    pq.write_table(pa.table({"url": urls[:3]}), names)
    assert run(names, store) == {"unchanged": 3, "removed": 3}


def test_remote_lists_and_single_urls(host, store):
    Handler.files["/p/list.txt"] = (f"0.jpg\n{host}/p/1.jpg\n".encode(), {})
    assert run([f"{host}/p/list.txt", f"{host}/p/2.jpg#part"], store) == {"added": 3}
    assert rows(store, "path") == [("0.jpg",), ("2.jpg",), (f"{host}/p/1.jpg",)]
    with pytest.raises(UsageError, match="cannot read the list"):
        run(f"{host}/p/none.csv", store)
    with pytest.raises(UsageError, match="download it first"):
        run(f"{host}/p/x.tar", store)


def test_yolo_at_a_url_lists_its_images(host, store):
    Handler.files |= {
        "/p/yolo/data.yaml": (b"path: .\ntrain: train.txt\nval: images\nnames: {0: plane}\n", {}),
        "/p/yolo/train.txt": (b"./images/0.jpg\n./images/1.jpg\n", {}),
        "/p/yolo/images/0.jpg": (PHOTOS[0], {}),
        "/p/yolo/images/1.jpg": (PHOTOS[1], {}),
        "/p/yolo/labels/0.txt": (b"0 0.5 0.5 0.5 0.5\n", {}),
        "/p/images": (b"<html>\n<a href='0.jpg'>\n", {}),
        "/p/folder.yaml": (b"train: images\nnames: [plane]\n", {}),
    }
    assert run(f"{host}/p/yolo/data.yaml", store) == {"added": 3}
    found = rows(store, "folder, split", "NOT contains(uri, '#box=')")
    assert sorted(found) == [("", "train"), ("plane", "train")]
    with pytest.raises(UsageError, match=r"nothing is where .*: images; .*at https:// of a .txt"):
        run(f"{host}/p/folder.yaml", store)


def test_secrets_of_presigned_urls_are_not_stored(host, store, tmp_path):
    secret = "X-Amz-Signature=deadbeef&X-Amz-Credential=me&Expires=99"
    (tmp_path / "urls.txt").write_text(f"{host}/p/0.jpg?{secret}\n{host}/p/1.jpg?size=large&sig=deadbeef\n")
    assert run(tmp_path / "urls.txt", store) == {"added": 2}
    assert ("GET", f"/p/0.jpg?{secret}") in Handler.asked  # but used
    assert [uri for (uri,) in rows(store, "uri")] == [f"{host}/p/0.jpg", f"{host}/p/1.jpg?size=large"]
    assert not any(b"deadbeef" in path.read_bytes() for path in store.rglob("*") if path.is_file())


def test_a_host_that_is_down_keeps_its_images(host, store, tmp_path, monkeypatch):
    monkeypatch.setattr(http, "_TIMEOUT", (1, 1))
    (tmp_path / "urls.txt").write_text("".join(f"{host}/p/{number}.jpg\n" for number in range(3)))
    run(tmp_path / "urls.txt", store)
    for status in (503, 403):
        Handler.status = dict.fromkeys(Handler.files, status)
        result = ood_audit.embed(tmp_path / "urls.txt", store=store, device="cpu")
        assert +result.counts == {"unchanged": 3}
        assert list(result.unreadable_folders) == [host]
        assert [status for _, status in rows(store)] == ["ok"] * 3


def test_an_answer_that_does_not_come(host, store, monkeypatch):
    monkeypatch.setattr(http, "_TIMEOUT", (0.3, 0.3))
    monkeypatch.setattr(http, "_TRIES", 0)
    http._local.__dict__.clear()
    Handler.slow = 1.0
    with pytest.raises(OodAuditError, match="no answer in time"):
        run(f"{host}/p/0.jpg", store)


def test_urls_have_one_name():
    assert http.canonical("HTTPS://Example.COM/a b/é.jpg?x=1#top") == "https://example.com/a%20b/%C3%A9.jpg?x=1"
    assert http.canonical("https://h/a%20b.jpg?") == "https://h/a%20b.jpg"
    with pytest.raises(UsageError, match="password"):
        http.canonical("https://me:secret@h/x.jpg")


def test_scan_names_what_it_can_not_ask_for(host):
    Handler.status["/p/0.jpg"] = 500
    (image,) = scan(resolve(f"{host}/p/0.jpg"), ScanNotes())
    assert image.size_bytes < 0
    assert os.path.basename(image.path) == "0.jpg"


# Datasets elsewhere


@pytest.fixture
def dataset(s3):  # noqa: F811
    """COCO, YOLO and Parquet datasets on the server."""
    for number in (0, 1):
        s3.put(f"coco/val2017/{number}.jpg", PHOTOS[number])
        s3.put(f"yolo/images/train/{number}.jpg", PHOTOS[number])
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 300, "height": 200} for n in (0, 1, 2)]
    boxes = [{"id": 5, "image_id": 0, "category_id": 1, "bbox": [10, 20, 150, 100]}]
    values = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cup"}]}
    s3.put("coco/annotations/instances_val2017.json", json.dumps(values).encode())
    s3.put("yolo/labels/train/1.txt", b"0 0.5 0.5 0.25 0.5\n")
    s3.put("yolo/data.yaml", b"train: images/train\nval: images/val\nnames: [cup]\n")
    image = pa.array(
        [{"bytes": PHOTOS[0], "path": "a.jpg"}], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    out = io.BytesIO()
    pq.write_table(pa.table({"image": image, "label": ["cup"]}), out)
    s3.put("hub/data/test-00000-of-00001.parquet", out.getvalue())
    return s3


def test_datasets_in_an_object_store(dataset, store):
    columns = "path, folder, split"
    assert run(f"s3://{BUCKET}/coco/annotations/instances_val2017.json", store) == {"added": 3}
    assert sorted(rows(store, columns)) == [
        ("val2017/0.jpg", "cup", "val"),
        ("val2017/0.jpg#box=5", "cup", "val"),
        ("val2017/1.jpg", "", "val"),
    ]
    assert rows(store, "uri")[0] == (f"s3://{BUCKET}/coco/val2017/0.jpg",)
    assert run(f"s3://{BUCKET}/coco/annotations/instances_val2017.json", store) == {"unchanged": 3}
    other = store.with_name("yolo")
    assert run(f"s3://{BUCKET}/yolo/data.yaml", other) == {"added": 3}
    assert rows(other, "path, split", "folder = 'cup' AND contains(uri, '#box=')") == [
        ("images/train/1.jpg#box=0", "train")
    ]
    third = store.with_name("hub")
    for source in ("hub", "hub/data/test-00000-of-00001.parquet"):
        expected = {"added": 1} if source == "hub" else {"unchanged": 1}
        assert run(f"s3://{BUCKET}/{source}", third) == expected
    assert rows(third, "folder, split") == [("cup", "test")]


def test_coco_over_http(host, store):
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 300, "height": 200} for n in (0, 1, 77)]
    boxes = [{"id": 5, "image_id": 0, "category_id": 1, "bbox": [10, 20, 150, 100]}]
    values = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cup"}]}
    Handler.files["/p/test.json"] = (json.dumps(values).encode(), {})
    assert run(f"{host}/p/test.json", store) == {"added": 3, "unreadable": 1}
    assert rows(store, "path, folder, split", "contains(uri, '#box=')") == [("0.jpg#box=5", "cup", "test")]
    assert run(f"{host}/p/test.json", store) == {"unchanged": 3, "unreadable": 1}


def test_a_listing_of_a_dataset_that_fails_changes_nothing(dataset, store):
    run(f"s3://{BUCKET}/yolo/data.yaml", store)
    dataset.fail = lambda method, path: 403 if method == "GET" and path == f"/{BUCKET}" else None
    with pytest.raises(OodAuditError, match="cannot list"):
        run(f"s3://{BUCKET}/yolo/data.yaml", store)
    dataset.fail = lambda method, path: None
    assert run(f"s3://{BUCKET}/yolo/data.yaml", store) == {"unchanged": 3}


def test_many_are_taken_by_few_in_their_order_and_a_few_all_at_once():
    together = threading.Barrier(32)
    with ThreadPoolExecutor(32) as pool:
        assert list(access.by_few(pool, lambda item: together.wait(20) >= 0 and item, range(32))) == list(range(32))
        for count in (0, 5000):
            assert list(access.by_few(pool, lambda item: -item, range(count))) == [-item for item in range(count)]


def test_few_are_ended_after_the_item_at_hand():
    """Not after the whole task: behind a slow network that would be sixteen reads after a Ctrl-C."""
    begun = []

    def slow(item):
        begun.append(item)
        time.sleep(0.02)
        return item

    with ThreadPoolExecutor(2) as pool:
        results = access.by_few(pool, slow, range(4000))  # 16 a task
        assert next(results) == 0
        before = len(begun)
        results.close()
    assert len(begun) <= before + 4
