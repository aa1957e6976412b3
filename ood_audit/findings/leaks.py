"""Leaks between the splits of a dataset: what is tested, or validated, on pictures that are also trained on.

At three levels: the same bytes; the same picture, also resized, cropped a little, turned or mirrored; and the same
recording, see `recordings`.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ood_audit.images.splits import EVALUATION
from ood_audit.store.findings import Finding
from ood_audit.store.store import Store

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

    from ood_audit.findings.recordings import Recordings

FILE = "groups.parquet"
LEVELS = ("bytes", "picture", "recording")
_SEVERITY = {"bytes": 1.0, "picture": 0.95, "recording": 0.8}

_PICTURES = """
SELECT i.image_id, i.uri, i.path, i.split, i.width, i.height, i.taken_at, i.camera, i.content_hash,
       coalesce(s.given_label, s.label) AS label, d.cluster, d.turned
FROM images AS i LEFT JOIN scores AS s USING (image_id)
LEFT JOIN (
    SELECT image_id, any_value(cluster) AS cluster, bool_or(turned) AS turned
    FROM read_parquet($duplicates, hive_partitioning = false) GROUP BY 1
) AS d USING (image_id)
WHERE i.status = 'ok' ORDER BY i.path, i.image_id
"""


@dataclass(frozen=True)
class Leak:
    """A picture of a split that an earlier split has too, in some way.

    Attributes:
        row: of the picture.
        level: of LEVELS, the first that holds.
        other: the row of a picture of the earlier split.

    """

    row: int
    level: str
    other: int


@dataclass(frozen=True)
class Leaks:
    """What the splits of a dataset have in common.

    Attributes:
        pictures: N rows: image_id, uri, path, split and more.
        groups: by level, (N,) the number of each picture's group; -1 for those that are in none.
        recordings: the recordings among the groups.
        found: the leaks, a picture at most once.
        notes: what was not looked for.

    """

    pictures: "pa.Table"
    groups: dict[str, NDArray[np.int64]]
    recordings: "Recordings"
    found: list[Leak]
    notes: list[str] = field(default_factory=list)

    @property
    def together(self) -> dict[str, int]:
        """By the id of a picture, the number of the recording that it is of."""
        ids = self.pictures["image_id"].to_pylist()
        return {
            image_id: number
            for image_id, number in zip(ids, self.recordings.number.tolist(), strict=True)
            if number >= 0
        }

    def about(self) -> list[str]:
        """The leaks in a sentence a pair of splits, and what was not looked for."""
        splits = self.pictures["split"].to_pylist()
        sizes = Counter(splits)
        pairs = Counter((splits[leak.row], splits[leak.other], leak.level) for leak in self.found)
        shared = {
            (split, other): _shared(self.groups["recording"], splits, split, other)
            for split, other in sorted({pair[:2] for pair in pairs})
        }
        return [*(_sentence(pair, pairs, count, sizes[pair[0]]) for pair, count in shared.items()), *self.notes]

    def table(self) -> "pa.Table":
        """A row for each picture: image_id, its recording, and the group that must stay in one split; null for none."""
        import pyarrow as pa

        from ood_audit.findings.recordings import chained, connected

        one, other = np.concatenate([chained(numbers) for numbers in self.groups.values()], axis=1)
        group = connected(one, other, len(self.pictures))
        number = self.recordings.number
        return pa.table(
            {
                "image_id": self.pictures["image_id"],
                "recording": pa.array(number, pa.int32(), mask=number < 0),
                "leak_group": pa.array(group, pa.int32(), mask=group < 0),
            }
        )


def find(db: "DuckDBPyConnection", store: Store, duplicates: Path) -> Leaks:
    """Find the recordings of a store, and what its splits have in common.

    Args:
        db: a connection with the views `images` and `scores`.
        store: the store.
        duplicates: the file of `copies.current`.

    """
    from ood_audit.findings import recordings  # it imports SciPy

    pictures = db.sql(_PICTURES, params={"duplicates": str(duplicates)}).to_arrow_table()
    notes = []
    if len(pictures["split"].unique().drop_null()) < 2 and not len(pictures["cluster"].unique().drop_null()):
        pictures = pictures.slice(0, 0)  # recordings are of no interest
    if len(pictures) <= recordings.MOST:
        found = recordings.find(pictures, _features(store, pictures["image_id"].to_pylist()))
    else:
        found = recordings.Recordings(np.full(len(pictures), -1), [])
        notes.append(f"recordings are looked for among up to {recordings.MOST:,} images, and were not")
    groups = {
        "bytes": _numbered(pictures["content_hash"].to_pylist()),
        "picture": _numbered(pictures["cluster"].to_pylist()),
        "recording": found.number,
    }
    ranks = _ranks(pictures["split"].to_pylist())
    leaks: dict[int, Leak] = {}
    for level in LEVELS:
        for row, other in _earlier(groups[level], ranks):
            leaks.setdefault(row, Leak(row, level, other))
    return Leaks(pictures, groups, found, list(leaks.values()), notes)


def findings(leaks: Leaks, report: str) -> Iterator[Finding]:
    """A finding for each picture of a later split that an earlier one has, too."""
    ids, uris, paths, splits, turned = (
        leaks.pictures[name].to_pylist() for name in ("image_id", "uri", "path", "split", "turned")
    )
    sizes = np.bincount(leaks.recordings.number[leaks.recordings.number >= 0])
    for leak in leaks.found:
        row, split, other = leak.row, splits[leak.row], splits[leak.other]
        if leak.level == "bytes":
            said = "has the same bytes as"
        elif leak.level == "picture":
            how = ", turned or mirrored," if turned[row] or turned[leak.other] else ""
            said = f"is the same picture{how} as"
        else:
            number = int(leaks.recordings.number[row])
            said = f"is of one recording of {sizes[number]} pictures, by {leaks.recordings.evidence[number]}, with"
        evidence = f"this picture of {split} {said} {paths[leak.other]} of {other}"
        todo = "keep both in one split; `ood-audit export --format split` writes splits that share nothing"
        yield Finding(ids[row], uris[row], paths[row], "leak", _SEVERITY[leak.level], evidence, todo, report)


def _features(store: Store, image_ids: list[str]) -> NDArray[np.float16]:
    """(N, D) of these images, in their order."""
    from ood_audit.store.parts import iter_features

    row_of = {image_id: row for row, image_id in enumerate(image_ids)}
    features = np.zeros((len(image_ids), store.encoder.dimension), np.float16)
    for batch in iter_features(store):
        rows = np.array([row_of.get(image_id, -1) for image_id in batch.image_ids.to_pylist()])
        features[rows[rows >= 0]] = batch.codes[rows >= 0]
    return features


def _numbered(values: list[object]) -> NDArray[np.int64]:
    numbers: dict[object, int] = {}
    return np.array([-1 if v is None else numbers.setdefault(v, len(numbers)) for v in values], np.int64)


def _ranks(splits: list[str | None]) -> NDArray[np.int64]:
    """The order of the splits: train, others by name, val, test; -1 for pictures of none."""
    others = sorted({split for split in splits if split and split not in ("train", *EVALUATION)})
    rank = {split: number for number, split in enumerate(("train", *others, *EVALUATION))}
    return np.array([rank[split] if split else -1 for split in splits], np.int64)


def _earlier(groups: NDArray[np.int64], ranks: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Pictures of which their group has another in an earlier split, each with the first of these."""
    rows = np.flatnonzero((groups >= 0) & (ranks >= 0))
    rows = rows[np.lexsort((rows, ranks[rows], groups[rows]))]
    starts = np.flatnonzero(np.diff(groups[rows], prepend=-1))
    first = np.repeat(rows[starts], np.diff(np.append(starts, len(rows))))
    for row, other in zip(rows.tolist(), first.tolist(), strict=True):
        if ranks[row] > ranks[other]:
            yield row, other


def _shared(recording: NDArray[np.int64], splits: list[str | None], split: str, other: str) -> int:
    """How many pictures of a split are of a recording that another split has pictures of."""
    names = np.array([name or "" for name in splits])
    theirs = recording[(names == other) & (recording >= 0)]
    return int(np.isin(recording[(names == split) & (recording >= 0)], theirs).sum())


def _sentence(pair: tuple[str, str], counts: Counter[tuple[str, str, str]], recorded: int, size: int) -> str:
    split, other = pair
    said = []
    if recorded:
        share = f"{recorded / size:.0%}" if recorded >= 0.01 * size else f"{recorded:,}"
        said.append(f"{share} of {split} pictures share a recording with {other}")
    if count := counts[split, other, "picture"]:
        said.append(f"{count:,} of {split} {'is' if count == 1 else 'are'} the same picture as one of {other}")
    if count := counts[split, other, "bytes"]:
        said.append(f"{count:,} of {split} {'has' if count == 1 else 'have'} the bytes of one of {other}")
    return f"leaks: {'; '.join(said)}"
