"""Adopt features for files whose bytes the store knows: files that were moved, renamed, restored or only touched.

`find` compares by size first. Only a new or changed file that is as large as a file which is gone, or as an earlier
version in the store, is read and hashed. Where the hash is equal too, `adopt` writes its row with the stored feature,
without decoding or embedding it. If an image whose file is gone had these bytes, the file has moved, and the image
leaves the view in the same part.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ood_audit.embedding.changes import Changes
from ood_audit.images.access import is_gone, read
from ood_audit.images.content import box_hash, content_hash
from ood_audit.images.sources import ImageRef
from ood_audit.images.uri import image_and_box
from ood_audit.store.parts import INHERITED, PartWriter
from ood_audit.store.sources import state_of
from ood_audit.store.views import registered
from ood_audit.values import Row, RowValues

_TOGETHER = 1024  # files that are looked at before the next ones are listed
_ROWS = 1024  # rows with features in memory

# The rows whose features can be adopted, with the state of their image in the table `changes`. A row that is out of
# the view counts too: `embed` removed it while its file was away, or the file had these bytes before it changed.
_DONORS = """
CREATE TABLE donors AS
SELECT r.image_id, r.part, r.uri, r.source, r.path, r.size_bytes, r.mtime_ns, r.content_hash, r.status,
       CASE WHEN s.part > r.part THEN 'superseded' ELSE d.state END AS state
FROM _rows AS r LEFT JOIN _superseded AS s USING (image_id) LEFT JOIN changes AS d ON d.uri = r.uri
WHERE r.status <> 'removed' AND r.content_hash IS NOT NULL AND r.size_bytes IN (SELECT size_bytes FROM wanted)
"""
_IRRELEVANT = """
DELETE FROM donors
WHERE state IS NULL OR state NOT IN ('superseded', 'changed', 'not found')
   OR (state <> 'not found' AND status <> 'ok')
   OR (state = 'not found' AND (
       NOT starts_with(uri, 'file:') OR EXISTS (FROM kept AS k WHERE starts_with(donors.uri, k.prefix))
   ))
"""
# Several files can have the same bytes: those with the same path go together first, then those with the same name.
_PAIRS = """
INSERT INTO pairs
WITH new AS (
    SELECT uri, content_hash, {key} AS key, row_number() OVER (PARTITION BY content_hash, {key} ORDER BY uri) AS number
    FROM hashed ANTI JOIN pairs USING (uri) WHERE state = 'new'
), old AS (
    SELECT image_id, content_hash, {key} AS key,
           row_number() OVER (PARTITION BY content_hash, {key} ORDER BY uri) AS number
    FROM donors ANTI JOIN pairs USING (image_id) WHERE state = 'not found'
)
SELECT uri, image_id FROM new JOIN old USING (content_hash, key, number)
"""
_ADOPTED = """
CREATE TABLE adopted AS
SELECT h.uri, s.source, h.path, h.size_bytes, h.mtime_ns, d.label, d.split, f.image_id AS donor, f.part AS donor_part,
       CASE WHEN p.image_id IS NOT NULL THEN 'moved' WHEN h.state = 'new' THEN 'added' ELSE 'changed' END AS outcome,
       o.uri AS old_uri, o.source AS old_source, o.path AS old_path, o.size_bytes AS old_size, o.mtime_ns AS old_mtime
FROM hashed AS h
JOIN (SELECT content_hash, arg_max(image_id, part) AS image_id, max(part) AS part
      FROM donors WHERE status = 'ok' GROUP BY content_hash) AS f USING (content_hash)
