"""One process a device, with two that are CPUs: every image once, also when processes are killed."""

import multiprocessing
import os
import signal
import sys
from collections import Counter
from multiprocessing.context import ForkServerContext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import ood_audit
from ood_audit.embedding import local
from ood_audit.encoders.memory import processes_that_fit
from ood_audit.errors import OodAuditError
from ood_audit.images.decode import decode
from ood_audit.images.sources import file_uri
from ood_audit.store.parts import iter_features
from tests.conftest import EXAMPLES
from tests.encoders.test_clip import MODELS, save
from tests.helpers.pretend_cuda import pretend

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


@pytest.fixture(scope="module")
def warm():
    """A context whose processes are forked from one that has imported what they need, which spawned ones do anew."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ood_audit.embedding.pipeline", "tests.embedding.test_processes"])
    return context


@pytest.fixture
def forked(monkeypatch, warm):
    monkeypatch.setattr("ood_audit.embedding.processes.get_context", lambda method: warm)


@pytest.fixture
def two(monkeypatch, encoder):
    """Two devices, worth their processes from 20 images on; the encoder of this process is the session's."""
    monkeypatch.setattr("ood_audit.encoders.loading.load_encoder", lambda *args, **options: encoder)
    monkeypatch.setattr("ood_audit.encoders.loading.load_same_encoder", lambda *args, **options: encoder)
    monkeypatch.setattr(local, "_gpus", lambda device: ["cpu", "cpu"])
    monkeypatch.setattr(local, "call_apart", lambda look, loader, device: (encoder.identity, 8, 1))
    monkeypatch.setattr(local, "_WORTH_PROCESSES", 20)
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


def test_all_are_killed_and_the_next_run_goes_on(many, tmp_path, two, forked, monkeypatch):
    seen: list[int] = []
    store = tmp_path / "store"
    with pytest.raises(OodAuditError, match=r"cpu killed by signal 9, and none is left; finished work is kept, run"):
        ood_audit.embed(many, store=store, device="cpu", batch_size=4, on_progress=kill(12, 2, seen))
    kept = ood_audit.open_store(store).query("SELECT count(*) FROM images").rows[0][0]
    assert 12 <= kept < COUNT
    monkeypatch.setattr(local, "_WORTH_PROCESSES", 1000)  # the rest is worth no process
    seen.clear()
    result = ood_audit.embed(many, store=store, device="cpu", on_progress=kill(0, 0, seen))
    assert set(seen) == {0}
    assert result.counts["unchanged"] >= kept - 1
    check_each_once(store)


def test_what_a_process_could_not_do_is_told(many, tmp_path, two, forked, encoder, monkeypatch):
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


@pytest.fixture
def share(monkeypatch):
    """Loads an encoder for embedding on played GPUs; gives the device of each process, or None for this process."""

    def share(gpus: int, cores: int, room: int = 99, images: int = 40) -> list[str] | None:
        asked: list[str] = []

        def look(function, loader, device):
            asked.append(device)
            return "identity", 256, room

        def loader(device):
            return asked.append(device)

        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(local, "worker_count", lambda: cores)
        monkeypatch.setattr(local, "_WORTH_PROCESSES", 20)
        monkeypatch.setattr(local, "_WORTH_SHARING", 40)
        monkeypatch.setattr(local, "call_apart", look)
        no_loader: Any = loader
        loaded = local.load(no_loader, "auto", images)
        assert set(asked) == {"auto"}
        return list(loaded.devices) if isinstance(loaded, local.Workers) else None

    return share


def test_processes_share_a_gpu_as_its_cores_allow(share):
    assert share(gpus=1, cores=32) == ["cuda:0"] * 16
    assert share(gpus=1, cores=3) == ["cuda:0"] * 2
    assert share(gpus=1, cores=128) == ["cuda:0"] * 16
    assert share(gpus=1, cores=2) is None
    assert share(gpus=2, cores=8) == ["cuda:0", "cuda:1"] * 2
    assert share(gpus=8, cores=4) == [f"cuda:{number}" for number in range(8)]
    assert share(gpus=0, cores=32) is None


