"""Duplicates: images with the same bytes, and images that show the same picture in other bytes.

Near duplicates are neighbours by cosine whose `fingerprints` agree. The cosine alone is not enough (it is 0.99 for two
different motorcycles), and fingerprints alone would mean to decode and compare all images.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import duckdb
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ood_audit.errors import UsageError
from ood_audit.findings.fingerprints import (
    HASH_BITS,
    SHAPE,
    Fingerprints,
    correlations,
    fingerprint,
    hash_distances,
    is_flat,
)
from ood_audit.images.access import sizes
from ood_audit.images.decode import decode
from ood_audit.store import Store
from ood_audit.store.parts import iter_features
from ood_audit.store.search import build
from ood_audit.store.views import connect, limit_memory

if TYPE_CHECKING:
    import torch

# Chosen on one half of 707 pictures of Caltech-101 and of altered copies of them, and measured on the other half: 98%
# of the copies that `find` promises are within all three; no two different pictures are within 44 bits.
COSINE = 0.85
BITS = 32
_CORRELATION = 0.9
_NEIGHBOURS = 64
_BLOCK = 1024  # images at a time

_UNKNOWN, _COMPARABLE, _IS_FLAT, _UNREADABLE = range(4)  # states of a fingerprint

Rows = NDArray[np.int64]

# `first` stands for all images with its bytes.
_PICTURES = """
CREATE TABLE pictures AS
SELECT image_id, path, uri, width, height, size_bytes, mtime_ns, content_hash,
       first_value(image_id) OVER (
           PARTITION BY coalesce(content_hash, image_id) ORDER BY mtime_ns, path, image_id
       ) AS first
