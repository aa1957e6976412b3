"""Stores on a local S3 server: what one machine writes another one reads; locks; uploads that fail."""

import json
from collections import Counter

import pyarrow.parquet as pq
import pytest

import ood_audit
from ood_audit.errors import StoreError, UsageError
from ood_audit.images import object_store
from ood_audit.store import open_store, remote, writing
from ood_audit.store.files import MIRRORS
from ood_audit.store.parts import iter_features
from tests.conftest import EXAMPLES
from tests.helpers.cli import invoke
from tests.helpers.s3 import BUCKET, s3  # noqa: F401

LABELS = EXAMPLES / "classes.txt"
STORE = f"s3://{BUCKET}/audit"


@pytest.fixture(autouse=True)
def warm(encoder, monkeypatch, s3):  # noqa: F811
    monkeypatch.setattr("ood_audit.encoders.loading.load_encoder", lambda *args, **options: encoder)
    monkeypatch.setattr("ood_audit.encoders.loading.load_same_encoder", lambda *args, **options: encoder)
    monkeypatch.setattr("ood_audit.store.parts.PART_ROWS", 2)
    monkeypatch.setattr(MIRRORS, "_by_root", {})


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """Go on as on another machine: with another cache."""

    def move(name):
        monkeypatch.setenv("OOD_AUDIT_CACHE", str(tmp_path / name))
        monkeypatch.setattr(MIRRORS, "_by_root", {})
        object_store._filesystem.cache_clear()

    return move


def opened_mirror():
    mirror, _ = MIRRORS.find(open_store(STORE).root) or (None, "")
    assert isinstance(mirror, remote.Mirror)
    return mirror


def run(sources, **options):
    return dict(+ood_audit.embed(sources, store=STORE, device="cpu", batch_size=1, **options).counts)


def check(images):
    """Every image is in the remote store once, and the mirror is what is there."""
    opened = open_store(STORE)
    ids = [i for batch in iter_features(opened) for i in batch.image_ids.to_pylist()]
    assert len(ids) == len(set(ids)) == images
    assert opened.query("SELECT count(*), count(DISTINCT uri) FROM images").rows == [(images, images)]
    return opened


def names(s3, prefix=""):  # noqa: F811
    return [key.removeprefix("audit/") for key in s3.keys(f"audit/{prefix}")]


def test_another_machine_reads_and_goes_on(pictures, s3, elsewhere):  # noqa: F811
    assert run(pictures) == {"added": 6}
    assert names(s3, "images/") == [f"images/part-{number:08d}.parquet" for number in (1, 2, 3)]
    assert names(s3, "locks/") == []
    elsewhere("second")
    check(6)
    done = invoke("report", "--store", STORE, "--labels", LABELS, "--no-auto", "--top", "2")
    assert done.returncode == 0, done.stderr
    assert "reports/latest/report.html" in names(s3)
    sorted((pictures / "airplane").iterdir())[0].unlink()
    assert run(pictures) == {"unchanged": 5, "removed": 1}
    elsewhere("cache")  # the first one again
    opened = check(5)
    assert len(opened.query("SELECT * FROM scores").rows) == 6  # as of the report
    assert invoke("status", "--store", STORE).stdout.splitlines()[2].split() == ["store", STORE]
    assert invoke("export", "--store", STORE, "--kind", "ood", "--output", pictures / "list.txt").returncode == 0
    s3.requests.clear()
    assert len(open_store(STORE).query("SELECT path FROM images").rows) == 5
    assert s3.requests["GET"] <= 25  # a listing, and small files that have just changed; no part


def test_what_is_gone_there_goes_here(pictures, s3, elsewhere):  # noqa: F811
    run(pictures)
    invoke("report", "--store", STORE, "--labels", LABELS, "--no-auto", "--name", "old")
    elsewhere("second")
    assert (open_store(STORE).reports / "old").is_dir()
    elsewhere("cache")
    for name in names(s3, "reports/old"):
        s3.delete(f"audit/{name}")
    elsewhere("second")
    assert not (open_store(STORE).reports / "old").exists()
    invoke("report", "--store", STORE, "--labels", LABELS, "--no-auto", "--score", "mcm")
    (path,) = (name for name in names(s3, "scores/") if name.endswith(".parquet") and "mcm" in s3_text(s3, name))
    sorted((pictures / "airplane").iterdir())[0].unlink()
    run(pictures)
    invoke("report", "--store", STORE, "--labels", LABELS, "--no-auto")
    assert path not in names(s3) or "mcm" not in path  # outdated scores are dropped there too


