"""What the sources hold and the store does not, or the other way round.

There may be more images than memory has room for, so a listing lies in tables of DuckDB, which keeps them on disk.
`compare` makes these tables, and `Changes` is the handle by which other steps get at them.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from ood_audit.embedding.scan import Scan
from ood_audit.embedding.work import Work
from ood_audit.errors import UsageError
from ood_audit.images.access import is_gone
from ood_audit.images.found import image_id
from ood_audit.images.sources import ImageRef
from ood_audit.images.splits import of_folders as splits_of
from ood_audit.images.uri import file_uri, image_and_box, is_remote
from ood_audit.progress import Progress
from ood_audit.store import Store, annotations
from ood_audit.store.views import registered
from ood_audit.text import printable, storable
from ood_audit.values import RowValues

_MEMORY = "1GB"  # beyond it, DuckDB keeps the listing on disk
_BOXES = 8192  # boxes read at a time
_FOLDER = "left(f.path, -(length(split_part(f.path, '/', -1)) + 1))"  # the folder of an image in the listing


@dataclass(frozen=True)
class Changes:
    """The images that are not in the store as they are in the sources.

    Attributes:
        db: A connection with the views of the store and three tables. `changes` has a row for each of these images,
            with its `state`: `new`, `changed`, `retry` (it could not be read so far), `relabelled` (nothing but its
            label or split is new) or `not found`. `sources` has the `id`, the name and the URI `prefix` of each source,
            and `kept` the prefixes of the URIs in folders that can't be read now.
        listed: How many images the sources hold.

    """

    db: duckdb.DuckDBPyConnection
    listed: int

    def count(self, *states: str) -> int:
        """How many images are in one of these states."""
        sql = "SELECT count(*) FROM changes WHERE state IN (SELECT unnest(?::VARCHAR[]))"
        return _number(self.db, sql, [list(states)])

    def work(self) -> Iterator[Work]:
        """The images to embed, source by source."""
        sql = (
            "SELECT d.uri, s.source, d.path, d.size_bytes, d.mtime_ns, d.label, d.split, d.state, d.known_error "
            "FROM changes AS d JOIN sources AS s ON d.source = s.id WHERE d.state <> 'relabelled' "
            "ORDER BY s.source, d.path, d.uri"
        )
        for *image, state, known_error in _stream(self.db, sql):
            yield Work(ImageRef(*image), state == "new", known_error)

    def removed(self) -> Iterator[ImageRef]:
        """Images of the sources that are no longer there. Those in folders that can't be read now are kept."""
        sql = """
            SELECT d.uri, d.old_source, d.path, d.size_bytes, d.mtime_ns, d.old_source IN (SELECT source FROM sources)
            FROM changes AS d
            WHERE d.state = 'not found'
              AND EXISTS (FROM sources AS s WHERE s.source = d.old_source OR starts_with(d.uri, s.prefix))
              AND NOT EXISTS (FROM kept AS k WHERE starts_with(d.uri, k.prefix))
            ORDER BY d.uri
        """
        for *row, is_own in _stream(self.db, sql):
            image = ImageRef(*row)
            # What another source named (a hidden folder, a file of any name) this one passes over: it may be there.
            if is_own or is_gone(image.uri):
                yield image


