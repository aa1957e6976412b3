"""Duplicates: images with the same bytes, and images that show the same picture in other bytes.

Near duplicates are neighbours by cosine whose `fingerprints` agree. The cosine alone is not enough (it is 0.99 for two
different motorcycles), and fingerprints alone would mean to decode and compare all images.

Features are blind to orientation: those of a picture that was turned may be far off. Turned and mirrored copies are
looked for by the perceptual hashes that `embed` keeps, and confirmed by their fingerprints.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

import duckdb
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ood_audit.classes.prototypes import sample
from ood_audit.encoders.cpu import mapped
from ood_audit.encoders.gpu import choose_gpu
from ood_audit.errors import UsageError
from ood_audit.findings.fingerprints import (
    HASH_BITS,
    HASH_BYTES,
    SHAPE,
    Fingerprints,
    Words,
    correlations,
    fingerprint,
    hash_distances,
    is_flat,
    turned,
    turned_hashes,
    word_distances,
    words,
)
from ood_audit.findings.listed import Listed
from ood_audit.findings.settings import TURNED_MOST
from ood_audit.images.access import by_few, readers, sizes
from ood_audit.images.decode import decode
from ood_audit.store import Store
from ood_audit.store.parts import iter_features
from ood_audit.store.views import connect, limit_memory
from ood_audit.values import Row

if TYPE_CHECKING:
    import faiss
    import torch

# Chosen on one half of 707 pictures of Caltech-101 and of altered copies of them, and measured on the other half: 98%
# of the copies that `find` promises are within all three; no two different pictures are within 44 bits.
COSINE = 0.85
BITS = 32
_CORRELATION = 0.9
_NEIGHBOURS = 64
_BLOCK = 1024  # images at a time
_PAIRS = 8192  # whose stored hashes are compared at a time, within a processor's own memory
_MATCHED = 16_384  # pairs whose files are read together, as each time the database is asked for their names
_FETCHED = 65_536  # rows of an answer at a time
# Of turned copies, which no cosine confirms. No two of 1,500 pictures, compared in the seven other orientations,
# are within 60 bits; of copies that were turned, half of them cropped by up to 6% of each side, 98% are within 48.
_TURNED_BITS = 48
_TURNED_CANDIDATES = 64  # bits between the stored hashes, which are taken at two trims where fingerprints are at four
# What does not change when a picture is turned, the first of its `words`: 99% of copies that were turned, and cropped
# by up to 5% of each side, are within 20 of the 64 bits, and half of them have no other of 5,000 pictures as near.
_STILL = 20
_TURNED_NEIGHBOURS = 64
# More of them are looked for in lists of like codes: of 700 copies that were turned, cropped and recompressed, among
# 100,000 pictures, 98.8% of those that a comparison of all with all finds, in a third of its time.
_TURNED_EXACT = 20_000
_TURNED_PROBES = 1 / 5  # of the lists
_TRAINED_ON = 40  # codes a list
_AS_ROWS, _AS_COLUMNS = range(1, 4), range(4, 8)  # the turns by which of the two still codes stays the same
# Bits by which the stored hashes of two pictures differ more, in any orientation, than those of their fingerprints may:
# then no file is read to compare them. Of 616 altered copies that match, the farthest are 62 bits apart, which leaves
# 28 to spare; of 209,000 pairs of like pictures that are none, a fifth of a percent is as near as that.
_STORED_MORE = 42

_UNKNOWN, _COMPARABLE, _IS_FLAT, _UNREADABLE = range(4)  # states of a fingerprint

_T = TypeVar("_T")
Rows = NDArray[np.int64]

# `first` stands for all images with its bytes.
_PICTURES = """
CREATE TABLE pictures AS
SELECT image_id, path, uri, width, height, size_bytes, mtime_ns, content_hash, picture_hash,
       first_value(image_id) OVER (
           PARTITION BY coalesce(content_hash, image_id) ORDER BY mtime_ns, path, image_id
       ) AS first