def test_processes_share_a_gpu_as_its_memory_allows(share):
    assert share(gpus=1, cores=32, room=3) == ["cuda:0"] * 3
    assert share(gpus=1, cores=32, room=1) is None
    assert share(gpus=2, cores=64, room=1) == ["cuda:0", "cuda:1"]
    assert share(gpus=2, cores=64, room=0) is None  # the GPU does not work, or has no room for the model


@pytest.mark.parametrize(("free_gb", "fit"), [(79, 28), (8.4, 3), (5, 1), (0, 0)])
def test_processes_are_planned_with_the_free_memory(monkeypatch, free_gb, fit):
    """Each with 2.5 GB, for 256 MB of weights; a tenth of the memory is left alone."""
    weights = torch.empty((1 << 26,), device="meta")
    on_gpu: Any = SimpleNamespace(
        device=torch.device("cuda"), _model=SimpleNamespace(state_dict=lambda: {"weights": weights})
    )
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free_gb * (1 << 30)), 80 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    assert processes_that_fit(on_gpu) == fit


def test_few_images_are_not_worth_it(share):
    assert share(gpus=1, cores=32, images=39) is None
    assert share(gpus=2, cores=32, images=39) == ["cuda:0", "cuda:1"] * 8
    assert share(gpus=2, cores=32, images=19) is None


class PretendContext(ForkServerContext):
    """Starts processes that have two pretend GPUs."""

    def Process(self, *, target, args, daemon):  # type: ignore[override]
        return super().Process(target=on_pretend_gpus, args=(target, *args), daemon=daemon)


def on_pretend_gpus(target, *args):
    """Run something where two GPUs are full from the third batch on."""
    from ood_audit.encoders import clip

    encoded, calls = clip.ClipEncoder.encode, []
    with pretend() as gpu:

        def encode(encoder, pixels):
            calls.append(len(pixels))
            gpu.most_images = None if len(calls) < 3 else 0
            return encoded(encoder, pixels)

        gpu.count = 2
        setattr(clip.ClipEncoder, "encode", encode)  # noqa: B010
        target(*args)


def features_of(store) -> dict[str, Any]:
    return {
        path: feature
        for batch in iter_features(store)
        for path, feature in zip(batch.paths.to_pylist(), batch.features, strict=True)
    }


def test_processes_embed_on_gpus_and_this_one_keeps_clear_of_them(many, tmp_path, warm, monkeypatch):
    """It makes no CUDA context. When their GPUs have no room for an image, they go on on the CPU and say so."""
    model = save(tmp_path / "model", MODELS["vit"])
    expected = ood_audit.embed(many, store=tmp_path / "cpu", model=model, device="cpu", precision="fp32").store
    monkeypatch.setattr("ood_audit.embedding.processes.get_context", lambda method: PretendContext())
    monkeypatch.setattr(local, "_WORTH_PROCESSES", 20)
    monkeypatch.setattr(local, "worker_count", lambda: 2)
    started: list[Any] = []
    told: list[str] = []
    with pretend() as gpu:
        gpu.count = 2
        options: dict[str, Any] = {"model": model, "batch_size": 4, "on_note": told.append}
        result = ood_audit.embed(many, store=tmp_path / "gpu", on_start=started.append, **options)
        assert (gpu.calls, gpu.copied) == (Counter(), [])
    assert [one.device for one in started] == ["cuda:0, cuda:1 (2 processes)"]
    assert dict(+result.counts) == {"added": COUNT, "unreadable": 1}
    assert result.store.encoder.precision == "bf16"
    check_each_once(tmp_path / "gpu")
    there, here = features_of(result.store), features_of(expected)
    assert min(there[path] @ here[path] for path in here) > 0.999
    full = "out of memory on {}: it has no room for a single image; continuing on the CPU"
    moved = [note for note in told if "single image" in note]  # others say that a batch was halved before
    assert sorted(moved) == [full.format("cuda:0"), full.format("cuda:1")]
    assert result.notes == told
