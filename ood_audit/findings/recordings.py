"""Recordings: pictures that were taken one after another, such as the frames of a film or a burst of photographs.

Pictures that follow each other, by the counters in their names, by their names, or by the camera and the time in their
EXIF, are of one recording where their features are far more alike than chance allows. Of each pair of neighbours, a
p-value compares the cosine with those of one of them to other pictures of its class. Runs of neighbours are joined by
Fisher's method, and Benjamini's and Hochberg's keeps the share of false recordings below 5%.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import gammaincc

from ood_audit.arrays import float32
from ood_audit.encoders.cpu import mapped
from ood_audit.images.splits import named

LEVEL = 0.05  # the share of false recordings
MOST = 1_000_000  # images: their features are in memory
BY_COUNTER, BY_NAME, BY_TIME = "counters in the names", "the order of the names", "camera and time"
_LINKED = 0.1  # the largest p-value within a run
_BURST = 30  # seconds between two pictures of a camera
_REFERENCES = 1000  # pictures of a class that others are compared with
_FEWEST = 50  # with fewer references, pictures of the same sequence stand in
_LONG = 30  # pictures: a longer sequence is compared with itself, as its name may be that of a class
_APART = 8  # places in a sequence from which on two pictures are not of one moment
_BLOCK = 1024

_COUNTER = re.compile(r"(.*?)(\d+)(\D*)", re.DOTALL)
_EXPORTED = re.compile(r"_(jpe?g|png)\.rf\.\w+$", re.IGNORECASE)  # what Roboflow appends to a name

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Recordings:
    """Which pictures are of one recording.

    Attributes:
        number: (N,) the recording of each picture, from 0; -1 for those of none.
        evidence: by recording, what its pictures follow each other by.

    """

    number: Rows
    evidence: list[str]


@dataclass(frozen=True)
class _Sequences:
    """Neighbours in sequences: (L,) rows of one and the other, and the number of their sequence."""

    one: Rows
    other: Rows
    sequence: Rows
    evidence: str


def find(pictures: pa.Table, features: NDArray[np.float16]) -> Recordings:
    """Find the recordings among some pictures.

    Args:
        pictures: N rows with the columns path, width, height, taken_at, camera and label; the latter three may be null.
        features: (N, D), of the same pictures.

    """
    labels = np.unique([str(label) for label in pictures["label"].to_pylist()], return_inverse=True)[1].ravel()
    linked = [np.empty((2, 0), np.int64)]
    said: list[tuple[int, str]] = []
    sides = np.sort(np.stack([pictures["width"].to_numpy(), pictures["height"].to_numpy()]), axis=0)
    for sequences in (*_by_name(pictures["path"].to_pylist()), _by_time(pictures)):
        same_size = (sides[:, sequences.one] == sides[:, sequences.other]).all(axis=0)
        order = _places(sequences, len(pictures))
        p = _p_values(sequences, order, labels, features)
        kept = same_size & (p <= _LINKED)
        if sequences.evidence != BY_TIME:  # time and camera are evidence enough
            kept = _significant(sequences, p, kept)
        linked.append(np.stack([sequences.one, sequences.other])[:, kept])
        said += [(int(row), sequences.evidence) for row in sequences.one[kept]]
    one, other = np.concatenate(linked, axis=1)
    return _joined(one, other, len(pictures), said)


def sequence_of(path: str) -> tuple[str, str, int | None]:
    """The sequence that a picture is in by its name, and its place there; None where the name has no counter.

    Example:
        >>> sequence_of("train/clips/vid3_000123.jpg"), sequence_of("test/clips/vid3_000124.jpg")
        (('clips/', 'vid3_#', 123), ('clips/', 'vid3_#', 124))

    """
    *folders, name = path.split("/")
    folder = "".join(f"{part}/" for part in folders if named(part) is None)
    stem = _EXPORTED.sub("", name.rpartition(".")[0] or name)
    found = _COUNTER.fullmatch(stem)
    if found is None:
        return folder, stem, None
    return folder, f"{found[1]}#{found[3]}", int(found[2][:18])


def _by_name(paths: Sequence[str]) -> tuple[_Sequences, _Sequences]:
    """Sequences by counters; and those of the other names of a folder, in their order."""
    members: dict[tuple[str, str], list[tuple[int, int]]] = {}
    alone: dict[str, list[tuple[str, int]]] = {}
    for row, path in enumerate(paths):
        folder, name, counter = sequence_of(path)
        if counter is None:
            alone.setdefault(folder, []).append((name, row))
        else:
            members.setdefault((folder, name), []).append((counter, row))
    counted = [[row for _, row in sorted(some)] for some in members.values() if len(some) > 1]
    for (folder, name), some in members.items():
        if len(some) == 1:
            alone.setdefault(folder, []).append((name, some[0][1]))
    others = [[row for _, row in sorted(some)] for some in alone.values() if len(some) > 1]
    return _linked(counted, BY_COUNTER), _linked(others, BY_NAME)


def _by_time(pictures: pa.Table) -> _Sequences:
    """Pictures that one camera took within `_BURST` seconds."""
    taken: dict[str, list[tuple[float, int]]] = {}
    columns = (pictures["taken_at"].to_pylist(), pictures["camera"].to_pylist())
    for row, (time, camera) in enumerate(zip(*columns, strict=True)):
        if time and camera:
            taken.setdefault(camera, []).append((datetime.fromisoformat(f"{time}+00:00").timestamp(), row))
    bursts: list[list[int]] = []
    for shots in taken.values():
        last = -float("inf")
        for time, row in sorted(shots):
            if time - last > _BURST:
                bursts.append([])
            bursts[-1].append(row)
            last = time
    return _linked([burst for burst in bursts if len(burst) > 1], BY_TIME)


def _linked(sequences: list[list[int]], evidence: str) -> _Sequences:
    one = np.array([row for some in sequences for row in some[:-1]], np.int64)
    other = np.array([row for some in sequences for row in some[1:]], np.int64)
    numbers = np.repeat(np.arange(len(sequences)), [len(some) - 1 for some in sequences])
    return _Sequences(one, other, numbers, evidence)


def _places(sequences: _Sequences, count: int) -> tuple[Rows, Rows]:
    """(N,) the sequence of each picture, -1 for none; and its place among all in their order."""
    number, place = np.full(count, -1), np.zeros(count, np.int64)
    for rows, step in ((sequences.other, 1), (sequences.one, 0)):
        number[rows] = sequences.sequence
        place[rows] = np.arange(len(rows)) + sequences.sequence + step
    return number, place


def _p_values(sequences: _Sequences, order: tuple[Rows, Rows], labels: Rows, features: NDArray[np.float16]) -> Floats:
    """(L,) how often a picture is as like others of its class as its neighbour; the larger of both sides."""
    if not len(sequences.one):
        return np.zeros(0)
    number, place = (rows.astype(np.int32) for rows in order)
    long = np.bincount(sequences.sequence, minlength=1)[number] + 1 >= _LONG
    # By picture, how like the next one and the one before it is: it is compared with others once for both.
    near = np.zeros((2, len(labels)), np.float32)
    for start in range(0, len(sequences.one), _BLOCK):
        one, other = sequences.one[start : start + _BLOCK], sequences.other[start : start + _BLOCK]
        near[0, one] = near[1, other] = (_unit(features[one]) * _unit(features[other])).sum(axis=1)
    p = np.zeros(near.shape)

    def compare(known: NDArray[np.float32], rows: Rows, within: bool, block: Rows) -> tuple[Rows, Floats]:
        valid = (number[block][:, None] == number[rows]) == within
        if within:
            valid &= np.abs(place[block][:, None] - place[rows]) > _APART
        cosines = np.where(valid, _unit(features[block]) @ known.T, -2)
        above = (cosines >= near[:, block, None]).sum(axis=2)
        return block, (1 + above) / (1 + valid.sum(axis=1))

    def blocks() -> Iterator[tuple[NDArray[np.float32], Rows, bool, Rows]]:
        rng = np.random.default_rng(0)
        for some in np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels))[:-1]):
            rows = rng.permutation(some)[:_REFERENCES]
            known = _unit(features[rows])
            some = some[number[some] >= 0]
            same = np.bincount(number[rows] + 1, minlength=number.max() + 2)[number[some] + 1]
            inside = long[some] | (len(rows) - same < _FEWEST)
            for within, own in ((True, some[inside]), (False, some[~inside])):
                for start in range(0, len(own), _BLOCK):
                    yield known, rows, within, own[start : start + _BLOCK]

    for block, values in mapped(lambda some: compare(*some), blocks()):
        p[:, block] = values
    larger: Floats = np.maximum(p[0, sequences.one], p[1, sequences.other])
    return larger


def _significant(sequences: _Sequences, p: Floats, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which links are in a run that chance does not explain."""
    if not kept.any():
        return kept
    # A run ends where a link is missing, or the sequence.
    breaks = np.diff(np.concatenate([[-1], np.where(kept, sequences.sequence, -1)])) != 0
    run = np.cumsum(breaks)[kept]
    runs, first, run = np.unique(run, return_index=True, return_inverse=True)
    links = np.bincount(run)
    fisher = gammaincc(links, np.bincount(run, weights=-np.log(p[kept])))  # the upper tail of chi-squared
    in_sequence = np.bincount(sequences.sequence)
    adjusted = np.minimum(1, fisher * in_sequence[sequences.sequence[kept][first]])
    tests = max(len(runs), len(in_sequence))
    ordered = np.sort(adjusted)
    below = np.flatnonzero(ordered <= LEVEL * np.arange(1, len(ordered) + 1) / tests)
    limit = ordered[below[-1]] if len(below) else -1.0
    significant: NDArray[np.bool_] = kept.copy()
    significant[kept] = adjusted[run] <= limit
    return significant