FROM images WHERE status = 'ok'
"""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """An image that has a duplicate.

    `cluster` counts from 1, the largest first. `kind`, `cosine`, `hash_distance` and `turned` (or mirrored) compare the
    image with the one to keep of its cluster, which itself is `exact` where all others are.
    """

    image_id: str
    path: str
    cluster: int
    kind: Literal["exact", "near"]
    keep: bool
    kept_path: str
    cosine: float
    hash_distance: int
    turned: bool
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
    each side, as they are or mirrored. Copies that were turned or mirrored are also found where their features are
    far apart, in up to 400,000 images that this version embedded. Recoloured ones are not found. Boxes of one
    picture, and the picture itself, are no duplicates of each other.

    The one to keep of a cluster has the most pixels; of these it is the oldest file, then the first by name. All others
    match it and not only each other, so that no chain of small steps joins different pictures.

    On a GPU of CUDA's all images are compared with all others. On a CPU this is so up to `listed.EXACT` images, and
    95% of the neighbours of more are found; of copies that were turned, 98% of those that are found among fewer.

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
        search = _Search(_Source(store, parts if near else None, db, cosine, device, on_note), db, cosine, bits)
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


class _Index(Protocol):
    """Where neighbours are looked up: `Listed` on the CPU, or `nearest.OnGpu`."""

    @property
    def at_once(self) -> int:
        """How many rows to search for at once."""

    def search(self, features: NDArray[np.float32], k: int, /) -> tuple[NDArray[np.float32], Rows]:
        """The (Q, k) cosines of the nearest vectors, nearest first, and their rows."""

    def reconstruct_n(self, start: int, count: int, /) -> NDArray[np.float32]:
        """The vectors of consecutive rows."""

    def reconstruct_batch(self, rows: Rows, /) -> NDArray[np.float32]:
        """The vectors of some rows."""


class _Search:
    """The different images of a store, as rows 0 … N − 1: their features, and fingerprints once they are asked for."""

    def __init__(self, source: "_Source", db: duckdb.DuckDBPyConnection, cosine: float, bits: int) -> None:
        self._db = db
        self.cosine = cosine
        self.bits = bits
        self._source = source
        self.image_ids = source.image_ids
        self.state = np.full(len(self.image_ids), _UNKNOWN, np.uint8)
        self._pictures = _pictures(db, self.image_ids)
        self.missing: set[str] = set()  # ids of images whose file is not what was embedded
        self._words, self._hashed = source.words(db)
        self._turned_index = _index_of(self._words[0], self._hashed)
        # The system gives memory for what is written to.
        self._fingerprints = np.empty((len(self.image_ids), *SHAPE), np.uint8)

    def pairs(self, on_progress: Callable[[int, int], None]) -> tuple[Rows, Rows]:
        """The rows of images that match, each pair once."""
        total = len(self.state)
        found, waiting = [np.empty((2, 0), np.int64)], list[Rows]()
        for done, pairs in mapped(self._alike, self._source.neighbours(min(_NEIGHBOURS + 1, total))):
            waiting.append(pairs)
            if done == total or sum(some.shape[1] for some in waiting) > _MATCHED:
                pairs = np.concatenate(waiting, axis=1)
                match, *_ = self.match(*pairs)
                found.append(pairs[:, match])
                waiting.clear()
            on_progress(done, total)
        one, other = _each_once(np.concatenate(found, axis=1), total)
        return one, other

    def _alike(self, block: tuple[int, NDArray[np.float32], Rows]) -> tuple[int, Rows]:
        """The row after those of a block of neighbours, and pairs of these and others that may match, (2, P)."""
        start, near, neighbours = block
        rows = np.repeat(np.arange(start, start + len(neighbours)), neighbours.shape[1])
        others = neighbours.ravel()
        close = (near.ravel() >= self.cosine) & (others >= 0) & (self._pictures[others] != self._pictures[rows])
        pairs = np.stack([rows, others])[:, close]
        pairs = pairs[:, self._may_match(*pairs)]
        pairs = np.concatenate([pairs, self._turned(start, len(neighbours))], axis=1)
        # Not `image_ids`: these are being read again where the GPU is full by now.
        return start + len(neighbours), _each_once(pairs, len(self.state))

    def _turned(self, start: int, count: int) -> Rows:
        """Pairs of rows, of which the first are some, whose stored hashes are near in another orientation. (2, P)."""
        found = [np.empty((2, 0), np.int64)]
        if self._turned_index is None:
            return found[0]
        import faiss

        faiss.omp_set_num_threads(1)  # of this thread, of which there is one for each core, see `_index_of`
        rows, index = self._turned_index
        some = rows[(rows >= start) & (rows < start + count)]
        codes = self._words[:, 0, 0, some]
        for own, turns in zip(codes, (_AS_ROWS, _AS_COLUMNS), strict=True) if len(some) else ():
            distances, entries = index.search(_bytes(own), _TURNED_NEIGHBOURS)
            close = (distances <= _STILL) & (entries >= 0)
            one, other = np.repeat(some, close.sum(axis=1)), rows[entries[close] // 2]  # an image has two entries
            one, other = one[one != other], other[one != other]
            found.append(np.stack([one, other])[:, self._stored_within(one, other, _TURNED_CANDIDATES, turns)])
        return np.concatenate(found, axis=1)

    def _may_match(self, one: Rows, other: Rows) -> NDArray[np.bool_]:
        """Whether the stored hashes of rows and others, (N,) each, allow that they look alike; also where none are."""
        may: NDArray[np.bool_] = ~(self._hashed[one] & self._hashed[other])
        known = np.flatnonzero(~may)
        may[known] = self._stored_within(one[known], other[known], self.bits + _STORED_MORE, range(8))
        return may

    def _stored_within(self, one: Rows, other: Rows, bits: int, turns: Iterable[int]) -> NDArray[np.bool_]:
        """Whether the stored hashes of rows and others, (N,) each, are as near in one of some orientations."""
        near = np.zeros(len(one), np.bool_)
        for start in range(0, len(one), _PAIRS):
            some = slice(start, start + _PAIRS)
            own = np.take(self._words[0], one[some], axis=-1)
            for side, first in enumerate((0, 4)):
                among = [turn - first for turn in turns if turn in range(first, first + 4)]
                if among:
                    theirs = np.take(self._words[side], other[some], axis=-1)
                    near[some] |= word_distances(own, theirs, among) <= bits
        return near

    def match(self, one: Rows, other: Rows) -> tuple[NDArray[np.bool_], Rows, NDArray[np.bool_]]:
        """Whether rows and others, (N,) each, look alike; in how many bits they differ; whether one is turned."""
        self._look_at(np.unique(np.concatenate([one, other])))
        known = (self.state[one] == _COMPARABLE) & (self.state[other] == _COMPARABLE)
        known &= self._pictures[one] != self._pictures[other]
        a, b = self._fingerprints[one[known]], self._fingerprints[other[known]]
        best, is_turned = np.full(len(a), HASH_BITS), np.zeros(len(a), np.bool_)
        for turn in range(8):
            left = np.flatnonzero(best == HASH_BITS)
            if not len(left):
                break
            prints = turned(a[left], turn) if turn else a[left]
            bits = hash_distances(prints, b[left])
            near = bits <= (_TURNED_BITS if turn else self.bits)
            near[near] = correlations(prints[near], b[left[near]]) >= _CORRELATION
            best[left[near]], is_turned[left[near]] = bits[near], turn > 0
        match, distances, turns = known.copy(), np.full(len(one), HASH_BITS), np.zeros(len(one), np.bool_)
        match[known], distances[known], turns[known] = best < HASH_BITS, best, is_turned
        return match, distances, turns

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
        pool = readers(file["uri"] for *_, same in files for file in same)
        try:
            for first, pixels in by_few(pool, lambda same: (same[0], self._read(*same[1:])), files):
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


def _index_of(stored: Words, known: NDArray[np.bool_]) -> "tuple[Rows, faiss.IndexBinary] | None":
    """The rows with stored hashes, and an index of their still words, two a row; None where too many, or none."""
    rows = np.flatnonzero(known)
    if not len(rows) or len(known) > TURNED_MOST:
        return None
    import faiss
    from threadpoolctl import threadpool_limits

    codes = _bytes(stored[:, 0, rows].T)
    index = faiss.IndexBinaryFlat(8 * codes.shape[1])
    index.use_heap = False  # which finds the lists of a code in a quarter of the time
    if len(rows) > _TURNED_EXACT:
        lists = round(len(codes) ** 0.5)
        index = faiss.IndexBinaryIVF(index, index.d, lists)
        index.nprobe = round(_TURNED_PROBES * lists)
    # Threads of FAISS's own wait for each other at every step: where another process has one of two cores, they take
    # up to fifteen times the processor time of one.
    with threadpool_limits(1, "openmp"):
        if len(rows) > _TURNED_EXACT:
            index.train(codes[sample(len(codes), most=_TRAINED_ON * lists)])
        index.add(codes)
    return rows, index


def _each_once(pairs: Rows, total: int) -> Rows:
    """Pairs of rows below `total`, (2, P), the lower one first, in order and each once."""
    low, high = np.sort(pairs, axis=0)
    return np.stack(np.divmod(np.unique(low * total + high), max(1, total)))


def _bytes(codes: Words) -> Fingerprints:
    """Words as rows of bytes, (N, 8), as FAISS takes them."""
    return np.ascontiguousarray(codes).reshape(-1, 1).view(np.uint8)


def _pictures(db: duckdb.DuckDBPyConnection, image_ids: list[str]) -> Rows:
    """The number of the picture of each row: that of a box is the picture that it is in. (N,)."""
    numbers = np.arange(len(image_ids))
    row_of = {image_id: row for row, image_id in enumerate(image_ids)}
    with_boxes = db.execute(
        "SELECT list(image_id) FROM pictures GROUP BY split_part(uri, '#box=', 1) HAVING count(*) > 1"
    )
    for (own,) in with_boxes.fetchall():
        rows = [row_of[image_id] for image_id in own if image_id in row_of]
        numbers[rows] = min(rows, default=0)
    return numbers


class _Source:
    """The features of the different images, on a GPU where there is one, else on the CPU.

    Images with the same bytes are one here: a hundred copies would take each other's place among the neighbours.

    Args:
        store: the store.
        parts: its parts; None where no features are asked for, and there are no rows.
        db: a connection with the table `pictures`.
        cosine: see `find`.
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
        cosine: float,
        device: str,
        on_note: Callable[[str], None],
    ) -> None:
        self.image_ids: list[str] = []
        self._least = cosine
        if parts is None:
            return
        self._store, self._parts, self._on_note = store, parts, on_note
        self._copies = {
            row[0] for row in db.execute("SELECT image_id FROM pictures WHERE first <> image_id").fetchall()
        }
        (images,) = db.execute("SELECT count(*) FROM pictures").fetchone() or (0,)
        self._total = images - len(self._copies)
        self._gpu = _gpu(device) if self._total else None
        self._index: _Index | None = None
        self._try(lambda index: None)

    def neighbours(self, k: int) -> Iterator[tuple[int, NDArray[np.float32], Rows]]:
        """For some rows after others the first, and the (N, k) cosines and rows of the nearest to each."""
        start, total = 0, len(self.image_ids)
        while start < total:
            near, rows = self._try(partial(_search, start=start, total=total, k=k))
            for first in range(0, len(rows), _BLOCK):
                yield start + first, near[first : first + _BLOCK], rows[first : first + _BLOCK]
            start += len(rows)

    def features(self, rows: Rows) -> NDArray[np.float32]:
        """The features of some rows, (N, D)."""
        return self._try(lambda index: index.reconstruct_batch(rows))

    def words(self, db: duckdb.DuckDBPyConnection) -> tuple[Words, NDArray[np.bool_]]:
        """The words of both stored hashes of the rows, and which rows have any, (N,).

        The words are (2, 2, 4, N): of the pictures as they are, and with rows taken as columns.
        """
        found = np.zeros((2, 2, 4, len(self.image_ids)), np.uint64)
        known = np.zeros(len(self.image_ids), np.bool_)
        if not len(known):
            return found, known
        row_of = {image_id: row for row, image_id in enumerate(self.image_ids)}
        answer = db.execute(
            "SELECT first, any_value(picture_hash) FROM pictures WHERE picture_hash <> '' GROUP BY first"
        )
        while some := answer.fetchmany(_FETCHED):
            there = [(row_of[image_id], stored) for image_id, stored in some if image_id in row_of]
            rows = [row for row, _ in there]
            content = bytes.fromhex("".join(stored for _, stored in there))
            hashes = np.frombuffer(content, np.uint8).reshape(-1, 2, HASH_BYTES)
            for side, turn in enumerate((0, 4)):
                found[side][..., rows] = np.moveaxis(words(turned_hashes(hashes, turn)), 0, -1)
            known[rows] = True
        return found, known

    def _try(self, work: Callable[[_Index], _T]) -> _T:
        """Do some work with the index, which is built first where there is none; on the CPU where the GPU is full."""
        if self._gpu is not None:
            from ood_audit.encoders.device import is_out_of_memory, release_memory

            try:
                if self._index is None:
                    self._index = self._on_gpu(self._gpu)
                return work(self._index)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            self._on_note(f"no memory left on {self._gpu}: looking for near duplicates on the CPU")
            self._index = None
            release_memory(self._gpu)
            self._gpu = None
        if self._index is None:
            self._index = self._on_cpu()
        return work(self._index)

    def _on_gpu(self, device: "torch.device") -> _Index:
        from ood_audit.findings.nearest import OnGpu

        return OnGpu(self._batches(), self._total, self._store.encoder.dimension, device)

    def _on_cpu(self) -> _Index:
        numbered = bool(self.image_ids)  # by the GPU, which failed
        dimension = self._store.encoder.dimension
        index = Listed(self._batches, self._total, dimension, self._least, keep_order=numbered)
        self.image_ids[:] = [self.image_ids[row] for row in index.order.tolist()]
        return index

    def _batches(self) -> Iterator[NDArray[np.float32]]:
        self.image_ids.clear()
        for ids, features in _features(self._store, self._parts, self._copies):
            self.image_ids.extend(ids)
            yield features