def compare(
    db: duckdb.DuckDBPyConnection,
    store: Store,
    scans: Sequence[Scan],
    *,
    crops: str,
    on_progress: Progress,
    on_note: Callable[[str], None],
) -> Changes:
    """List the sources, write what datasets say of their images to the store, and compare the listing with it.

    Args:
        db: A connection with the views of the store, on which the tables are made.
        store: The store.
        scans: The sources. They are read to their end here, so that their notes are complete afterwards.
        crops: What becomes of the boxes of datasets, see `EmbedSettings`.
        on_progress: Called with the number of images listed so far.
        on_note: Called with a sentence for each thing that is wrong with the labels.

    Raises:
        UsageError: There are no boxes, and `crops` is `on`.

    """
    db.execute(f"SET memory_limit = '{_MEMORY}'")
    db.execute("SET temp_directory = ?", [str(store.images / ".scan.tmp")])
    _list(db, scans, on_progress)
    _find_splits(db, scans)
    _keep_annotations(db, store, scans, on_note)
    if crops == "on" and not _number(db, "SELECT count(*) FROM listing WHERE box IS NOT NULL"):
        raise UsageError("`crops=on` needs a dataset with boxes, such as a COCO or YOLO file; leave it out")
    if crops == "off":
        db.execute("DELETE FROM listing WHERE box IS NOT NULL")
    if len(scans) > 1 or not os.path.isdir(scans[0].source):  # else no image is found twice
        _merge_labels(db, on_note)
        db.execute(
            "CREATE OR REPLACE TABLE listing AS SELECT DISTINCT ON (uri) * FROM listing "
            "ORDER BY uri, coalesce(label, '') = '', label IS NULL, split IS NULL, source, path"
        )
    # What folders say never overrules the split that a store has. A label or a split that is given does.
    db.execute(
        f"""
        CREATE TABLE changes AS
        SELECT coalesce(f.uri, i.uri) AS uri, f.source, i.source AS old_source,
               coalesce(f.path, i.path) AS path, coalesce(f.size_bytes, i.size_bytes) AS size_bytes,
               coalesce(f.mtime_ns, i.mtime_ns) AS mtime_ns, i.error AS known_error,
               f.label, coalesce(f.split, i.split, s.split) AS split,
               CASE WHEN f.uri IS NULL THEN 'not found' WHEN i.uri IS NULL THEN 'new'
                    WHEN i.status = 'error' THEN 'retry'
                    WHEN f.size_bytes >= 0 AND (i.size_bytes <> f.size_bytes OR i.mtime_ns <> f.mtime_ns)
                    THEN 'changed'
                    WHEN f.size_bytes < 0 AND f.mtime_ns > 0 AND i.mtime_ns <> f.mtime_ns THEN 'changed'
                    WHEN f.label <> i.folder OR coalesce(f.split, i.split, s.split) IS DISTINCT FROM i.split
                    THEN 'relabelled'
                    ELSE 'unchanged' END AS state
        FROM listing AS f LEFT JOIN folder_splits AS s ON s.source = f.source AND s.folder = {_FOLDER}
        FULL JOIN images AS i ON i.uri = f.uri
        WHERE state <> 'unchanged'
        """
    )
    return Changes(db, _number(db, "SELECT count(*) FROM listing"))


def _list(db: duckdb.DuckDBPyConnection, scans: Sequence[Scan], on_progress: Progress) -> None:
    """Make the tables `listing`, of all images that the sources hold, `sources` and `kept`."""
    db.execute(
        "CREATE TABLE listing (source INTEGER, uri VARCHAR, path VARCHAR, size_bytes BIGINT, mtime_ns BIGINT, "
        "label VARCHAR, split VARCHAR, box STRUCT(id VARCHAR, x DOUBLE, y DOUBLE, width DOUBLE, height DOUBLE))"
    )
    db.execute("CREATE TABLE sources (id INTEGER, source VARCHAR, prefix VARCHAR)")
    db.execute("CREATE TABLE kept (prefix VARCHAR)")
    listed = 0
    for number, one in enumerate(scans):
        # A folder also answers for what other sources found inside of it.
        uri = one.source.partition("?")[0] if is_remote(one.source) else file_uri(one.source)
        prefix = uri.rstrip("/") + "/"
        db.execute("INSERT INTO sources VALUES (?, ?, ?)", [number, storable(one.source), prefix])
        for batch in one.tables:
            with registered(db, batch=batch):
                db.execute(
                    "INSERT INTO listing SELECT ?, * REPLACE (coalesce(?, split) AS split) FROM batch",
                    [number, one.split],
                )
            listed += len(batch)
            on_progress("looking for images", listed)
        for folder in one.notes.unreadable:
            uri = folder if is_remote(folder) else file_uri(folder)
            db.execute("INSERT INTO kept VALUES (?), (?)", [uri + "/", uri + "#"])


