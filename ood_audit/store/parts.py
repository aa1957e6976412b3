"""The Parquet parts: a row for each image, append-only, each part written whole or not at all."""

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ood_audit.arrays import unit
from ood_audit.encoders import looks
from ood_audit.errors import StoreError
from ood_audit.images.decode import Decoded
from ood_audit.images.sources import ImageRef
from ood_audit.store import schema
from ood_audit.store.files import no_room, replacing
from ood_audit.store.store import Store
from ood_audit.values import Row

Codes = NDArray[np.floating]  # features as they are stored

# A part is written when one of these is reached, so that a kill costs no more.
PART_ROWS = 8192
PART_SECONDS = 15.0
_READERS = 2  # threads that read features
_FACTS = schema.arrow(schema.PARTS)

# Facts about the bytes of an image, which hold wherever a file with these bytes lies.
_OF_THE_FILE = (
    *("image_id", "part", "uri", "source", "path", "folder", "split", "size_bytes", "mtime_ns", "supersedes", "run_id"),
)
INHERITED = tuple(name for name in _FACTS.names if name not in _OF_THE_FILE)

_DECODED = tuple(field.name for field in fields(Decoded) if field.name in schema.PARTS)

# As parts are written. Features don't compress, and plain ones read ten times as fast.
PARQUET = {
    "use_dictionary": ["source", "folder", "format", "status", "error", "run_id", "note", "camera", "split"],
    "compression": dict.fromkeys(_FACTS.names, "zstd") | {"embedding.list.element": "none", "look": "none"},
}


# Not of fixed length, which is the same in Parquet: PyArrow before 26 neither writes nor reads such lists with nulls.
SCHEMA = _FACTS.append(pa.field("embedding", pa.list_(pa.field("element", pa.float16()))))


