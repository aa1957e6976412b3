"""`embed --engine ray` on a cluster of two nodes: as on one machine, also where workers, nodes and drivers die."""

import logging
import os
import signal
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ood_audit
from ood_audit.embedding import ray as engine
from ood_audit.embedding.work import Work
from ood_audit.encoders.identity import EncoderIdentity
from ood_audit.errors import EncoderError, OodAuditError, UsageError
from ood_audit.images.decode import Decoded, decode
from ood_audit.images.sources import ImageRef
from ood_audit.store import create_store
from ood_audit.store.parts import iter_features
from tests.conftest import run_process
from tests.helpers.cli import invoke
from tests.helpers.made import unit
from tests.whole import test_crash
from tests.whole.test_crash import check_complete, check_whole, has_parts, many, server, warm  # noqa: F401

ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one core each."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    small = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    cluster.second = cluster.add_node(**small)
    ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def stand_in(notes: Path) -> type:
    """Workers that leave their process ids in a folder, have no model to load, and die of images named "fatal".

    Nor do they import torch, which would take most of the time of these tests: there are many workers in them.
    """

    class Pixels:
        batch_limit = None

        def prepare(self, image: Image.Image) -> np.ndarray:
            return np.asarray(image.resize((8, 8)))

        def submit(self, uris: list[str]) -> Future[Any]:
            decoded = [decode(uri, self.prepare) for uri in uris]
            pixels = [image.pixels for image in decoded if image.pixels is not None]
            features = unit(np.stack(pixels).reshape(len(pixels), -1) + 1.0) if pixels else None
            done: Future[Any] = Future()
            done.set_result((decoded, features))
            return done

    class StandIn(engine._Encoder):  # a local class, so that it travels by value
        def _load(self, workers):
            return Pixels(), Pixels()

        def _embed(self, uris):
            (notes / str(os.getpid())).touch()
            if any("fatal" in uri for uri in uris):
                os.kill(os.getpid(), signal.SIGKILL)
            return super()._embed(uris)

    return StandIn


@pytest.fixture
def notes(tmp_path, monkeypatch):
    notes = tmp_path / "notes"
    notes.mkdir()
    monkeypatch.setattr(engine, "_Encoder", stand_in(notes))
    return notes


@pytest.fixture
def store(tmp_path):
    """An empty store of the stand-in's features."""
    identity = EncoderIdentity("stand-in", None, "none", "0" * 64, {}, "none", "fp32", 8 * 8 * 3)
    return create_store(tmp_path / "store", identity).root


def run(sources: Path, store: Path, **options: Any) -> dict[str, int]:
    """One `embed` on the cluster; its counts without zeros."""
    return dict(+ood_audit.embed(sources, store=store, engine="ray", **options).counts)


def features(store: Path) -> dict[str, np.ndarray]:
    return {
        image_id: feature
        for batch in iter_features(ood_audit.open_store(store))
        for image_id, feature in zip(batch.image_ids.to_pylist(), batch.features, strict=True)
    }


def rows(store: Path) -> list[tuple[Any, ...]]:
    columns = "uri, source, path, folder, width, height, format, size_bytes, mtime_ns, content_hash, status, error"
    return ood_audit.open_store(store).query(f"SELECT {columns} FROM images ORDER BY uri").rows


def test_the_same_rows_as_on_one_machine_and_not_a_word_of_rays(cluster, many, tmp_path, warm):  # noqa: F811
    """On a cluster that is started for the run, by a process of its own: nothing of Ray's reaches the terminal."""
    # One piece of work, so that one worker loads the model
    arguments = ["embed", many, "--store", tmp_path / "ray", "--batch-size", "66"]
    done = run_process(*arguments, "--engine", "ray", "--model", "starter", RAY_ADDRESS="local")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("64 added, 0 unchanged, 0 changed, 0 removed, 2 unreadable; ")
    assert done.stdout.count("\n") == 1
    model, preprocessing, *hints = done.stderr.splitlines()
    assert model.startswith("model: starter (CLIP (EfficientNet), gelu, 384 dimensions), fp32 on ")
    assert model.endswith(" of a Ray cluster")
    assert preprocessing.startswith("preprocessing: ")
    assert [hint.partition(":")[0] for hint in hints] == ["to list the unreadable files", "next"]
    ood_audit.embed(many, store=tmp_path / "local", device="cpu")
    assert rows(tmp_path / "ray") == rows(tmp_path / "local")
    ours, theirs = features(tmp_path / "ray"), features(tmp_path / "local")
    assert ours.keys() == theirs.keys()
    assert min(ours[key] @ theirs[key] for key in theirs) >= 0.9999
    check_complete(tmp_path / "ray", many)
    # Nothing new: no worker is asked for
    for path in many.rglob("*.*"):
        if path.stem in ("broken", "empty"):
            path.unlink()
    assert run(many, tmp_path / "ray", on_start=pytest.fail) == {"unchanged": 64, "removed": 2}


