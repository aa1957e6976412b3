"""Nearest neighbours on a CPU: exact for some thousand vectors, and within lists of like vectors for more.

Each vector is in the list of the centre that it is nearest to, and is compared with those in the lists of the few
centres nearest to it, as in an inverted index of FAISS's. Here vectors lie in the order of their lists, so that some
that follow each other are compared with the same lists: as products of matrices, which take a tenth of the time.
"""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from ood_audit.classes.prototypes import sample

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
        if self.lists > 1:
            self._centres = _apart(
                _centres(_chosen(batches(), sample(total, most=_TRAINED_ON * self.lists)), self.lists)
            )
            self.lists = len(self._centres)
            self._sort(batches)
        places = np.empty(total, np.int64)
        places[self.order] = np.arange(total)
        start = 0
        for features in batches():
            self._vectors[places[start : start + len(features)]] = features
            start += len(features)
        self._kept = (self.order, places) if keep_order and self.lists > 1 else None
        if self._kept:
            self.order = np.arange(total)

    def search(self, features: Floats, k: int) -> tuple[Floats, Rows]:
        """(Q, D) → the (Q, k) cosines of the nearest vectors found, nearest first, and their rows; −1 where none is."""
        best, rows = np.full((len(features), k), -1, np.float32), np.full((len(features), k), -1, np.int64)
        lists = self._nearest_lists(features) if self.lists > 1 else np.zeros((len(features), 1), np.int64)
        by_list = np.argsort(lists, axis=None, kind="stable")
        ends = np.cumsum(np.bincount(lists.ravel()))
        for one, asked in enumerate(np.split(by_list // lists.shape[1], ends[:-1])):
            for start in range(self._starts[one], self._starts[one + 1] if len(asked) else 0, _CHUNK):
                stop = min(start + _CHUNK, self._starts[one + 1])
                vectors = self._vectors[start:stop].astype(np.float32).T
                for first in range(0, len(asked), _BLOCK):
                    those = asked[first : first + _BLOCK]
                    _merge(best, rows, those, features[those] @ vectors, start, self._least)
        order = np.argsort(-best, axis=1, kind="stable")
        best, rows = np.take_along_axis(best, order, axis=1), np.take_along_axis(rows, order, axis=1)
        if self._kept:
            rows = self._kept[0][rows]
        rows[best < self._least] = -1
        return best, rows

    def reconstruct_n(self, start: int, count: int) -> Floats:
        """The vectors from a row on."""
        return self.reconstruct_batch(np.arange(start, start + count))

    def reconstruct_batch(self, rows: Rows) -> Floats:
        """The vectors of some rows."""
        found: Floats = self._vectors[self._kept[1][rows] if self._kept else rows].astype(np.float32)
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
        queries = sample(len(self.order), seed=1, most=_QUERIES)
        asked = _chosen(batches(), queries)
        best, rows = np.full((len(asked), _NEAREST), -1, np.float32), np.full((len(asked), _NEAREST), -1, np.int64)
        list_of, start = np.empty(len(self.order), np.int64), 0
        for features in batches():
            list_of[start : start + len(features)] = (features @ self._centres.T).argmax(axis=1)
            cosines = asked @ features.T
            itself = (queries >= start) & (queries < start + len(features))
            cosines[itself, queries[itself] - start] = -1
            _merge(best, rows, np.arange(len(asked)), cosines, start, self._least)
            start += len(features)
        self.order = np.argsort(list_of, kind="stable")
        self._starts = np.searchsorted(list_of[self.order], np.arange(self.lists + 1))
        # How many lists are nearer to each query than the one that its neighbour is in.
        likeness = asked @ self._centres.T
        nearer = np.full(best.shape, -1)
        for column, those in enumerate(rows.T):
            nearer[:, column] = (likeness > np.take_along_axis(likeness, list_of[those][:, None], axis=1)).sum(axis=1)
        near = best >= self._least
        choose, judge = nearer[::2][near[::2]], nearer[1::2][near[1::2]]
        if len(choose):
            self.probes = int(np.quantile(choose, RECALL + _MARGIN, method="higher")) + 1
        self.recall = float((judge < self.probes).mean()) if len(judge) else 1.0


def _merge(best: Floats, rows: Rows, asked: Rows, cosines: Floats, start: int, least: float) -> None:
    """Keep the k best, in any order, of those found so far and of the rows from `start` on.

    `best` and `rows` are (Q, k); `asked` says which of the Q have these (A, N) cosines. Most have none from `least` on.
    """
    better = np.flatnonzero(cosines.max(axis=1) >= least)
    better = better[cosines[better].max(axis=1) > best[asked[better]].min(axis=1)]
    if not len(better):
        return
    asked, cosines, k = asked[better], cosines[better], best.shape[1]
    values, near = _largest(cosines, k, least)
    both = np.concatenate([best[asked], values], axis=1)
    numbers = np.concatenate([rows[asked], near + start], axis=1)
    keep = np.argpartition(both, -k, axis=1)[:, -k:]
    best[asked], rows[asked] = np.take_along_axis(both, keep, axis=1), np.take_along_axis(numbers, keep, axis=1)


def _largest(cosines: Floats, k: int, least: float) -> tuple[Floats, Rows]:
    """The k largest of each row from `least` on, in any order, and their columns; −1 where there are fewer."""
    row, column = np.nonzero(cosines >= least)
    counts = np.bincount(row, minlength=len(cosines))
    values, near = (np.full((len(cosines), min(k, int(counts.max()))), -1, of) for of in (np.float32, np.int64))
    few = counts[row] <= k  # a partition of these rows would take ten times as long
    row, column, place = row[few], column[few], (np.arange(len(row)) - (counts.cumsum() - counts)[row])[few]
    values[row, place], near[row, place] = cosines[row, column], column
    many = np.flatnonzero(counts > k)
    if len(many):
        near[many] = np.argpartition(cosines[many], -k, axis=1)[:, -k:]
        values[many] = np.take_along_axis(cosines[many], near[many], axis=1)
    return values, near


def _chosen(batches: Iterable[Floats], rows: Rows) -> Floats:
    """The vectors with these numbers, which are in order."""
    found, start = [], 0
    for features in batches:
        low, high = np.searchsorted(rows, (start, start + len(features)))
        found.append(features[rows[low:high] - start])
        start += len(features)
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