def _search(index: _Index, start: int, total: int, k: int) -> tuple[NDArray[np.float32], Rows]:
    """As many rows from `start` on as the index takes at once."""
    return index.search(index.reconstruct_n(start, min(index.at_once, total - start)), k)


def _gpu(device: str) -> "torch.device | None":
    chosen = choose_gpu(device)
    return chosen if chosen is not None and chosen.type == "cuda" else None


def _features(store: Store, parts: list[Path], leave_out: set[str]) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
    for batch in iter_features(store, parts=parts):
        image_ids = batch.image_ids.to_pylist()
        keep = [image_id not in leave_out for image_id in image_ids]
        yield [image_id for image_id, kept in zip(image_ids, keep, strict=True) if kept], batch.features[keep]


def _clusters(db: duckdb.DuckDBPyConnection, search: _Search, pairs: tuple[Rows, Rows]) -> list[list[Row]]:
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
            match, distances, turns = search.match(np.full_like(rest, kept), rest)
            cosines = search.cosines(kept, rest)
            near = match & (turns | (cosines >= search.cosine))
            if near.any():
                firsts = [search.image_ids[row] for row in (kept, *rest[near].tolist())]
                columns = (cosines[near].tolist(), distances[near].tolist(), turns[near].tolist())
                likeness = [_SAME, *zip(*columns, strict=True)]
                clusters.append(_cluster([images.pop(first) for first in firsts], likeness))
                rest = rest[~near]
    exact = [_cluster([images[first]], [_SAME]) for first in copied & images.keys() if len(images[first]) > 1]
    return sorted(clusters + exact, key=lambda rows: (-len(rows), rows[0]["path"], rows[0]["image_id"]))


