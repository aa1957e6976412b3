"""One process a device, with two that are CPUs: every image once, also when processes are killed."""

import multiprocessing
import os
import signal
import sys
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import ood_audit
from ood_audit.embedding import local
from ood_audit.encoders.memory import leave_gpu
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
    monkeypatch.setattr("ood_audit.embedding.local.all_devices", lambda device: ["cpu", "cpu"])
    monkeypatch.setattr("ood_audit.embedding.local._WORTH_PROCESSES", 20)
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
    assert told == ["the process for cpu killed by signal 9; its images go to the other"]
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
    with pytest.raises(OodAuditError, match=r"cpu killed by signal 9, and none is left; finished work is kept, run"):
        ood_audit.embed(many, store=store, device="cpu", batch_size=4, on_progress=kill(12, 2, seen))
    kept = ood_audit.open_store(store).query("SELECT count(*) FROM images").rows[0][0]
    assert 12 <= kept < COUNT
    monkeypatch.setattr("ood_audit.embedding.local._WORTH_PROCESSES", 1000)  # the rest is worth no process
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
    assert len(told) == 1 and told[0].endswith("its images go to the other")
    assert multiprocessing.active_children() == []
    assert ood_audit.open_store(tmp_path / "store").query("SELECT count(*) FROM images").rows == [(0,)]


class OnGpu:
    """As much of an encoder as the engine looks at before it starts processes: 256 MB of weights on a GPU."""

    batch_size = 4
    identity = None

    def __init__(self):
        self.device = torch.device("cuda")
        self.moved_to: list[str] = []
        self._mean = self._std = torch.zeros(3)
        weights = torch.empty((1 << 26,), device="meta")
        self._model = SimpleNamespace(state_dict=lambda: {"weights": weights}, to=self.moved_to.append)


@pytest.fixture
def share(monkeypatch):
    """Embeds images on played GPUs; gives the device of each process, or None where this process has done it."""

    def share(gpus: int, cores: int, free_gb: float, images: int = 40) -> list[str] | None:
        encoder = OnGpu()
        started: list[str] = []
        emptied: list[str] = []

        def elsewhere(batches, identity, devices, on_note):
            assert encoder.moved_to == ["cpu"]  # before the others ask for memory
            assert encoder.device == torch.device("cpu")
            assert emptied
            started.extend(devices)
            assert sum(len(batch) for batch in batches) == images
            return iter(())

        def here(batches, its_encoder, on_note):
            assert its_encoder.device == torch.device("cuda")
            assert sum(len(batch) for batch in batches) == images
            return iter(())

        monkeypatch.setattr(local, "all_devices", lambda device: [f"cuda:{number}" for number in range(gpus)])
        monkeypatch.setattr(local, "worker_count", lambda: cores)
        monkeypatch.setattr(local, "_WORTH_PROCESSES", 20)
        monkeypatch.setattr(local, "_WORTH_SHARING", 40)
        monkeypatch.setattr(local, "_embed_here", here)
        monkeypatch.setattr("ood_audit.embedding.processes.embed_in_processes", elsewhere)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free_gb * (1 << 30)), 80 << 30))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append("emptied"))
        work: Any = iter(range(images))
        no_encoder: Any = encoder
        no_writer: Any = None
        assert list(local.embed_images(work, no_encoder, no_writer)) == []
        return started or None

    return share


def test_processes_share_a_gpu_as_its_cores_allow(share):
    assert share(gpus=1, cores=32, free_gb=79) == ["cuda:0"] * 8
    assert share(gpus=1, cores=6, free_gb=79) == ["cuda:0"] * 2
    assert share(gpus=1, cores=128, free_gb=79) == ["cuda:0"] * 8
    assert share(gpus=1, cores=4, free_gb=79) is None
    assert share(gpus=2, cores=16, free_gb=79) == ["cuda:0", "cuda:1"] * 2
    assert share(gpus=8, cores=4, free_gb=79) == [f"cuda:{number}" for number in range(8)]


def test_processes_share_a_gpu_as_its_memory_allows(share):
    # Each is planned with 2.5 GB, and a tenth of the memory is left alone.
    assert share(gpus=1, cores=32, free_gb=8.4) == ["cuda:0"] * 3
    assert share(gpus=1, cores=32, free_gb=5) is None
    assert share(gpus=1, cores=32, free_gb=0) is None
    assert share(gpus=2, cores=64, free_gb=1) == ["cuda:0", "cuda:1"]


def test_few_images_are_not_worth_it(share):
    assert share(gpus=1, cores=32, free_gb=79, images=39) is None
    assert share(gpus=2, cores=32, free_gb=79, images=39) == ["cuda:0", "cuda:1"] * 4
    assert share(gpus=2, cores=32, free_gb=79, images=19) is None


def test_an_encoder_that_has_left_the_gpu_goes_on_on_the_cpu(encoder):
    import copy

    moved = copy.copy(encoder)
    moved.device = torch.device("cuda")  # its tensors have been on the CPU all along
    moved._model = copy.deepcopy(encoder._model)
    leave_gpu(moved)
    assert moved.device == torch.device("cpu")
    pixels = [decode(file_uri(str(PHOTOS[0])), encoder.prepare).pixels]
    np.testing.assert_allclose(moved.encode_images(pixels), encoder.encode_images(pixels), atol=1e-6)