def s3_text(server, name):
    recipe = name.replace(".parquet", ".json")
    return server.client.get_object(Bucket=BUCKET, Key=f"audit/{recipe}")["Body"].read().decode()


def token(s3, **values):  # noqa: F811
    s3.put("audit/locks/images/other.json", json.dumps({"pid": 7, "host": "other", "since": "noon", **values}).encode())


def test_a_second_writer_is_refused(pictures, s3, monkeypatch):  # noqa: F811
    run(pictures)
    token(s3)
    with pytest.raises(StoreError, match=r"process 7 on other, since noon\) is writing to s3://bucket/audit"):
        run(pictures)
    assert names(s3, "locks/") == ["locks/images/other.json"]
    done = invoke("report", "--store", STORE, "--labels", LABELS, "--no-auto")  # scores have a lock of their own
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(remote, "STALE_SECONDS", -1.0)
    monkeypatch.setattr(remote._Lock, "check", lambda self: None)
    assert run(pictures) == {"unchanged": 6}
    assert names(s3, "locks/") == []


def test_a_writer_that_died_on_this_machine_is_known(pictures, s3):  # noqa: F811
    run(pictures)
    token(s3, mirror=opened_mirror().identity())
    assert run(pictures) == {"unchanged": 6}
    assert names(s3, "locks/") == []


def test_a_writer_that_is_taken_for_dead_stops(pictures, s3, monkeypatch):  # noqa: F811
    """Its token is gone when it looks again: it must not write any more."""
    monkeypatch.setattr(remote, "REFRESH_SECONDS", 0.01)
    run(pictures)
    mirror = opened_mirror()
    with pytest.raises(StoreError, match="could not be kept up"), writing(open_store(STORE).root, "scores"):
        (lock,) = mirror._locks
        for _ in range(100):
            for name in names(s3, "locks/"):
                s3.delete(f"audit/{name}")
            if lock._lost:
                break
            lock._done.wait(0.01)
        open_store(mirror.root).set_current(report="x")
    assert "current.json" not in names(s3)


@pytest.mark.parametrize("at", range(1, 8))
def test_an_upload_that_fails(pictures, s3, elsewhere, at):  # noqa: F811
    """Whichever: the remote store is whole, and the next run does the rest."""
    uploads = []

    def fail(method, path):
        if method in ("PUT", "POST") and "/locks/" not in path:
            uploads.append(path)
            return 403 if len(uploads) >= at else None
        return None

    s3.fail = fail
    with pytest.raises(StoreError, match=r"s3://bucket/audit.*access denied|run the same command again"):
        run(pictures)
    s3.fail = lambda method, path: None
    assert names(s3, "locks/") == []
    elsewhere("second")
    kept = 0
    if "store.json" in names(s3):
        kept = open_store(STORE).query("SELECT count(*) FROM images").rows[0][0]
        for name in names(s3, "images/"):
            assert pq.read_metadata(open_store(STORE).root / name).num_rows == 2
    elsewhere("cache")
    assert run(pictures) == dict(+Counter(added=6 - kept, unchanged=kept))
    check(6)
    elsewhere("second")
    check(6)


def test_a_server_that_is_down(pictures, s3):  # noqa: F811
    run(pictures)
    s3.stop()
    with pytest.raises(StoreError, match=r"s3://bucket/audit: cannot be reached") as raised:
        open_store(STORE)
    assert "not-for-any-log" not in str(raised.value)
    s3.start_again()
    check(6)


def test_places_where_no_store_can_be(pictures, s3):  # noqa: F811
    s3.put("photos/1.jpg", b"x")
    with pytest.raises(StoreError, match="other things in it"):
        ood_audit.embed(pictures, store=f"s3://{BUCKET}/photos", device="cpu")
    with pytest.raises(UsageError, match="over HTTP"):
        open_store("https://example.com/audit")
    with pytest.raises(StoreError, match="no store at s3://bucket/none"):
        open_store(f"s3://{BUCKET}/none")


def test_a_store_inside_of_its_source(pictures, s3):  # noqa: F811
    s3.put("1.jpg", sorted((pictures / "airplane").iterdir())[0].read_bytes())
    s3.put("audit/stray.jpg", b"x")
    s3.delete("audit/stray.jpg")
    assert run(f"s3://{BUCKET}") == {"added": 1}
    s3.put("audit/reports/stray.jpg", b"x")
    assert run(f"s3://{BUCKET}") == {"unchanged": 1}