def _joined(one: Rows, other: Rows, count: int, said: list[tuple[int, str]]) -> Recordings:
    number = connected(one, other, count)
    ways: dict[int, dict[str, None]] = {}
    for row, evidence in said:
        ways.setdefault(int(number[row]), {})[evidence] = None
    return Recordings(number, [" and ".join(ways[k]) for k in range(len(ways))])


def connected(one: Rows, other: Rows, count: int) -> Rows:
    """(N,) the number of the group that links, (L,) and (L,), put each of N rows in; -1 for those without a link."""
    graph = coo_array((np.ones(len(one)), (one.astype(np.int32), other.astype(np.int32))), shape=(count, count))
    component = connected_components(graph, directed=False)[1] if count else np.empty(0, np.int64)
    rows = np.unique(np.concatenate([one, other]))
    number = np.full(count, -1)
    number[rows] = np.unique(component[rows], return_inverse=True)[1].ravel() if len(rows) else 0
    return number


def chained(numbers: Rows) -> Rows:
    """(2, L): links between the rows of each group, from one to the next, by (N,) numbers; -1 is of no group."""
    order = np.argsort(numbers, kind="stable")
    order = order[numbers[order] >= 0]
    same = numbers[order][1:] == numbers[order][:-1]
    return np.stack([order[:-1][same], order[1:][same]])


def _unit(features: NDArray[np.float16]) -> NDArray[np.float32]:
    found = float32(features)
    found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    return found