FROM images WHERE status = 'ok'
"""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """An image that has a duplicate.

    `cluster` counts from 1, the largest first. `kind`, `cosine` and `hash_distance` compare the image with the one to
    keep of its cluster, which itself is `exact` where all others are.
    """

    image_id: str
    path: str
    cluster: int
    kind: Literal["exact", "near"]
    keep: bool
    kept_path: str
    cosine: float
    hash_distance: int
    width: int
    height: int
    size_bytes: int


@dataclass(frozen=True)
class Duplicates:
    """The duplicates of a store.

    Attributes:
        rows: cluster by cluster, the one to keep first.
        clusters: how many clusters there are.
        images: how many images are in one.
        extra: how many of these are more than the one to keep.
        unreadable: images that were to be compared, and are gone, damaged or changed since they were embedded. They are
            in no cluster; `embed` brings the store into step.
        flat: images of one colour, or nearly: only those with the same bytes are duplicates.

    """

    rows: list[Duplicate]
    clusters: int
    images: int
    extra: int
    unreadable: int
    flat: int


def find(
    store: Store,
    *,
    cosine: float = COSINE,
    bits: int = BITS,
    near: bool = True,
    device: str = "auto",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_note: Callable[[str], None] = lambda note: None,
) -> Duplicates:
    """Find exact duplicates (the same bytes) and near ones (the same picture in other bytes).

    Near are two images with features of at least `cosine`, perceptual hashes that differ in at most `bits`, and colour
    thumbnails that correlate to 0.9; looked for among the 64 nearest of each image. That finds copies which were
    scaled, recompressed, saved in another format, made lighter, darker or richer in contrast, or cropped by up to 6% of
    each side. It does not find mirrored, turned or recoloured ones.

    The one to keep of a cluster has the most pixels; of these it is the oldest file, then the first by name. All others
    match it and not only each other, so that no chain of small steps joins different pictures.

    On a GPU of CUDA's all images are compared with all others. On a CPU this is so up to `search.EXACT` images, and an
    index finds nearly all neighbours of more.

    Memory: the features in float16 (on the GPU, where there is one), a kilobyte an image with candidates, and one block
    of the search.

    Args:
        store: the store.
        cosine: the least cosine.
        bits: how many of the 256 bits of the hashes may differ.
        near: look for near duplicates too: minutes where exact ones take seconds, for hundreds of thousands of images.
        device: where to look for near ones: `auto`, `cpu`, `cuda` or `cuda:N`; `mps` means the CPU.
        on_progress: called with the number of images done and to do.
        on_note: called when the memory of the GPU is full, and the CPU takes over.

    Raises:
        UsageError: a threshold makes no sense, or the device is not there.
        StoreError: a file of the store can't be read.

    """
    if not -1 <= cosine <= 1:
        raise UsageError(f"cosine {cosine}: choose between -1 and 1")
    if not 0 <= bits <= HASH_BITS:
        raise UsageError(f"bits {bits}: choose between 0 and {HASH_BITS}")
    parts = store.parts
    with connect(store, parts) as db:
        limit_memory(db, store)
        db.execute(_PICTURES)
        search = _Search(_Source(store, parts if near else None, db, device, on_note), db, cosine, bits)
        pairs = search.pairs(on_progress)
        clusters = _clusters(db, search, pairs)
    rows = [Duplicate(cluster=number, **row) for number, cluster in enumerate(clusters, start=1) for row in cluster]
    return Duplicates(
        rows=rows,
        clusters=len(clusters),
        images=len(rows),
        extra=len(rows) - len(clusters),
        unreadable=len(search.missing),
        flat=int((search.state == _IS_FLAT).sum()),
    )


class _Search:
    """The different images of a store, as rows 0 … N − 1: their features, and fingerprints once they are asked for."""

    def __init__(self, source: "_Source", db: duckdb.DuckDBPyConnection, cosine: float, bits: int) -> None:
        self._db = db
        self.cosine = cosine
        self.bits = bits
        self._source = source
        self.image_ids = source.image_ids
        self.state = np.full(len(self.image_ids), _UNKNOWN, np.uint8)
        self.missing: set[str] = set()  # ids of images whose file is not what was embedded
        # The system gives memory for what is written to.
        self._fingerprints = np.empty((len(self.image_ids), *SHAPE), np.uint8)

    def pairs(self, on_progress: Callable[[int, int], None]) -> tuple[Rows, Rows]:
        """The rows of images that match, each pair once."""
        total = len(self.image_ids)
        found = [np.empty((2, 0), np.int64)]
        for start in range(0, total, _BLOCK):
            count = min(_BLOCK, total - start)
            near, neighbours = self._source.neighbours(start, count, min(_NEIGHBOURS + 1, total))
            rows = np.repeat(np.arange(start, start + count), neighbours.shape[1])
            others = neighbours.ravel()
            close = (near.ravel() >= self.cosine) & (others >= 0) & (others != rows)
            pairs = np.unique(np.sort(np.stack([rows, others])[:, close], axis=0), axis=1)
            match, _ = self.match(*pairs)
            found.append(pairs[:, match])
            on_progress(start + count, total)
        one, other = np.unique(np.concatenate(found, axis=1), axis=1)
        return one, other

    def match(self, one: Rows, other: Rows) -> tuple[NDArray[np.bool_], Rows]:
        """Whether rows and others, (N,) each, look alike; and how many bits of their hashes differ."""
        self._look_at(np.unique(np.concatenate([one, other])))
        match = (self.state[one] == _COMPARABLE) & (self.state[other] == _COMPARABLE)
        distances = np.full(len(one), HASH_BITS)
        distances[match] = hash_distances(self._fingerprints[one[match]], self._fingerprints[other[match]])
        match &= distances <= self.bits
        match[match] = correlations(self._fingerprints[one[match]], self._fingerprints[other[match]]) >= _CORRELATION
        return match, distances

    def cosines(self, one: int, others: Rows) -> NDArray[np.float32]:
        """The cosines of a row to others, (N,)."""
        features = self._source.features(np.append(others, one))
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        cosines: NDArray[np.float32] = features[:-1] @ features[-1]
        return np.minimum(cosines, 1.0)

    def _look_at(self, rows: Rows) -> None:
        """Decode images and take their fingerprints, where that is still to do."""
        rows = rows[self.state[rows] == _UNKNOWN]
        if not len(rows):
            return
        by_id = {self.image_ids[row]: row for row in rows.tolist()}
        files = self._db.execute(
            "SELECT first, content_hash, list({'image_id': image_id, 'uri': uri}) FROM pictures "
            "WHERE first IN (SELECT unnest(?::VARCHAR[])) GROUP BY ALL",
            [list(by_id)],
        ).fetchall()
        self.state[rows] = _UNREADABLE
        pool = ThreadPoolExecutor(thread_name_prefix="fingerprint")
        try:
            for first, pixels in pool.map(lambda same: (same[0], self._read(*same[1:])), files):
                if pixels is not None:
                    self._fingerprints[by_id[first]] = pixels
                    self.state[by_id[first]] = _COMPARABLE
        finally:
            pool.shutdown(cancel_futures=True)
        rows = rows[self.state[rows] == _COMPARABLE]
        self.state[rows[is_flat(self._fingerprints[rows])]] = _IS_FLAT

    def _read(self, content_hash: str, files: list[dict[str, str]]) -> Fingerprints | None:
        """The fingerprint of the first of several files with the same bytes that still has them."""
        for file in files:
            decoded = decode(file["uri"], fingerprint)
            if decoded.pixels is not None and content_hash in (None, decoded.content_hash):
                return decoded.pixels
            self.missing.add(file["image_id"])
        return None


class _Source:
    """The features of the different images, on a GPU where there is one, else in a FAISS index.

    Images with the same bytes are one here: a hundred copies would take each other's place among the neighbours.

    Args:
        store: the store.
        parts: its parts; None where no features are asked for, and there are no rows.
        db: a connection with the table `pictures`.
        device: see `find`.
        on_note: see `find`.

    Attributes:
        image_ids: of the rows.

    """

    def __init__(
        self,
        store: Store,
        parts: list[Path] | None,
        db: duckdb.DuckDBPyConnection,
        device: str,
        on_note: Callable[[str], None],
    ) -> None:
        self.image_ids: list[str] = []
        if parts is None:
            return
        self._store, self._parts, self._on_note = store, parts, on_note
        self._copies = {
            row[0] for row in db.execute("SELECT image_id FROM pictures WHERE first <> image_id").fetchall()
        }
        (images,) = db.execute("SELECT count(*) FROM pictures").fetchone() or (0,)
        self._total = images - len(self._copies)
        self._gpu = _gpu(device) if self._total else None
        self._index: Any = None
        self._try(lambda: None)

    def neighbours(self, start: int, count: int, k: int) -> tuple[NDArray[np.float32], Rows]:
        """The (N, k) cosines and rows of the nearest to each of some rows, nearest first."""
        found: tuple[NDArray[np.float32], Rows]
        found = self._try(lambda: self._index.search(self._index.reconstruct_n(start, count), k))
        return found

    def features(self, rows: Rows) -> NDArray[np.float32]:
        """The features of some rows, (N, D)."""
        found: NDArray[np.float32] = self._try(lambda: self._index.reconstruct_batch(rows))
        return found

    def _try(self, work: Callable[[], Any]) -> Any:
        """Do some work with the index, which is built first where there is none; on the CPU where the GPU is full."""
        if self._gpu is not None:
            from ood_audit.encoders.device import is_out_of_memory, release_memory

            try:
                if self._index is None:
                    self._index = self._on_gpu(self._gpu)
                return work()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            self._on_note(f"no memory left on {self._gpu}: looking for near duplicates on the CPU")
            self._index = None
            release_memory(self._gpu)
            self._gpu = None
        if self._index is None:
            self._index = self._on_cpu()
        return work()

    def _on_gpu(self, device: "torch.device") -> Any:
        from ood_audit.findings.nearest import OnGpu

        return OnGpu(self._batches(), self._total, self._store.encoder.dimension, device)

    def _on_cpu(self) -> Any:
        dimension = self._store.encoder.dimension
        index, kind = build(self._batches, self._total, dimension, bits=16, on_note=self._on_note)
        if kind.kind == "ivf":
            index.make_direct_map()  # so that its features can be read again
        return index

    def _batches(self) -> Iterator[NDArray[np.float32]]:
        self.image_ids.clear()
        for ids, features in _features(self._store, self._parts, self._copies):
            self.image_ids.extend(ids)
            yield features


def _gpu(device: str) -> "torch.device | None":
    from ood_audit.encoders.device import choose_device

    chosen = choose_device(device)
    return chosen if chosen.type == "cuda" else None


def _features(store: Store, parts: list[Path], leave_out: set[str]) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
    for batch in iter_features(store, parts=parts):
        image_ids = batch.image_ids.to_pylist()
        keep = [image_id not in leave_out for image_id in image_ids]
        yield [image_id for image_id, kept in zip(image_ids, keep, strict=True) if kept], batch.features[keep]


def _clusters(db: duckdb.DuckDBPyConnection, search: _Search, pairs: tuple[Rows, Rows]) -> list[list[dict[str, Any]]]:
    """Images that show the same picture, the one to keep first: the columns of `Duplicate` but `cluster`."""
    copied = {row[0] for row in db.execute("SELECT first FROM pictures WHERE first <> image_id").fetchall()}
    rows = np.unique(np.concatenate(pairs)).tolist()
    images, gone = _images(db, copied.union(search.image_ids[row] for row in rows))
    search.missing.update(gone)
    order = {row: _preference(images[search.image_ids[row]][0]) for row in rows if search.image_ids[row] in images}
    clusters = []
    for component in _components(*pairs):
        rest = np.array(sorted(order.keys() & component.tolist(), key=order.__getitem__), np.int64)
        while len(rest):
            kept, rest = int(rest[0]), rest[1:]
            match, distances = search.match(np.full_like(rest, kept), rest)
            cosines = search.cosines(kept, rest)
            near = match & (cosines >= search.cosine)
            if near.any():
                firsts = [search.image_ids[row] for row in (kept, *rest[near].tolist())]
                likeness = zip([1.0, *cosines[near].tolist()], [0, *distances[near].tolist()], strict=True)
                clusters.append(_cluster([images.pop(first) for first in firsts], list(likeness)))
                rest = rest[~near]
    exact = [_cluster([images[first]], [(1.0, 0)]) for first in copied & images.keys() if len(images[first]) > 1]
    return sorted(clusters + exact, key=lambda rows: (-len(rows), rows[0]["path"], rows[0]["image_id"]))


def _components(one: Rows, other: Rows) -> list[Rows]:
    """The rows that pairs join, (P,) and (P,), component by component."""
    rows, ends = np.unique(np.concatenate([one, other]), return_inverse=True)
    ends = ends.astype(np.int32)  # SciPy before 1.13 takes no others
    graph = coo_array((np.ones(len(one)), (ends[: len(one)], ends[len(one) :])), shape=(len(rows), len(rows)))
    count, component = connected_components(graph, directed=False)
    ordered = rows[np.argsort(component, kind="stable")]
    return np.split(ordered, np.cumsum(np.bincount(component, minlength=count))[:-1]) if count else []


def _images(db: duckdb.DuckDBPyConnection, firsts: set[str]) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """The facts of all images with the same bytes as one of `firsts`, the oldest file first; and ids of those gone.

    What is listed may be deleted by its reader, so the file must be there, and of its old size.
    """
    answer = db.execute(
        "SELECT first, uri, image_id, path, width, height, size_bytes, mtime_ns FROM pictures "
        "WHERE first IN (SELECT unnest(?::VARCHAR[])) ORDER BY mtime_ns, path, image_id",
        [list(firsts)],
    )
    names = [column[0] for column in answer.description or []][2:]
    images: dict[str, list[dict[str, Any]]] = {}
    gone = []
    rows = answer.fetchall()
    for (first, _, *row), now in zip(rows, sizes([row[1] for row in rows]), strict=True):
        facts = dict(zip(names, row, strict=True))
        if now == facts["size_bytes"]:
            images.setdefault(first, []).append(facts)
        else:
            gone.append(facts["image_id"])
    return images, gone


def _preference(image: dict[str, Any]) -> tuple[Any, ...]:
    """Sorts the image to keep first."""
    return -image["width"] * image["height"], image["mtime_ns"], image["path"], image["image_id"]


def _cluster(same: list[list[dict[str, Any]]], likeness: list[tuple[float, int]]) -> list[dict[str, Any]]:
    """A cluster of lists of images with the same bytes, each as like the first as `likeness` (cosine, bits) says."""
    kept = same[0][0]
    only_exact = len(same) == 1
    return [
        {
            **{name: value for name, value in image.items() if name != "mtime_ns"},
            "kind": "exact" if images is same[0] and (image is not kept or only_exact) else "near",
            "keep": image is kept,
            "kept_path": kept["path"],
            "cosine": cosine,
            "hash_distance": distance,
        }
        for images, (cosine, distance) in zip(same, likeness, strict=True)
        for image in images
    ]
