"""The index by its size: exact, or inverted lists that find enough; and what is written when the disk is full."""

import errno
import json
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from ood_audit.classes.vocabulary import Vocabulary
from ood_audit.errors import StoreError
from ood_audit.images.decode import Decoded
from ood_audit.images.sources import ImageRef
from ood_audit.store import search, views, writing
from ood_audit.store.index import build_index, neighbours
from ood_audit.store.parts import PartWriter, iter_features
from tests.helpers.made import make_store, problem, unit

IMAGES = 3000


@pytest.fixture(scope="module")
def features():
    """Clustered, as those of pictures are."""
    rng = np.random.default_rng(0)
    centres = unit(rng.normal(size=(60, 24)))
    return unit(centres[rng.integers(0, 60, IMAGES)] + 0.15 * rng.normal(size=(IMAGES, 24)))


def batches(features):
    return lambda: iter(np.array_split(features, 7))


def exact(features, asked, k):
    return np.argsort(-(asked @ features.T), axis=1)[:, :k]


def test_few_are_compared_one_by_one(features):
    index, kind = search.build(batches(features), IMAGES, 24)
    assert kind.as_json() == {"kind": "flat"}
    found = index.search(features[:50], 5)[1]
    assert np.mean([len(set(a) & set(b)) for a, b in zip(found, exact(features, features[:50], 5), strict=True)]) > 4.9


@pytest.mark.parametrize("bits", [8, 16])
def test_many_are_found_in_lists(features, monkeypatch, bits):
    monkeypatch.setattr(search, "EXACT", 1000)
    index, kind = search.build(batches(features), IMAGES, 24, bits=bits)
    assert (kind.kind, kind.lists) == ("ivf", IMAGES // 40)
    assert index.ntotal == IMAGES
    assert index.code_size == 24 * bits // 8
    assert kind.probes is not None and kind.recall is not None
    assert kind.probes < IMAGES // 40  # it was not all that there is
    assert kind.recall >= 0.95
    # Measured once more, with vectors that the index has never seen.
    rng = np.random.default_rng(5)
    asked = unit(features[rng.integers(0, IMAGES, 300)] + 0.05 * rng.normal(size=(300, 24)))
    found, best = index.search(asked, 10)[1], exact(features, asked, 10)
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, best, strict=True)]) >= 0.93


def test_what_is_not_found_shows_in_the_recall(features, monkeypatch):
    """One list of 75 looked through: the figure is what it is, not what was asked for."""
    monkeypatch.setattr(search, "EXACT", 1000)
    monkeypatch.setattr(search, "RECALL", 0.0)
    monkeypatch.setattr(search, "_PROBES", (1,))
    scattered = unit(np.random.default_rng(1).normal(size=(IMAGES, 24)))
    _, kind = search.build(batches(scattered), IMAGES, 24)
    assert kind.probes == 1
    assert kind.recall is not None
    assert 0 < kind.recall < 0.6


class PlayedGpus:
    """What FAISS has for GPUs, played by the CPU. It keeps the copies that are made, and fails when it is told to."""

    def __init__(self, monkeypatch):
        self.copies: list[faiss.IndexFlatIP] = []
        self.searched = 0
        self.fails_at: str | None = None
        monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2)
        monkeypatch.setattr(search, "_gpus_work", lambda: True)
        monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", self.copy)

    def copy(self, index):
        assert isinstance(index, faiss.IndexFlatIP)  # nothing but the centres of the lists goes to a GPU
        stage = "filling" if index.ntotal else "training"
        if self.fails_at == stage:
            raise RuntimeError("Error in virtual void* allocMemory:\n\nalloc fail: out of memory on device 0\n")
        copied: Any = faiss.clone_index(index)
        real = copied.search

        def assign(features, k):
            self.searched += len(features)
            if self.fails_at == "halfway" and self.searched > IMAGES // 2:
                raise RuntimeError("out of memory on device 0")
            return real(features, k)

        copied.search = assign
        self.copies.append(copied)
        return copied


@pytest.mark.parametrize("bits", [8, 16])
def test_gpus_find_the_lists_and_the_cpu_holds_the_vectors(features, monkeypatch, bits):
    monkeypatch.setattr(search, "EXACT", 1000)
    expected, expected_kind = search.build(batches(features), IMAGES, 24, bits=bits)
    gpus = PlayedGpus(monkeypatch)
    told: list[str] = []
    index, kind = search.build(batches(features), IMAGES, 24, bits=bits, on_note=told.append)
    assert told == []
    trained, filled = gpus.copies
    assert trained.ntotal == filled.ntotal == kind.lists == IMAGES // 40
    assert gpus.searched == IMAGES
    assert isinstance(index, faiss.IndexIVFScalarQuantizer)
    assert kind == expected_kind
    np.testing.assert_array_equal(index.search(features[:100], 10)[1], expected.search(features[:100], 10)[1])


@pytest.mark.parametrize("stage", ["training", "halfway", "filling"])
def test_a_full_gpu_leaves_the_rest_to_the_cpu(features, monkeypatch, stage):
    monkeypatch.setattr(search, "EXACT", 1000)
    expected, _ = search.build(batches(features), IMAGES, 24)
    gpus = PlayedGpus(monkeypatch)
    gpus.fails_at = stage
    told: list[str] = []
    index, kind = search.build(batches(features), IMAGES, 24, on_note=told.append)
    assert len(told) == 1
    assert told[0].startswith("FAISS cannot use the GPU")
    assert told[0].endswith("out of memory on device 0")
    assert index.ntotal == IMAGES
    assert kind.recall is not None and kind.recall >= 0.95
    np.testing.assert_array_equal(index.search(features[:100], 10)[1], expected.search(features[:100], 10)[1])


