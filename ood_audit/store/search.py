"""FAISS indexes by size: what searches exactly while that is quick, and what finds nearly all neighbours beyond it."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import faiss
import numpy as np
from numpy.typing import NDArray

from ood_audit.encoders.gpu import choose_gpu
from ood_audit.text import printable
from ood_audit.values import JsonObject

_T = TypeVar("_T")

Floats = NDArray[np.float32]
EXACT = 100_000  # images; beyond, comparing each with each takes hours
RECALL = 0.95  # the least share of the ten nearest that is found, over `_QUERIES` images
_NEAREST = 10
_MARGIN = 0.01  # `probes` is chosen for a recall that is higher by this, as other images are asked for later
_QUERIES = 256
_PER_LIST = 40  # vectors to train each list with: FAISS asks for 39
_PROBES = (8, 16, 32, 64, 128, 256, 512, 1024)
_TRAIN_ROUNDS = 10
_CODES = {8: faiss.ScalarQuantizer.QT_8bit, 16: faiss.ScalarQuantizer.QT_fp16}


@dataclass(frozen=True)
class Kind:
    """What an index is.

    Attributes:
        kind: `flat` (exact, float16) or `ivf` (inverted lists).
        lists: how many lists there are; None for a flat index.
        probes: how many of the lists a search looks through; None for a flat index.
        recall: the share of the ten nearest that a search finds, measured against exact search over images of the index
            that `probes` was not chosen by; None for a flat index.

    """

    kind: str
    lists: int | None = None
    probes: int | None = None
    recall: float | None = None

    def as_json(self) -> JsonObject:
        """What is known, for index.json."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def build(
    batches: Callable[[], Iterable[Floats]],
    total: int,
    dimension: int,
    *,
    bits: int = 8,
    on_note: Callable[[str], None] = lambda note: None,
) -> tuple[faiss.Index, Kind]:
    """An index by inner product of vectors of length 1; row i of it is the i-th vector.

    GPUs find the lists and which of them each vector belongs to, and hold nothing but the centres of the lists. The
    vectors themselves are stored on the CPU, so that an index may be larger than any GPU.

    Args:
        batches: gives the (N, D) float32 vectors, again and again: to train with, to measure with, and to add.
        total: how many vectors there are.
        dimension: D.
        bits: of a dimension in the lists, 8 or 16; a flat index has 16.
        on_note: called when a GPU fails, as when its memory is full, and the CPU takes over.

    """
    if total <= EXACT:
        index: faiss.Index = faiss.IndexScalarQuantizer(dimension, _CODES[16], faiss.METRIC_INNER_PRODUCT)
        for features in batches():
            index.add(features)
        return index, Kind("flat")
    lists = max(1, min(int(4 * math.sqrt(total)), total // _PER_LIST))
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(dimension), dimension, lists, _CODES[bits], faiss.METRIC_INNER_PRODUCT
    )
    index.cp.niter = _TRAIN_ROUNDS
    rows = np.sort(np.random.default_rng(0).choice(total, min(total, _PER_LIST * lists), replace=False))
    queries = np.sort(np.random.default_rng(1).choice(total, min(total, 2 * _QUERIES), replace=False))
    filling = _Filling(index, on_note)
    filling.train(np.concatenate(list(_chosen(batches(), rows))))
    asked = np.concatenate(list(_chosen(batches(), queries)))
    nearest = _Nearest(asked)
    for features in batches():
        filling.add(features)
        nearest.see(features)
    return index, _probes(index, asked, nearest.rows)


def _chosen(batches: Iterable[Floats], rows: NDArray[np.int64]) -> Iterator[Floats]:
    """The vectors with these numbers, which are in order."""
    start = 0
    for features in batches:
        low, high = np.searchsorted(rows, (start, start + len(features)))
        yield features[rows[low:high] - start]
        start += len(features)


class _Filling:
    """Trains an index of inverted lists and fills it, with the help of all GPUs until one of them fails."""

    def __init__(self, index: faiss.Index, on_note: Callable[[str], None]) -> None:
        self._index = index
        self._on_note = on_note
        self._centres: faiss.Index | None = None
        if _gpus_work():
            self._centres = self._try(lambda: _on_gpus(faiss.IndexFlatIP(index.d)))

    def train(self, vectors: Floats) -> None:
        if self._centres is not None:
            self._index.clustering_index = self._centres
            self._try(lambda: self._index.train(vectors))
            self._index.clustering_index = None  # FAISS keeps a bare pointer
        if not self._index.is_trained:
            self._index.train(vectors)
        if self._centres is not None:
            self._centres = self._try(lambda: _on_gpus(faiss.downcast_index(self._index.quantizer)))

    def add(self, features: Floats) -> None:
        features = np.ascontiguousarray(features, np.float32)
        centres = self._centres
        found = self._try(lambda: centres.search(features, 1)) if centres is not None else None
        if found is None:
            self._index.add(features)
        else:
            lists = np.ascontiguousarray(found[1][:, 0], np.int64)
            self._index.add_core(len(features), faiss.swig_ptr(features), None, faiss.swig_ptr(lists))

    def _try(self, work: Callable[[], _T]) -> _T | None:
        """What some work on the GPUs gives; None where it fails, after which the CPU does it all."""
        try:
            return work()
        except RuntimeError as error:
            self._centres = None
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            self._on_note(
                f"FAISS cannot use the GPU, and continues on the CPU: {printable((lines or ['?'])[-1])[:200]}"
            )
            return None


def _gpus_work() -> bool:
    """Whether FAISS has a GPU to use. On one that is too old for its kernels it ends the process, so torch is asked."""
    if not faiss.get_num_gpus():
        return False
    gpu = choose_gpu("auto")
    return gpu is not None and gpu.type == "cuda"


def _on_gpus(index: faiss.Index) -> faiss.Index:
    """A copy of a flat index on every GPU; FAISS shares searches among them."""
    return faiss.index_cpu_to_all_gpus(index)


class _Nearest:
    """The nearest of some vectors, found exactly while all pass by."""

    def __init__(self, asked: Floats) -> None:
        self._asked = asked
        self._best = np.empty((len(asked), 0), np.float32)
        self.rows = np.empty((len(asked), 0), np.int64)
        self._seen = 0

    def see(self, features: Floats) -> None:
        cosines = np.concatenate([self._best, self._asked @ features.T], axis=1)
        coming = np.broadcast_to(np.arange(self._seen, self._seen + len(features)), (len(self._asked), len(features)))
        rows = np.concatenate([self.rows, coming], axis=1)
        keep = np.argsort(-cosines, axis=1)[:, : _NEAREST + 1]
        self._best, self.rows = np.take_along_axis(cosines, keep, axis=1), np.take_along_axis(rows, keep, axis=1)
        self._seen += len(features)


def _probes(index: faiss.Index, asked: Floats, nearest: NDArray[np.int64]) -> Kind:
    """Set how many lists are looked through: the fewest that find enough for every other vector asked for."""
    probes = 1
    for probes in (p for p in (*_PROBES, index.nlist) if p <= index.nlist):
        index.nprobe = probes
        if _recall(index, asked[::2], nearest[::2]) >= RECALL + _MARGIN:
            break
    return Kind("ivf", index.nlist, probes, round(_recall(index, asked[1::2], nearest[1::2]), 4))


def _recall(index: faiss.Index, asked: Floats, nearest: NDArray[np.int64]) -> float:
    """The share of the nearest found, but for the vector itself, which both find first."""
    found = index.search(asked, nearest.shape[1])[1]
    there = [len(np.intersect1d(one[1:], other)) for one, other in zip(nearest, found, strict=True)]
    recall: float = np.mean(there).item() / max(1, nearest.shape[1] - 1)
    return recall


def write_index(index: faiss.Index, path: Path) -> None:
    """Write an index through a file of Python's: FAISS itself cannot open a path that is not ASCII on Windows."""
    with path.open("wb") as file:
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))


def read_index(path: Path) -> faiss.Index:
    """Read an index that `write_index`, or FAISS itself, has written."""
    with path.open("rb") as file:
        return faiss.read_index(faiss.PyCallbackIOReader(file.read))