def test_interrupted_then_a_worker_is_killed(cluster, notes, many, store):  # noqa: F811
    def interrupt(stage: str, done: int = 0, total: int | None = None, /) -> None:
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(many, store, batch_size=1, on_progress=interrupt)
    kept = check_whole(store)
    assert 18 <= kept <= 20  # two may be the unreadable ones
    before = set(notes.iterdir())
    killed: list[int] = []

    def kill(stage: str, done: int = 0, total: int | None = None, /) -> None:
        if done and not killed and (workers := set(notes.iterdir()) - before):
            killed.append(int(workers.pop().name))
            os.kill(killed[0], signal.SIGKILL)

    counts = run(many, store, batch_size=1, on_progress=kill)
    assert killed
    assert counts == {"added": 64 - kept, "unchanged": kept, "unreadable": 2}
    check_complete(store, many)


def test_an_image_that_ends_every_worker_is_a_row(cluster, notes, many, store, monkeypatch):  # noqa: F811
    images = sorted(many.glob("*.jpg"))[:6]
    for path in many.rglob("*.*"):
        if path not in images:
            path.unlink()
    images[3].rename(many / "fatal.jpg")
    monkeypatch.setattr(engine, "_TRIES", 1)
    assert run(many, store, batch_size=1) == {"added": 5, "unreadable": 1}
    assert len(list(notes.iterdir())) >= 2  # one died with the others, and one alone
    errors = ood_audit.open_store(store).query("SELECT path, error FROM images WHERE status = 'error'").rows
    assert errors == [("fatal.jpg", "ends the process that reads it")]


def test_a_worker_of_another_version(cluster, many, store, monkeypatch):  # noqa: F811
    """As where it can't load the encoder: one line, and nothing of it in the store."""
    monkeypatch.setattr(engine, "__version__", "0.0.1")
    with pytest.raises(EncoderError, match=r"a Ray worker on \S+ cannot embed: it has ood-audit .*, not 0\.0\.1"):
        run(many, store)
    assert check_whole(store) == 0


@pytest.mark.parametrize(("images", "rows"), [(3, 8), (80, 10), (2_000, 250), (2_100, 256), (150_000, 256)])
def test_a_few_images_are_shared_out_among_all_workers(images, rows):
    """Each worker gets four pieces or more, of at least a batch and at most 32; and no image is lost on the way."""
    items = [Work(ImageRef(f"file:///{i}.jpg", "/", f"{i}.jpg", 1, 1), True) for i in range(images)]
    work, found = engine._piece_rows(iter(items), engine.Plan("cpu", {"a": (1, 1), "b": (1, 1)}), 8)
    assert found == rows
    assert list(work) == items


def test_the_next_piece_is_decoded_while_the_last_is_embedded():
    """A worker is called by a thread for each of two pieces: neither waits until the other is done."""
    both = threading.Barrier(2, timeout=20)

    class Waiting(engine._Encoder):
        batch_limit = None

        def __init__(self) -> None:
            itself: Any = self
            self._encoder = self._pipeline = itself
            self._batch_size = 8
            self._submitting = threading.Lock()

        def submit(self, uris: list[str]) -> Future[Any]:
            done: Future[Any] = Future()

            def finish() -> None:
                both.wait()
                done.set_result(([Decoded(error="none")], None))

            threading.Thread(target=finish).start()
            return done

    worker = Waiting()
    with ThreadPoolExecutor(2) as threads:
        pieces = list(threads.map(lambda uri: list(worker._embed([uri])), ["a", "b"]))
    assert [len(rows) for rows in pieces] == [1, 1]


def on_cluster(address: str, notes: str, arguments: list[str], out: str) -> None:
    """The command line in a child, on the test's cluster."""
    os.environ["RAY_ADDRESS"] = address
    engine._PIECE_BATCHES["cpu"] = 1
    setattr(engine, "_Encoder", stand_in(Path(notes)))  # noqa: B010
    test_crash.command(arguments, out, None)


def test_the_driver_is_killed_then_a_node_is_lost(cluster, notes, server, many, store, tmp_path):  # noqa: F811
    """The last of the cluster: the node stays away."""
    out = tmp_path / "out"
    arguments = ["embed", str(many), "--store", str(store), "--engine", "ray", "--batch-size", "2"]
    child = server.Process(target=on_cluster, args=(cluster.address, str(notes), arguments, str(out)))
    child.start()
    while child.is_alive() and not has_parts(store, 2):
        time.sleep(0.01)
    child.kill()
    child.join()
    kept = check_whole(store)
    assert 0 < kept < 64, out.read_text()
    assert (store / "images" / ".work.arrow.tmp").exists()
    lost: list[Any] = []

    def lose(stage: str, done: int = 0, total: int | None = None, /) -> None:
        if done and not lost:
            lost.append(cluster.second)
            cluster.remove_node(cluster.second, allow_graceful=False)

    counts = run(many, store, batch_size=1, on_progress=lose)
    assert lost
    assert counts == {"added": 64 - kept, "unchanged": kept, "unreadable": 2}
    check_complete(store, many)


