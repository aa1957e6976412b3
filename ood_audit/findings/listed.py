"""Nearest neighbours on a CPU: exact for some thousand vectors, and within lists of like vectors for more.

Each vector is in the list of the centre that it is nearest to, and is compared with those in the lists of the few
centres nearest to it, as in an inverted index of FAISS's. Here vectors lie in the order of their lists, so that some
that follow each other are compared with the same lists: as products of matrices, which take a tenth of the time.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ood_audit.arrays import float32
from ood_audit.classes.prototypes import sample
from ood_audit.encoders.cpu import mapped, thread_count

EXACT = 20_000  # vectors up to which all are compared with all
RECALL = 0.95  # of the ten nearest within `least`, at least, over half of the queries
_MARGIN = 0.01  # above it, by the other half
_QUERIES = 1024
_NEAREST = 10
_TRAINED_ON = 40  # vectors a list
_ROUNDS = 10
_SAME = 1 - 1e-6  # the cosine of two centres from which on they are one
_CHUNK = 2048  # vectors compared with at a time
_BLOCK = 1024  # with so many that are searched for
_COLUMNS = 64  # of the vectors, sorted at a time

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]


class Listed:
    """Vectors of length 1 in float16, searched and read as a FAISS index is.

    Their rows are in an order of their own, so that those which are searched for together are compared with the same
    lists; or in that of `batches`, which takes longer.

    Args:
        batches: gives the (N, D) float32 vectors, again and again.
        total: how many vectors there are.
        dimension: D.
        least: the least cosine of what is searched for.
        keep_order: number the rows as `batches` gives the vectors.

    Attributes:
        at_once: how many rows to search for at once, as each list that they are compared with is read once for all.
        order: (N,) by row, the numbers of the vectors as `batches` gives them.
        lists: how many lists there are, and
        probes: how many of them a vector is compared with.
        recall: the share that is found of the ten nearest within `least`, over vectors that did not choose `probes`.

    """

    at_once = 32_768

    def __init__(
        self,
        batches: Callable[[], Iterable[Floats]],
        total: int,
        dimension: int,
        least: float,
        *,
        keep_order: bool = False,
    ) -> None:
        self._least = least
        self.lists = 1 if total <= EXACT else round(total**0.5)
        self.order: Rows = np.arange(total)
        self.probes, self.recall = 1, 1.0
        self._vectors = np.empty((total, dimension), np.float16)
        self._starts = np.array([0, total])
        self._kept: tuple[Rows, Rows] | None = None
        if self.lists == 1:
            for start, features in _numbered(batches()):
                self._vectors[start : start + len(features)] = features
            return
        self._sort(batches)
        if keep_order:
            places = np.empty(total, np.int64)
            places[self.order] = np.arange(total)
            self._kept = (self.order, places)
            self.order = np.arange(total)

    def search(self, features: Floats, k: int) -> tuple[Floats, Rows]:
        """(Q, D) → the (Q, k) cosines of the nearest vectors found, nearest first, and their rows; −1 where none is."""
        parts = np.array_split(features, max(1, min(thread_count(), len(features) // _BLOCK)))
        found = list(mapped(partial(self._search, k=k), parts))
        best, rows = (np.concatenate(of) for of in zip(*found, strict=True))
        return best, rows

    def _search(self, features: Floats, k: int) -> tuple[Floats, Rows]:
        best = _Best(len(features), k, self._least)
        lists = self._nearest_lists(features) if self.lists > 1 else np.zeros((len(features), 1), np.int64)
        by_list = np.argsort(lists, axis=None, kind="stable")
        ends = np.cumsum(np.bincount(lists.ravel()))
        for one, asked in enumerate(np.split(by_list // lists.shape[1], ends[:-1])):
            for start in range(self._starts[one], self._starts[one + 1] if len(asked) else 0, _CHUNK):
                stop = min(start + _CHUNK, self._starts[one + 1])
                vectors = float32(self._vectors[start:stop]).T
                for first in range(0, len(asked), _BLOCK):
                    those = asked[first : first + _BLOCK]
                    best.add(those, features[those] @ vectors, start)
        cosines, rows = best.in_order()
        if self._kept:
            rows = self._kept[0][rows]
        rows[cosines < self._least] = -1
        return cosines, rows

    def reconstruct_n(self, start: int, count: int) -> Floats:
        """The vectors from a row on."""
        return self.reconstruct_batch(np.arange(start, start + count))

    def reconstruct_batch(self, rows: Rows) -> Floats:
        """The vectors of some rows."""
        found: Floats = float32(self._vectors[self._kept[1][rows] if self._kept else rows])
        return found

    def _nearest_lists(self, features: Floats) -> Rows:
        """(Q, P)."""
        nearest = np.empty((len(features), min(self.probes, self.lists)), np.int64)
        for start in range(0, len(features), _BLOCK):
            likeness = features[start : start + _BLOCK] @ self._centres.T
            rows = np.arange(len(likeness))
            for place in range(nearest.shape[1]):  # a tenth of the time of a partition, as they are few
                best = likeness.argmax(axis=1)
                nearest[start + rows, place] = best
                likeness[rows, best] = -np.inf
        return nearest

    def _sort(self, batches: Callable[[], Iterable[Floats]]) -> None:
        """Put the vectors into lists, and settle how many of these to look through."""
        total = len(self.order)
        trained, queries = sample(total, most=_TRAINED_ON * self.lists), sample(total, seed=1, most=_QUERIES)
        both = np.union1d(trained, queries)
        chosen = _chosen(batches(), both)
        self._centres = _apart(_centres(chosen[np.searchsorted(both, trained)], self.lists))
        self.lists = len(self._centres)
        asked = chosen[np.searchsorted(both, queries)]

        def placed(batch: tuple[int, Floats]) -> tuple[int, Rows, Floats]:
            start, features = batch
            self._vectors[start : start + len(features)] = features
            cosines = asked @ features.T
            itself = (queries >= start) & (queries < start + len(features))
            cosines[itself, queries[itself] - start] = -1
            return start, (features @ self._centres.T).argmax(axis=1), cosines

        best, list_of = _Best(len(asked), _NEAREST, self._least), np.empty(total, np.int64)
        for start, lists, cosines in mapped(placed, _numbered(batches())):
            list_of[start : start + len(lists)] = lists
            best.add(np.arange(len(asked)), cosines, start)
        self.order = np.argsort(list_of, kind="stable")
        self._starts = np.searchsorted(list_of[self.order], np.arange(self.lists + 1))
        for start in range(0, self._vectors.shape[1], _COLUMNS):
            columns = self._vectors[:, start : start + _COLUMNS]
            columns[:] = columns[self.order]
        # How many lists are nearer to each query than the one that its neighbour is in.
        likeness = asked @ self._centres.T
        nearer = np.full(best.rows.shape, -1)
        for column, those in enumerate(best.rows.T):
            nearer[:, column] = (likeness > np.take_along_axis(likeness, list_of[those][:, None], axis=1)).sum(axis=1)
        near = best.cosines >= self._least
        choose, judge = nearer[::2][near[::2]], nearer[1::2][near[1::2]]
        if len(choose):
            self.probes = int(np.quantile(choose, RECALL + _MARGIN, method="higher")) + 1
        self.recall = float((judge < self.probes).mean()) if len(judge) else 1.0


class _Best:
    """The k nearest of those that were seen, for each of Q vectors, in any order.

    Attributes:
        cosines: (Q, k), −1 where there are fewer from `least` on.
        rows: (Q, k), the rows of the vectors with these cosines; −1 where there are fewer.

    """

    def __init__(self, count: int, k: int, least: float) -> None:
        self.cosines, self.rows = np.full((count, k), -1, np.float32), np.full((count, k), -1, np.int64)
        self._above = np.full(count, np.nextafter(np.float32(least), np.float32(-np.inf)))  # what is to be exceeded

    def add(self, asked: Rows, cosines: Floats, start: int) -> None:
        """See the rows from `start` on: `asked` says which of the Q have these (A, N) cosines. Most exceed nothing."""
        better = np.flatnonzero(cosines.max(axis=1) > self._above[asked])
        if not len(better):
            return
        asked, k = asked[better], self.cosines.shape[1]
        values, near = _largest(cosines[better], k, self._above[asked])
        both = np.concatenate([self.cosines[asked], values], axis=1)
        numbers = np.concatenate([self.rows[asked], near + start], axis=1)
        keep = np.argpartition(both, -k, axis=1)[:, -k:]
        kept = np.take_along_axis(both, keep, axis=1)
        self.cosines[asked], self.rows[asked] = kept, np.take_along_axis(numbers, keep, axis=1)
        self._above[asked] = np.maximum(self._above[asked], kept[:, 0])  # where a partition puts the least

    def in_order(self) -> tuple[Floats, Rows]:
        """The cosines and rows, nearest first."""
        order = np.argsort(-self.cosines, axis=1, kind="stable")
        return np.take_along_axis(self.cosines, order, axis=1), np.take_along_axis(self.rows, order, axis=1)


def _largest(cosines: Floats, k: int, above: Floats) -> tuple[Floats, Rows]:
    """The k largest of each row that are above its value, in any order, and their columns; −1 where there are fewer."""
    large = cosines > above[:, None]
    many = np.flatnonzero(large.sum(axis=1) > k)
    if len(many):  # a sort takes a quarter of the time of a partition that gives columns
        some = cosines[many]
        large[many] = some >= np.sort(some, axis=1)[:, -k, None]
        tied = many[large[many].sum(axis=1) > k]
        large[tied] = False
        large[tied[:, None], np.argpartition(cosines[tied], -k, axis=1)[:, -k:]] = True
    row, column = np.divmod(np.flatnonzero(large), cosines.shape[1])  # in a third of the time of `nonzero`
    counts = np.bincount(row, minlength=len(cosines))
    place = np.arange(len(row)) - (counts.cumsum() - counts)[row]
    values, near = (np.full((len(cosines), int(counts.max())), -1, of) for of in (np.float32, np.int64))
    values[row, place], near[row, place] = cosines[row, column], column
    return values, near


def _numbered(batches: Iterable[Floats]) -> Iterator[tuple[int, Floats]]:
    """Batches with the number of the first vector of each."""
    start = 0
    for features in batches:
        yield start, features
        start += len(features)


def _chosen(batches: Iterable[Floats], rows: Rows) -> Floats:
    """The vectors with these numbers, which are in order."""
    found = []
    for start, features in _numbered(batches):
        low, high = np.searchsorted(rows, (start, start + len(features)))
        found.append(features[rows[low:high] - start])
    return np.concatenate(found)


def _centres(vectors: Floats, lists: int) -> Floats:
    """(L, D) of length 1, by k-means with cosines. The same vectors give the same centres."""
    import faiss

    means = faiss.Kmeans(vectors.shape[1], lists, niter=_ROUNDS, spherical=True, seed=0, min_points_per_centroid=1)
    means.train(vectors)
    centres: Floats = means.centroids
    return centres


def _apart(centres: Floats) -> Floats:
    """Without those that are the same as an earlier one, so that equal vectors are all in the list that is searched."""
    same = np.tril(centres @ centres.T > _SAME, k=-1).any(axis=1)
    others: Floats = centres[~same]
    return others