def _components(one: Rows, other: Rows) -> list[Rows]:
    """The rows that pairs join, (P,) and (P,), component by component."""
    rows, ends = np.unique(np.concatenate([one, other]), return_inverse=True)
    ends = ends.astype(np.int32)  # SciPy before 1.13 takes no others
    graph = coo_array((np.ones(len(one)), (ends[: len(one)], ends[len(one) :])), shape=(len(rows), len(rows)))
    count, component = connected_components(graph, directed=False)
    ordered = rows[np.argsort(component, kind="stable")]
    return np.split(ordered, np.cumsum(np.bincount(component, minlength=count))[:-1]) if count else []


def _images(db: duckdb.DuckDBPyConnection, firsts: set[str]) -> tuple[dict[str, list[Row]], list[str]]:
    """The facts of all images with the same bytes as one of `firsts`, the oldest file first; and ids of those gone.

    What is listed may be deleted by its reader, so the file must be there, and of its old size.
    """
    answer = db.execute(
        "SELECT first, uri, image_id, path, width, height, size_bytes, mtime_ns FROM pictures "
        "WHERE first IN (SELECT unnest(?::VARCHAR[])) ORDER BY mtime_ns, path, image_id",
        [list(firsts)],
    )
    names = [column[0] for column in answer.description or []][2:]
    images: dict[str, list[Row]] = {}
    gone = []
    rows = answer.fetchall()
    for (first, _, *row), now in zip(rows, sizes([row[1] for row in rows]), strict=True):
        facts = dict(zip(names, row, strict=True))
        if now in (facts["size_bytes"], -1):  # the size of a row of a Parquet file is not known beforehand
            images.setdefault(first, []).append(facts)
        else:
            gone.append(facts["image_id"])
    return images, gone


def _preference(image: Row) -> tuple[int, int, str, str]:
    """Sorts the image to keep first."""
    return -image["width"] * image["height"], image["mtime_ns"], image["path"], image["image_id"]


_Likeness = tuple[float, int, bool]  # cosine, bits that differ, turned
_SAME: _Likeness = (1.0, 0, False)


def _cluster(same: list[list[Row]], likeness: list[_Likeness]) -> list[Row]:
    """A cluster of lists of images with the same bytes, each as like the first as `likeness` says."""
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
            "turned": is_turned,
        }
        for images, (cosine, distance, is_turned) in zip(same, likeness, strict=True)
        for image in images
    ]