def test_errors_have_a_remedy(many, tmp_path, monkeypatch):  # noqa: F811
    def fails(match: str, error: type[OodAuditError] = UsageError, **options: Any) -> None:
        with pytest.raises(error, match=match):
            run(many, tmp_path / "store", **options)

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = invoke("embed", many, "--store", tmp_path / "store", "--engine", "ray")
    assert (done.returncode, done.stderr) == (2, "error: --engine ray needs Ray: pip install 'ood-audit[ray]'\n")
    monkeypatch.undo()
    with pytest.raises(UsageError, match="`engine` dask: choose local or ray"):
        ood_audit.embed(many, store=tmp_path / "store", engine="dask")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    fails(r"RAY_ADDRESS=ray://head:10001 .*ray job submit")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    fails("cannot reach the Ray cluster at RAY_ADDRESS=127.0.0.1:1: .* refused.* unset RAY_ADDRESS", OodAuditError)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    nodes = [
        {"Alive": True, "NodeID": "a", "Resources": {"CPU": 4.0}},
        {"Alive": False, "NodeID": "b", "Resources": {"GPU": 8.0}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    fails("`device` mps with `engine` ray", device="mps")
    fails("the Ray cluster has no GPU", device="cuda")


def played_nodes(monkeypatch, *resources: dict[str, float]) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    nodes = [{"Alive": True, "NodeID": f"node{i}", "Resources": values} for i, values in enumerate(resources)]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)


def test_workers_share_the_gpus_and_take_their_part_of_the_cores(monkeypatch):
    played_nodes(monkeypatch, {"CPU": 64.0, "GPU": 4.0}, {"CPU": 12.0, "GPU": 1.0}, {"CPU": 32.0})
    plan = engine._plan("auto")
    assert plan == engine._plan("cuda")
    assert (plan.kind, plan.sharing, plan.gpus) == ("cuda", 8, 0.125)
    assert plan.count == 40
    assert plan.cpus == 1  # every node has so many for each of its workers
    assert [plan.cores_on(f"node{i}") for i in (0, 1)] == [2, 1]
    assert [plan.cores_on(node) for node in ("node2", "joined later")] == [1, 1]
    plan = engine._plan("cpu")
    assert (plan.kind, plan.count, plan.cpus, plan.gpus) == ("cpu", 108, 1, 0)
    played_nodes(monkeypatch, {"CPU": 32.0})
    assert engine._plan("auto") == engine.Plan("cpu", {"node0": (32, 32)})


def test_a_node_of_few_cores_neither_sets_all_nor_is_asked_for_more_than_it_has(monkeypatch):
    played_nodes(monkeypatch, {"CPU": 4.0, "GPU": 8.0}, {"CPU": 96.0, "GPU": 4.0})
    plan = engine._plan("cuda")
    assert (plan.sharing, plan.count) == (12, 144)
    assert 0 < plan.cpus * 8 * 12 <= 4
    assert 12 * plan.gpus <= 1
    assert [plan.cores_on(f"node{i}") for i in (0, 1)] == [1, 2]
    played_nodes(monkeypatch, {"GPU": 2.0})
    assert engine._plan("cuda").cpus == 0
    assert engine._plan("cuda").count == 2


@pytest.mark.parametrize(("room", "sharing"), [(17, 16), (3, 3), (0, 1)])
def test_no_more_workers_share_a_gpu_than_its_memory_holds(monkeypatch, room, sharing):
    played_nodes(monkeypatch, {"CPU": 64.0, "GPU": 2.0})
    identity = EncoderIdentity("stand-in", None, "none", "0" * 64, {}, "none", "fp32", 192)
    asked: list[Any] = []

    def ask(plan, function, *arguments):
        asked.append((plan.sharing, function))
        return (identity.to_json(), room) if function is engine._identify else room

    monkeypatch.setattr(engine, "_ask_a_worker", ask)
    for workers in (engine.load_encoder("starter"), engine.load_same_encoder(identity)):
        assert workers.identity == identity
        assert (workers.plan.sharing, workers.plan.count) == (sharing, 2 * sharing)
        assert workers.plan.gpus == 1 / sharing
        assert workers.plan.cores_on("node0") == 32 // sharing
        assert workers.device == f"{2 * sharing} GPU workers of a Ray cluster"
    assert asked == [(16, engine._identify), (16, engine._room)]
    played_nodes(monkeypatch, {"CPU": 2.0, "GPU": 1.0})
    assert engine.load_same_encoder(identity).plan.sharing == 1
    assert len(asked) == 2  # there is nothing to ask
