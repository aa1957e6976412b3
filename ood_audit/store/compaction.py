"""`compact`: many small parts become few large ones, without the rows that no longer count.

A merged part is named by the parts that it replaces: `part-00000001-00000007.parquet` holds what counts of the parts 1
to 7, each row with its own number in `part`. Its name makes it one step: from the moment that it is there, those seven
are no longer in force (`Store.parts`), and may be deleted one by one. The newest number stays what it is, so that
scores, index and findings are still those of the store.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ood_audit.errors import StoreError
from ood_audit.progress import Progress, silent
from ood_audit.store import totals
from ood_audit.store.files import flush, remove, replacing
from ood_audit.store.folder import span
from ood_audit.store.locks import has_readers, writing
from ood_audit.store.parts import PARQUET, SCHEMA
from ood_audit.store.schema import completed
from ood_audit.store.store import Store, raise_version
from ood_audit.store.views import connect, damaged, outdated_rows

PART_ROWS = 262_144  # a merged part has no more
_GROUP_ROWS = 32_768  # rows read and written at a time
_WORTH = 0.1  # a part is written anew if more of its rows than this share no longer count


@dataclass(frozen=True)
class Compacted:
    """What was done.

    Attributes:
        parts_before: how many parts were in force, and
        parts_after: are now.
        dropped: rows that no longer counted and are gone.
        bytes_before: of all parts on disk, and
        bytes_after: now.
        left: parts that are no longer in force, but were not deleted, as a report may be reading them.

    """

    parts_before: int
    parts_after: int
    dropped: int
    bytes_before: int
    bytes_after: int
    left: int


def compact(store: Store, *, on_progress: Progress = silent) -> Compacted:
    """Merge small parts that follow each other, and drop superseded and removed rows.

    What a query sees stays the same throughout. Needs room on the disk for one merged part; memory holds some rows.
    A kill leaves either the old parts in force or the merged one, and the next `compact` goes on.

    Args:
        store: the store.
        on_progress: called with the rows read and to read, see `ood_audit.progress.Progress`.

    Raises:
        StoreError: another is writing, a part is damaged, or the disk is full.

    """
    with writing(store.root, "images"):
        bytes_before, parts_before = _bytes(store), len(store.parts)
        _sweep(store)
        runs = _runs(store)
        total = sum(pq.read_metadata(part).num_rows for run in runs for part in run)
        done = dropped = 0
        if runs:
            raise_version(store)
        for run in runs:
            for rows, kept in _merge(store, run):
                done += rows
                dropped += rows - kept
                on_progress("compacting", done, total)
            _sweep(store)
        totals.keep(store)
        left = len(_replaced(store))
        return Compacted(parts_before, len(store.parts), dropped, bytes_before, _bytes(store), left)


def _runs(store: Store) -> list[list[Path]]:
    """The parts to write anew: lists of those that become one."""
    parts = store.parts
    gone = {part: len(ids) for part, ids in outdated_rows(store, parts).items()}
    runs: list[list[Path]] = []
    kept = 0
    for part in parts:
        try:
            rows = pq.read_metadata(part).num_rows - gone.get(part, 0)
        except (OSError, pa.ArrowInvalid) as error:
            raise damaged(f"{part}: {error}") from error
        if runs and kept + rows <= PART_ROWS:
            runs[-1].append(part)
            kept += rows
        else:
            runs.append([part])
            kept = rows
    return [run for run in runs if len(run) > 1 or gone.get(run[0], 0) > _WORTH * pq.read_metadata(run[0]).num_rows]


def _merge(store: Store, run: list[Path]) -> Iterator[tuple[int, int]]:
    """Write what counts of parts that follow each other as one; yields how many rows it read and kept, bit by bit."""
    parts = store.parts
    first, last = span(run[0])[0], span(run[-1])[1]
    outdated = outdated_rows(store, parts)
    with connect(store, parts) as db:
        # What rows of these parts take out of the view, and older parts, which stay, have.
        older = db.sql(
            "SELECT DISTINCT r.image_id FROM _rows AS r SEMI JOIN "
            f"(SELECT image_id FROM _rows WHERE supersedes AND part BETWEEN {first} AND {last}) AS s USING (image_id) "
            f"WHERE r.part < {first}"
        ).to_arrow_table()["image_id"]
    with (
        replacing(store.images / f"part-{first:08d}-{last:08d}.parquet") as temporary,
        pq.ParquetWriter(temporary, SCHEMA, **PARQUET) as writer,
    ):
        waiting = [SCHEMA.empty_table()]
        for part in run:
            try:
                with pq.ParquetFile(part) as file:
                    for batch in file.iter_batches(batch_size=_GROUP_ROWS):
                        table = _counted(pa.Table.from_batches([batch]), outdated.get(part), older)
                        waiting.append(completed(table, SCHEMA))
                        yield len(batch), len(table)
                        if sum(map(len, waiting)) >= _GROUP_ROWS:
                            writer.write_table(pa.concat_tables(waiting))
                            waiting = [SCHEMA.empty_table()]
            except pa.ArrowInvalid as error:
                raise damaged(f"{part}: {error}") from error
        writer.write_table(pa.concat_tables(waiting))


def _counted(table: pa.Table, gone: pa.Array | None, older: pa.ChunkedArray) -> pa.Table:
    """The rows that still say something; they supersede what there still is."""
    supersedes = pc.and_(table["supersedes"], pc.is_in(table["image_id"], value_set=older.combine_chunks()))
    says = pc.or_(pc.not_equal(table["status"], "removed"), supersedes)
    if gone is not None:
        says = pc.and_not(says, pc.is_in(table["image_id"], value_set=gone))
    position = table.schema.get_field_index("supersedes")
    return table.set_column(position, table.schema.field(position), supersedes).filter(says)


def _replaced(store: Store) -> list[Path]:
    """Parts that others hold the rows of."""
    return sorted({*store.images.glob("part-*.parquet")}.difference(store.parts))


def _sweep(store: Store) -> None:
    """Delete them, unless a report or a score run may be reading them."""
    if replaced := _replaced(store):
        if has_readers(store.root):
            return
        try:
            with writing(store.root, "scores"):
                for part in replaced:
                    remove(part)
                flush(store.images)
        except StoreError:
            return


def _bytes(store: Store) -> int:
    return sum(part.stat().st_size for part in store.images.glob("part-*.parquet"))