JOIN changes AS d ON d.uri = h.uri AND d.state = h.state
JOIN sources AS s ON s.id = d.source
LEFT JOIN pairs AS p ON p.uri = h.uri
LEFT JOIN donors AS o ON o.image_id = p.image_id AND o.state = 'not found'
"""
# An image that never could be read is decoded at its new place too, where it is a new row.
_REPLACED = """
SELECT o.uri, o.source, o.path, o.size_bytes, o.mtime_ns
FROM (FROM pairs ANTI JOIN adopted USING (uri)) AS p
JOIN donors AS o ON o.image_id = p.image_id AND o.state = 'not found'
"""
# Where the rest of a source has moved to, as far as the paths inside of it are the same.
_PLACES = """
CREATE TABLE places AS
SELECT DISTINCT old_source, source, left(path, len(path) - len(old_path)) AS above
FROM adopted WHERE outcome = 'moved' AND ends_with(path, old_path)
"""
# A file of it that was changed on the way is another one at the place where it belongs.
_CHANGED_ON_THE_WAY = """
SELECT DISTINCT c.uri, c.old_source, c.path, c.size_bytes, c.mtime_ns
FROM changes AS c JOIN places AS p ON p.old_source = c.old_source
JOIN changes AS n ON n.state = 'new' AND n.path = p.above || c.path
JOIN sources AS s ON s.id = n.source AND s.source = p.source
WHERE c.state = 'not found'
"""


@dataclass(frozen=True)
class Adoption:
    """What `find` found.

    Attributes:
        replaced: The images that have moved but are to be embedded where they are now, as they were unreadable, or were
            changed on the way: each is to be removed.
        db: A connection with the views of the store and the table `adopted`, of the files whose features the store has.
            None where there are no such files.

    """

    replaced: Sequence[ImageRef]
    db: duckdb.DuckDBPyConnection | None


NOTHING = Adoption((), None)


def find(changes: Changes, on_progress: Callable[[int, int], None]) -> Adoption:
    """Find the files whose features can be adopted, and take them out of the changes.

    Args:
        changes: what has changed in the sources.
        on_progress: called with the number of files that were hashed and that will be.

    """
    db = changes.db
    db.execute("CREATE TABLE pairs (uri VARCHAR, image_id VARCHAR)")
    db.execute(
        "CREATE TABLE wanted AS SELECT uri, path, size_bytes, state FROM changes "
        "WHERE state IN ('new', 'changed') AND size_bytes > 0 AND starts_with(uri, 'file:')"
    )
    db.execute(_DONORS)
    db.execute(_IRRELEVANT)
    _keep_what_is_gone(db)
    count = _hash(db, on_progress)
    for key in ("path", "split_part(path, '/', -1)", "''"):
        db.execute(_PAIRS.format(key=key))
    db.execute(_ADOPTED)
    replaced = db.execute(_REPLACED).fetchall()
    db.execute("DELETE FROM changes WHERE uri IN (SELECT uri FROM adopted)")
    db.execute(
        "DELETE FROM changes WHERE state = 'not found' "
        "AND uri IN (SELECT o.uri FROM donors AS o JOIN pairs USING (image_id))"
    )
    replaced += _changed_on_the_way(db)
    return Adoption([ImageRef(*row) for row in replaced], db if count else None)


def _changed_on_the_way(db: duckdb.DuckDBPyConnection) -> list[RowValues]:
    """The images of sources that are away whose files were changed when the others moved."""
    db.execute(_PLACES)
    for (source,) in db.execute("SELECT DISTINCT old_source FROM places").fetchall():
        if not _is_away(source):
            db.execute("DELETE FROM places WHERE old_source = ?", [source])
    rows = db.execute(_CHANGED_ON_THE_WAY).fetchall()
    for uri, *_ in rows:
        db.execute("DELETE FROM changes WHERE uri = ?", [uri])
    return rows


def relabel(changes: Changes, writer: PartWriter) -> Iterator[None]:
    """Write anew, with their features, the rows of images of which only the label or the split is another."""
    facts = ", ".join(f"r.{name}" for name in INHERITED)
    reader = (
        changes.db.cursor()
        .sql(
            "SELECT d.uri, i.source, i.path, i.size_bytes, i.mtime_ns, coalesce(d.label, i.folder), d.split, "
            f"{facts}, r.embedding FROM changes AS d JOIN images AS i USING (uri) "
            "JOIN _rows AS r ON r.image_id = i.image_id AND r.run_id = i.run_id AND r.status <> 'removed' "
            "ANTI JOIN _superseded AS s ON s.image_id = r.image_id AND s.part > r.part WHERE d.state = 'relabelled'"
        )
        .to_arrow_reader(_ROWS)
    )
    for row, feature in _rows_with_features(reader):
        image = ImageRef(*list(row.values())[:7])
        writer.adopt(image, {name: row[name] for name in INHERITED}, feature, supersedes=True)
        yield


def adopt(found: Adoption, writer: PartWriter) -> Iterator[str]:
    """Write the rows of what was found, and yield the outcome of each: `moved`, `added` or `changed`."""
    if found.db is None:
        return
    facts = ", ".join(f"r.{name}" for name in INHERITED)
    reader = (
        found.db.cursor()
        .sql(  # `execute` would hold all rows in memory
            "SELECT outcome, a.uri, a.source, a.path, a.size_bytes, a.mtime_ns, a.label, a.split, old_uri, old_source, "
            f"old_path, old_size, old_mtime, {facts}, r.embedding FROM adopted AS a "
            "JOIN _rows AS r ON r.image_id = a.donor AND r.part = a.donor_part"
        )
        .to_arrow_reader(_ROWS)
    )
    for row, feature in _rows_with_features(reader):
        outcome, *image = list(row.values())[:13]
        new, old = ImageRef(*image[:7]), ImageRef(*image[7:])
        writer.adopt(
            new,
            {name: row[name] for name in INHERITED},
            feature,
            supersedes=outcome == "changed",
            instead_of=old if outcome == "moved" else None,
        )
        yield outcome


def _rows_with_features(reader: pa.RecordBatchReader) -> Iterator[tuple[Row, NDArray[np.float16]]]:
    """Each row without its embedding, and that as an array (D,)."""
    for batch in reader:
        values = batch.column("embedding").flatten().to_numpy(zero_copy_only=False).astype(np.float16)
        rows = pa.Table.from_batches([batch]).drop_columns("embedding").to_pylist()
        yield from zip(rows, values.reshape(batch.num_rows, -1), strict=True)


def _keep_what_is_gone(db: duckdb.DuckDBPyConnection) -> None:
    """Of the images that the scan did not find, keep as donors those whose files are no longer there."""
    db.execute("CREATE TABLE gone (image_id VARCHAR)")
    unsure = "FROM donors WHERE state = 'not found'"
    away = {source: _is_away(source) for (source,) in db.execute(f"SELECT DISTINCT source {unsure}").fetchall()}
    cursor = db.cursor().execute(f"SELECT image_id, uri, source {unsure}")
    with ThreadPoolExecutor(thread_name_prefix="stat") as pool:
        while rows := cursor.fetchmany(_TOGETHER):
            known = pool.map(lambda row: away[row[2]] or is_gone(row[1]), rows)
            _insert(db, "gone", [row[:1] for row, is_away in zip(rows, known, strict=True) if is_away])
    db.execute("DELETE FROM donors WHERE state = 'not found' AND image_id NOT IN (SELECT image_id FROM gone)")


def _is_away(source: str) -> bool:
    """Whether no file can be found under the name that a source has in the store."""
    return state_of(source) in ("missing", "link")


def _hash(db: duckdb.DuckDBPyConnection, on_progress: Callable[[int, int], None]) -> int:
    """Hash each file that is as large as a donor: the table `hashed` has those that a donor equals."""
    db.execute(
        "CREATE TABLE hashed "
        "(uri VARCHAR, path VARCHAR, state VARCHAR, content_hash VARCHAR, size_bytes BIGINT, mtime_ns BIGINT)"
    )
    chosen = "FROM wanted WHERE size_bytes IN (SELECT size_bytes FROM donors)"
    total = int((db.execute(f"SELECT count(*) {chosen}").fetchone() or [0])[0])
    cursor = db.cursor().execute(f"SELECT uri, path, state {chosen} ORDER BY uri")  # the members of a tar file together
    done = 0
    with ThreadPoolExecutor(thread_name_prefix="hash") as pool:
        while rows := cursor.fetchmany(_TOGETHER):
            found = []
            for row, known in zip(rows, pool.map(_content, [uri for uri, *_ in rows]), strict=True):
                done += 1
                on_progress(done, total)
                if known is not None:
                    found.append((*row, *known))
            _insert(db, "hashed", found)
    db.execute("DELETE FROM hashed WHERE content_hash NOT IN (SELECT content_hash FROM donors)")
    return total


def _content(uri: str) -> tuple[str, int, int] | None:
    """Hash, size and time of a file; None where it can't be read, which decoding will report."""
    try:
        content = read(uri)
    except (OSError, ValueError):
        return None
    own, (_, box) = content_hash(content.data), image_and_box(uri)
    return own if box is None else box_hash(own, box), content.size_bytes, content.mtime_ns


def _insert(db: duckdb.DuckDBPyConnection, table: str, rows: list[RowValues]) -> None:
    if rows:
        names = [row[0] for row in db.execute(f"DESCRIBE {table}").fetchall()]
        with registered(db, found=pa.table(dict(zip(names, zip(*rows, strict=True), strict=True)))):
            db.execute(f"INSERT INTO {table} FROM found")
