"""One process a device, with two that are CPUs: every image once, also when processes are killed."""

import multiprocessing
import os
import signal
import sys
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest

import ood_audit
from ood_audit.errors import OodAuditError
from ood_audit.images.decode import decode
from ood_audit.images.sources import file_uri
from ood_audit.store.parts import iter_features
from tests.conftest import EXAMPLES

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
PHOTOS = [path for path in sorted((EXAMPLES / "images").rglob("*.jpg")) if path.read_bytes().endswith(b"\xff\xd9")]
COUNT = 60


@pytest.fixture
def many(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(COUNT):
        (folder / f"{i:03}.jpg").write_bytes(PHOTOS[i % len(PHOTOS)].read_bytes() + i.to_bytes(4, "big"))
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture
def two(monkeypatch, encoder):
    """Two devices, worth their processes from 20 images on; the encoder of this process is the session's."""
    monkeypatch.setattr("ood_audit.encoders.clip.load_encoder", lambda *args, **options: encoder)
    monkeypatch.setattr("ood_audit.encoders.clip.load_same_encoder", lambda *args, **options: encoder)
    monkeypatch.setattr("ood_audit.engines.local.all_devices", lambda device: ["cpu", "cpu"])
    monkeypatch.setattr("ood_audit.engines.local._WORTH_PROCESSES", 20)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def kill(when: int, count: int, seen: list[int]):
    """An `on_progress` that kills `count` processes when `when` images are done, and records how many there are."""

    def on_progress(stage: str, done: int = 0, total: int | None = None, /) -> None:
        if stage != "embedding" or not done:
            return
        children = multiprocessing.active_children()
        seen.append(len(children))
        if done == when:
            for child in children[:count]:
                assert child.pid is not None
                os.kill(child.pid, signal.SIGKILL)

    return on_progress


def check_each_once(store) -> None:
    rows = ood_audit.open_store(store).query("SELECT image_id, path, status FROM images").rows
    assert len({image_id for image_id, _, _ in rows}) == len(rows)
    expected = {f"{i:03}.jpg": "ok" for i in range(COUNT)} | {"broken.jpg": "error"}
    assert {path: status for _, path, status in rows} == expected
    written = Counter(
        path for part in (store / "images").glob("*.parquet") for path in pq.read_table(part)["path"].to_pylist()
    )
    assert set(written.values()) == {1}


def test_one_is_killed_and_the_other_does_its_share(many, tmp_path, two, encoder):
    seen: list[int] = []
    told: list[str] = []
    store = tmp_path / "store"
    watch = kill(8, 1, seen)
    result = ood_audit.embed(many, store=store, device="cpu", batch_size=4, on_progress=watch, on_note=told.append)
    assert max(seen) == 2
    assert told == ["the process for cpu killed by signal 9; its images are given to the other"]
    assert dict(+result.counts) == {"added": COUNT, "unreadable": 1}
    check_each_once(store)
    assert multiprocessing.active_children() == []
    # The features are those of this process.
    for batch in iter_features(result.store):
        for path, feature in list(zip(batch.paths.to_pylist(), batch.features, strict=True))[::12]:
            expected = encoder.encode_images([decode(file_uri(str(many / path)), encoder.prepare).pixels])[0]
            np.testing.assert_allclose(feature, expected, atol=1e-3)


def test_all_are_killed_and_the_next_run_goes_on(many, tmp_path, two, monkeypatch):
    seen: list[int] = []
    store = tmp_path / "store"
    with pytest.raises(OodAuditError, match=r"cpu killed by signal 9, and none is left; what was done is kept, run"):
        ood_audit.embed(many, store=store, device="cpu", batch_size=4, on_progress=kill(12, 2, seen))
    kept = ood_audit.open_store(store).query("SELECT count(*) FROM images").rows[0][0]
    assert 12 <= kept < COUNT
    monkeypatch.setattr("ood_audit.engines.local._WORTH_PROCESSES", 1000)  # the rest is worth no process
    seen.clear()
    result = ood_audit.embed(many, store=store, device="cpu", on_progress=kill(0, 0, seen))
    assert set(seen) == {0}
    assert result.counts["unchanged"] >= kept - 1
    check_each_once(store)


def test_what_a_process_could_not_do_is_told(many, tmp_path, two, encoder, monkeypatch):
    """As when the weights have gone, or memory has: each says so, in one line, and nothing is written."""
    from dataclasses import replace

    gone = replace(encoder.identity, model=f"local-dir:{tmp_path / 'gone'}")
    monkeypatch.setattr(encoder, "identity", gone)
    told: list[str] = []
    with pytest.raises(OodAuditError, match=r"the process for cpu failed: .*no open_clip_config.json.* none is left"):
        ood_audit.embed(many, store=tmp_path / "store", device="cpu", on_note=told.append)
    assert len(told) == 1 and told[0].endswith("its images are given to the other")
    assert multiprocessing.active_children() == []
    assert ood_audit.open_store(tmp_path / "store").query("SELECT count(*) FROM images").rows == [(0,)]