def test_faiss_never_opens_the_file(features, tmp_path):
    """On Windows it cannot open a path that is not ASCII; here it could, so that its own function must not be asked."""
    index, _ = search.build(batches(features), IMAGES, 24)
    path = tmp_path / "Bilder 図" / "features.faiss"
    path.parent.mkdir()
    search.write_index(index, path)
    np.testing.assert_array_equal(search.read_index(path).search(features[:9], 5)[1], index.search(features[:9], 5)[1])
    faiss.write_index(index, str(tmp_path / "theirs.faiss"))  # as version 0.1.0 did
    assert path.read_bytes() == (tmp_path / "theirs.faiss").read_bytes()


@pytest.fixture
def store(features, tmp_path):
    vocabulary = Vocabulary(tuple((f"class {k}",) for k in range(4)))
    _, _, text = problem(4, 1, dimension=24)
    return make_store(tmp_path / "store", features[:2500], [f"{i}.png" for i in range(2500)], vocabulary, text)


def test_the_store_keeps_what_its_index_is(store, monkeypatch):
    monkeypatch.setattr(search, "EXACT", 1000)
    assert build_index(store)
    meta = json.loads(store.index.with_name("index.json").read_text())
    assert meta["kind"] == "ivf"
    assert meta["recall"] >= 0.95
    assert meta["images"] == 2500
    batch = next(iter_features(store))
    nearest, cosines = neighbours(store, batch.features[:200], 3)
    ids = batch.image_ids.to_pylist()
    assert np.mean([row[0] == image_id for row, image_id in zip(nearest, ids, strict=False)]) > 0.97
    np.testing.assert_allclose(cosines[:, 0], 1, atol=0.02)


def test_the_stores_index_goes_through_files_of_pythons(store, monkeypatch):
    def from_python(argument, *others):
        assert not any(isinstance(value, (str, Path)) for value in (argument, *others))

    for name in ("write_index", "read_index"):
        real = getattr(faiss, name)
        monkeypatch.setattr(faiss, name, lambda *values, real=real: (from_python(*values), real(*values))[1])
    batch = next(iter_features(store))
    assert neighbours(store, batch.features[:1], 1)[0] == [[batch.image_ids[0].as_py()]]


def test_embed_does_not_train_one(store, monkeypatch):
    from ood_audit.store import index

    monkeypatch.setattr(index, "EXACT", 1000)
    assert not build_index(store, limit_bytes=1 << 30)
    assert not store.index.exists()


def test_a_full_disk_leaves_the_old_index_or_none(store, monkeypatch):
    build_index(store)
    before = store.index.read_bytes()
    store.index.with_name("index.json").unlink()

    def full(data):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        writer = getattr(faiss, "PyCallbackIOWriter")  # noqa: B009  its stubs do not have it
        patch.setattr(faiss, "PyCallbackIOWriter", lambda write: writer(full))
        with pytest.raises(StoreError, match="free some space"), writing(store.root, "images"):
            build_index(store)
    assert store.index.read_bytes() == before
    assert not store.index.with_name("index.json").exists()  # so that it is built again
    assert [path for path in store.root.rglob("*") if ".tmp" in path.name] == []
    assert len(neighbours(store, next(iter_features(store)).features[:1], 3)[0][0]) == 3


def test_readable_images_are_counted_once_for_the_same_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = Vocabulary((("cat",), ("dog",)))
    store = make_store(tmp_path / "store", np.eye(5), [f"cat/{i}.jpg" for i in range(5)], words, np.eye(2, 5))
    assert views.count_readable(store) == 5
    first = store.parts
    with PartWriter(store, "run") as writer:
        writer.remove(ImageRef("file:///made-up/cat/0.jpg", "/made-up", "cat/0.jpg", 1, 1))
    assert views.count_readable(store) == 4
    assert views.count_readable(store, first) == 5
    monkeypatch.setattr(views, "connect", pytest.fail)
    assert (views.count_readable(store), views.count_readable(store, first)) == (4, 5)
    gone = tmp_path / "store" / "images" / "part-00000009.parquet"
    with pytest.raises(StoreError, match="merged parts of the store in the meantime"):
        views.count_readable(store, [*first, gone])


def test_only_a_store_with_changes_is_queried_for_what_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = Vocabulary((("cat",), ("dog",)))
    store = make_store(tmp_path / "store", np.eye(5), [f"cat/{i}.jpg" for i in range(5)], words, np.eye(2, 5))
    first = store.parts
    with monkeypatch.context() as patch:
        patch.setattr(views, "connect", pytest.fail)
        assert views.outdated_rows(store, first) == {}
        assert views.count_readable(store, first) == 5
    images = [ImageRef(f"file:///made-up/cat/{i}.jpg", "/made-up", f"cat/{i}.jpg", 1, 1) for i in (0, 7)]
    with PartWriter(store, "run") as writer:
        writer.add(images[1], Decoded(error="damaged"), None, supersedes=False)
    with monkeypatch.context() as patch:
        patch.setattr(views, "connect", pytest.fail)
        assert views.count_readable(store) == 5  # of six
    with PartWriter(store, "run") as writer:
        writer.remove(images[0])
    assert {part: ids.to_pylist() for part, ids in views.outdated_rows(store, store.parts).items()} == {
        first[0]: [images[0].image_id]
    }
    assert views.outdated_rows(store, first) == {}
    assert views.count_readable(store) == 4