class PartWriter:
    """Collects rows and writes a part whenever enough have come together; a context manager.

    On leaving, also by an exception such as Ctrl-C, the rows collected so far are written. Where pictures were taken is
    left out of rows unless `gps` is set.
    """

    def __init__(self, store: Store, run_id: str, *, gps: bool = False) -> None:
        self._store = store
        self._gps = gps
        self._run_id = run_id
        self._dimension = store.encoder.dimension
        self._number = store.next_part - 1
        self._rows: list[Row] = []
        self._features: list[NDArray[np.float16]] = []
        self._started = time.monotonic()

    @property
    def store(self) -> Store:
        """The store that it writes to."""
        return self._store

    def __enter__(self) -> "PartWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, StoreError):  # the disk is full: what it can't take now it can't take again
            self.flush()

    def add(self, image: ImageRef, decoded: Decoded, features: NDArray[np.float32] | None, *, supersedes: bool) -> None:
        """Add an image: with its features (D,), or with the error in `decoded`."""
        row = {name: getattr(decoded, name) for name in _DECODED}
        row["status"] = "ok" if decoded.error is None else "error"
        if not self._gps:
            row.update(latitude=None, longitude=None)
        if features is None:
            row["look"] = None
        else:
            self._features.append(features.astype(np.float16))
        self._append(self._row(image, row, supersedes))

    def adopt(
        self,
        image: ImageRef,
        facts: Row,
        features: NDArray[np.float16],
        *,
        supersedes: bool,
        instead_of: ImageRef | None = None,
    ) -> None:
        """Add an image whose bytes the store knows.

        Args:
            image: the image, with the size and time of its file.
            facts: the `INHERITED` columns of a row of the same bytes.
            features: (D,) of that row, as stored.
            supersedes: whether the store has a row of `image` in its view.
            instead_of: the image that had these bytes before they moved. It leaves the view in the same part, so that
                whatever stops the run, exactly one of the two is in the view.

        """
        row = {**facts, "size_bytes": image.size_bytes, "mtime_ns": image.mtime_ns}
        rows = [self._row(image, row, supersedes)]
        if instead_of is not None:
            rows.append(self._row(instead_of, {"status": "removed"}, True))
        self._features.append(features)
        self._append(*rows)

    def remove(self, image: ImageRef) -> None:
        """Take an image out of the view."""
        self._append(self._row(image, {"status": "removed"}, True))

    def _row(self, image: ImageRef, row: Row, supersedes: bool) -> Row:
        row.update(
            image_id=image.image_id,
            uri=image.uri,
            source=image.source,
            path=image.path,
            folder=image.folder,
            split=image.split,
            supersedes=supersedes,
            run_id=self._run_id,
        )
        return row

    def _append(self, *rows: Row) -> None:
        self._rows.extend(rows)
        if len(self._rows) >= PART_ROWS or time.monotonic() - self._started >= PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what has been collected as a part.

        Raises:
            StoreError: the disk is full or not writable; parts written before are whole.

        """
        if self._rows:
            number = self._number + 1
            path = self._store.images / f"part-{number:08d}.parquet"
            if not path.exists():  # after a Ctrl-C that came just when it had been written, it does
                try:
                    self._write(path, number)
                except OSError as error:
                    raise StoreError(no_room(self._store.root, error)) from error
            self._features.clear()
            self._rows.clear()
            self._number = number
        self._started = time.monotonic()

    def _write(self, path: Path, number: int) -> None:
        for row in self._rows:
            row["part"] = number
        table = pa.Table.from_pylist(self._rows, schema=_FACTS)
        values = pa.array(np.concatenate(self._features) if self._features else np.empty(0, np.float16))
        has = pc.equal(table["status"], "ok").to_numpy()
        ends = np.cumsum(has, dtype=np.int32) * self._dimension
        # The lists of unreadable and removed images are null.
        lists = pa.ListArray.from_arrays(np.append(np.int32(0), ends), values, mask=pa.array(~has))
        table = table.append_column("embedding", lists).cast(SCHEMA)
        with replacing(path) as temporary:
            write_part(table, temporary)


def write_part(table: pa.Table, path: Path) -> None:
    """Write the rows of a part, as they are stored."""
    pq.write_table(table, path, **PARQUET)


@dataclass(frozen=True)
class FeatureBatch:
    """Some readable images of the current view: ids, paths, folders, and (N, D) features as they are stored."""

    image_ids: pa.Array
    paths: pa.Array
    folders: pa.Array
    codes: Codes

    @cached_property
    def features(self) -> NDArray[np.float32]:
        """(N, D) float32 of length 1."""
        return unit(self.codes)

    def slice(self, start: int, rows: int) -> "FeatureBatch":
        """Some of them, without a copy."""
        ids, paths, folders = (column.slice(start, rows) for column in (self.image_ids, self.paths, self.folders))
        return FeatureBatch(ids, paths, folders, self.codes[start : start + rows])


def iter_features(
    store: Store, *, batch_rows: int = 4096, parts: list[Path] | None = None, start: float = 0.0, share: float = 1.0
) -> Iterator[FeatureBatch]:
    """Stream the features of all readable images, part after part; memory holds three row groups, two being read.

    Args:
        store: the store.
        batch_rows: how many images a batch has, at most.
        parts: as `store.parts` gave them; by default those of now, whatever a writer adds meanwhile.
        start, share: of a random sample, about this share of the images: those whose ids, which are hashes, are in this
            part of the circle of all ids. Other `start`s give other samples.

    """
    from ood_audit.store.views import outdated_rows

    parts = store.parts if parts is None else parts
    outdated = outdated_rows(store, parts)
    coming: deque[Future[list[FeatureBatch]]] = deque()
    with ThreadPoolExecutor(_READERS, thread_name_prefix="features") as readers:
        for part, group in _row_groups(parts):
            gone = outdated.get(part)
            batches = _features_of(part, group, gone, store.encoder.dimension, batch_rows, start, share)
            coming.append(readers.submit(list, batches))
            if len(coming) > _READERS:
                yield from coming.popleft().result()
        while coming:
            yield from coming.popleft().result()


def _row_groups(parts: list[Path]) -> Iterator[tuple[Path, int]]:
    for part in parts:
        with _opened(part) as file:
            groups = file.num_row_groups
        yield from ((part, group) for group in range(groups))


def _features_of(
    part: Path, group: int, outdated: pa.Array | None, dimension: int, batch_rows: int, start: float, share: float
) -> Iterator[FeatureBatch]:
    names = ["image_id", "path", "folder", "embedding"]
    for batch in _readable(part, group, outdated, names, batch_rows, start, share):
        values = batch["embedding"].flatten().to_numpy(zero_copy_only=False)
        yield FeatureBatch(batch["image_id"], batch["path"], batch["folder"], values.reshape(-1, dimension))


def has_looks(parts: list[Path]) -> bool:
    """Whether every readable image has a look, see `encoders.looks`; by what the parts say of themselves."""
    for part, group in _row_groups(parts):
        with _opened(part) as file:
            names = file.schema_arrow.names
            if "look" not in names:
                return False
            place = [file.schema.column(i).path for i in range(len(file.schema))].index("look")
            nulls = file.metadata.row_group(group).column(place).statistics.null_count
            status = file.read_row_group(group, columns=["status"])["status"]
        if nulls != pc.sum(pc.not_equal(status, "ok")).as_py():
            return False
    return True


def iter_looks(
    store: Store, *, batch_rows: int = 4096, parts: list[Path] | None = None, start: float = 0.0, share: float = 1.0
) -> Iterator[NDArray[np.float32]]:
    """Stream the looks of what `iter_features` streams, in its order and batches: (N, L) float32 of length 1.

    Every readable image must have one, see `has_looks`; the other parameters are those of `iter_features`.
    """
    from ood_audit.store.views import outdated_rows

    parts = store.parts if parts is None else parts
    outdated = outdated_rows(store, parts)
    for part, group in _row_groups(parts):
        names = ["image_id", "look"]
        for batch in _readable(part, group, outdated.get(part), names, batch_rows, start, share):
            yield looks.read(batch["look"].to_pylist())


def looks_of(store: Store, image_ids: list[str]) -> list[bytes | None]:
    """The looks of images as they are stored; None for those without one."""
    from ood_audit.store.views import outdated_rows

    known: dict[str, bytes] = {}
    parts, wanted = store.parts, pa.array(image_ids, pa.string())
    outdated = outdated_rows(store, parts)
    for part, group in _row_groups(parts):
        for batch in _readable(part, group, outdated.get(part), ["image_id", "look"], PART_ROWS, 0.0, 1.0):
            if "look" not in batch.schema.names:
                break  # a part of an older version
            rows = batch.filter(pc.is_in(batch["image_id"], value_set=wanted))
            known.update(zip(rows["image_id"].to_pylist(), rows["look"].to_pylist(), strict=True))
    return [known.get(image_id) for image_id in image_ids]


def _readable(
    part: Path, group: int, outdated: pa.Array | None, names: list[str], batch_rows: int, start: float, share: float
) -> Iterator[pa.RecordBatch]:
    """Columns of the readable images of a row group that are in the current view and in a sample."""
    with _opened(part) as file:
        columns = [name for name in (*names, "status") if name in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=batch_rows, row_groups=[group], columns=columns):
            keep = pc.equal(batch["status"], "ok")
            if outdated is not None:
                keep = pc.and_not(keep, pc.is_in(batch["image_id"], value_set=outdated))
            if share < 1:
                keep = pc.and_(keep, _sampled(batch["image_id"], start, share))
            if not pc.all(keep).as_py():
                batch = batch.filter(keep)
            if batch.num_rows:
                yield batch


def _sampled(image_ids: pa.Array, start: float, share: float) -> pa.Array:
    """Which ids are in the part of the circle from `start`, of the length `share`."""
    low, high = (f"{int(at % 1 * 16**8):08x}" for at in (start, start + share))  # as the first digits of ids
    above, below = pc.greater_equal(image_ids, low), pc.less(image_ids, high)
    return pc.and_(above, below) if low <= high else pc.or_(above, below)


@contextmanager
def _opened(part: Path) -> Iterator[pq.ParquetFile]:
    from ood_audit.store.views import damaged, merged

    try:
        with pq.ParquetFile(part) as file:
            yield file
    except FileNotFoundError as error:
        raise merged() from error
    except pa.ArrowInvalid as error:
        raise damaged(f"{part}: {error}") from error