def _find_splits(db: duckdb.DuckDBPyConnection, scans: Sequence[Scan]) -> None:
    """Make the table `folder_splits`: the splits of the folders of each source that say one."""
    db.execute("CREATE TABLE folder_splits (source INTEGER, folder VARCHAR, split VARCHAR)")
    for number, one in enumerate(scans):
        sql = f"SELECT DISTINCT {_FOLDER} FROM listing AS f WHERE source = ? AND split IS NULL"
        folders = [folder for (folder,) in db.execute(sql, [number]).fetchall()]
        found = splits_of(folders, storable(os.path.basename(one.source.partition("?")[0].rstrip("/"))))
        if found:
            table = pa.table({"source": [number] * len(found), "folder": [*found], "split": [*found.values()]})
            with registered(db, found=table):
                db.execute("INSERT INTO folder_splits FROM found")


def _keep_annotations(
    db: duckdb.DuckDBPyConnection, store: Store, scans: Sequence[Scan], on_note: Callable[[str], None]
) -> None:
    """Write the classes and boxes of datasets to the store, and tell what is wrong with them."""
    sql = (
        "SELECT f.uri, f.box.id AS box_id, f.label, f.box.x AS x, f.box.y AS y, f.box.width AS width, "
        "f.box.height AS height, coalesce(f.split, s.split) AS split "
        f"FROM listing AS f LEFT JOIN folder_splits AS s ON s.source = f.source AND s.folder = {_FOLDER} "
        "WHERE f.source = ? AND f.box IS NOT NULL ORDER BY f.path, f.uri"
    )
    for number, one in enumerate(scans):
        notes = one.notes
        for kind, (count, first) in notes.problems.items():
            name = printable(os.path.basename(one.source.rstrip(os.sep)))
            on_note(f"{name}: {kind}: {count:,}; the first: {printable(first)}")
        if not notes.format and not notes.classes:
            annotations.forget(store, one.source)
            continue
        reader: pa.RecordBatchReader = db.cursor().sql(sql, params=[number]).to_arrow_reader(_BOXES)
        annotations.write_boxes(store, one.source, map(_boxes, reader))
        annotations.describe(store, one.source, notes.format, notes.classes, notes.problems)


def _boxes(batch: pa.RecordBatch) -> pa.Table:
    """Boxes with the ids of their images, with the columns of `schema.ANNOTATIONS`."""
    images = [image_id(image_and_box(uri)[0]) for uri in batch["uri"].to_pylist()]
    return pa.Table.from_batches([batch]).append_column("image_id", pa.array(images, pa.string()))


def _merge_labels(db: duckdb.DuckDBPyConnection, on_note: Callable[[str], None]) -> None:
    """Leave images without a label that a source labels in several ways, and say so."""
    several = "FROM listing WHERE label <> '' GROUP BY source, uri HAVING count(DISTINCT label) > 1"
    rows = db.execute(f"SELECT count(*), min(path) FROM (SELECT uri, min(path) AS path {several})").fetchall()
    count, first = rows[0]
    if count:
        on_note(f"images with several labels, which have none: {count:,}; the first: {printable(first)}")
        db.execute(f"UPDATE listing SET label = '' WHERE (source, uri) IN (SELECT source, uri {several})")


def _number(db: duckdb.DuckDBPyConnection, sql: str, values: list[object] | None = None) -> int:
    row = db.execute(sql, values).fetchone()
    return int(row[0]) if row else 0


def _stream(db: duckdb.DuckDBPyConnection, sql: str) -> Iterator[RowValues]:
    cursor = db.cursor()  # of its own, so that other statements don't end it
    cursor.execute(sql)
    while rows := cursor.fetchmany(1024):
        yield from rows
