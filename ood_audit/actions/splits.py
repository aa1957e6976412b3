"""Splits written anew, so that pictures that leak into each other are in one split."""

import io
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ood_audit.errors import StoreError, UsageError
from ood_audit.findings.leaks import FILE
from ood_audit.findings.records import named
from ood_audit.images.uri import location
from ood_audit.store.store import Store
from ood_audit.store.views import connect
from ood_audit.text import storable, write_csv

COLUMNS = ("path", "label", "split", "old_split", "uri")
_PICTURES = """
SELECT i.image_id, i.uri, i.split, s.given_label AS label, g.leak_group
FROM images AS i LEFT JOIN scores AS s USING (image_id)
LEFT JOIN read_parquet($groups, hive_partitioning = false) AS g USING (image_id)
WHERE i.status = 'ok' AND i.split IS NOT NULL ORDER BY i.path, i.uri
"""

Ints = NDArray[np.int64]


def write(store: Store, out: BinaryIO, report: str | None = None) -> tuple[int, int]:
    """Write a row for each picture of a split, as CSV: its path, label, new and old split, and URI.

    Args:
        store: the store.
        out: where to write.
        report: the report whose leaks are repaired; by default the current one.

    Returns:
        How many rows were written, and how many pictures change their split.

    Raises:
        UsageError: the images are not of two splits or more.
        StoreError: there is no such report, or an older version made it.

    """
    name = named(store, report)
    groups = store.reports / name / FILE
    if not groups.exists():
        raise StoreError(f"the report {name} is of an older version: run `ood-audit report` again")
    with connect(store, report=name) as db:
        pictures = db.sql(_PICTURES, params={"groups": str(groups)}).to_arrow_table()
    splits, old = _coded(pictures["split"])
    if len(splits) < 2:
        raise UsageError("the images are not of two splits; name them with `ood-audit embed --split NAME=SOURCE`")
    _, labels = _coded(pictures["label"].fill_null(""))
    group = pictures["leak_group"].fill_null(-1).to_numpy().astype(np.int64)
    new = repaired(old, labels, group)

    def rows() -> Iterator[list[object]]:
        columns = (pictures["uri"].to_pylist(), pictures["label"].to_pylist(), new.tolist(), old.tolist())
        for uri, label, now, before in zip(*columns, strict=True):
            yield [storable(location(uri)), label, splits[now], splits[before], uri]

    text = io.TextIOWrapper(out, encoding="utf-8", newline="", write_through=True)
    try:
        write_csv(text, COLUMNS, rows())
    finally:
        text.detach()
    return len(pictures), int((new != old).sum())


def repaired(old: Ints, labels: Ints, groups: Ints) -> Ints:
    """Splits in which no group is torn, as near the old ones as can be.

    The groups that are torn go, the largest first, to the one of their own splits that then lacks most of their classes
    and of its old size. All other pictures stay where they are.

    Args:
        old: (N,) the split of each picture.
        labels: (N,) its class.
        groups: (N,) its group; -1 for pictures of none.

    """
    new: Ints = old.copy()
    wanted = np.zeros((old.max() + 1, labels.max() + 1))
    np.add.at(wanted, (old, labels), 1)
    per_class = np.maximum(wanted.sum(axis=0), 1)
    members = _members(groups)
    torn = sorted((rows for rows in members if len(np.unique(old[rows])) > 1), key=len, reverse=True)
    lacking = np.zeros_like(wanted)
    for rows in torn:
        np.add.at(lacking, (old[rows], labels[rows]), 1)
    for rows in torn:
        classes, counts = np.unique(labels[rows], return_counts=True)
        own = np.unique(old[rows])
        by_class = (lacking[np.ix_(own, classes)] * counts / per_class[classes]).sum(axis=1)
        chosen = own[np.argmax(by_class + lacking[own].sum(axis=1) * len(rows) / len(old))]
        new[rows] = chosen
        lacking[chosen, classes] -= counts
    return new


def _members(groups: Ints) -> list[Ints]:
    """The rows of each group."""
    rows = np.argsort(groups, kind="stable")
    rows = rows[groups[rows] >= 0]
    return np.split(rows, np.flatnonzero(np.diff(groups[rows])) + 1) if len(rows) else []


def _coded(values: pa.ChunkedArray) -> tuple[list[str], Ints]:
    coded = values.combine_chunks().dictionary_encode()
    return coded.dictionary.to_pylist(), coded.indices.to_numpy().astype(np.int64)
