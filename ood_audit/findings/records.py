"""The findings of a report: writing, reading, and choosing among them."""

import os
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from ood_audit.classes import annotations
from ood_audit.errors import StoreError, UsageError
from ood_audit.images.splits import EVALUATION
from ood_audit.store import schema
from ood_audit.store.files import replacing
from ood_audit.store.findings import COLUMNS, FILE, KINDS, Finding
from ood_audit.store.store import Store
from ood_audit.store.views import connect
from ood_audit.text import printable, storable

_BATCH = 65_536
# The findings with the place of their image: the first row that is about it. They are written most OOD first, so that
# the place tells images of the same severity apart as their rank does.
_PLACED = (
    "(SELECT * EXCLUDE (file_row_number), min(file_row_number) OVER (PARTITION BY image_id) AS place "
    "FROM read_parquet($findings, hive_partitioning = false, file_row_number = true))"
)
_OF_IMAGE = "i.uri, i.source, i.path, i.size_bytes, i.mtime_ns, i.content_hash"


def write(path: Path, rows: Iterable[Finding], *, generation: int) -> None:
    """Write the findings of a report, in one piece; memory holds one batch.

    Args:
        path: `reports/NAME/issues.parquet`, or where that is being made.
        rows: the findings.
        generation: the store's when the report was begun; findings about images that changed after it are not acted on.

    Raises:
        ValueError: a kind or a severity that there is not.

    """
    columns = schema.arrow(COLUMNS).with_metadata({"generation": str(generation)})
    with replacing(path) as temporary, pq.ParquetWriter(temporary, columns, compression="zstd") as file:
        rows = map(_checked, rows)
        while batch := [asdict(row) for row in islice(rows, _BATCH)]:
            file.write_table(pa.Table.from_pylist(batch, schema=columns))


def read(store: Store, report: str | None = None) -> list[Finding]:
    """The findings of a report, by default the current one; the worst first, and of equally bad ones the most OOD.

    Raises:
        StoreError: there is no such report, or it is of an ood-audit that wrote no findings.

    """
    name = named(store, report)
    with connect(store, report=name) as db:
        sql = f"SELECT {', '.join(COLUMNS)} FROM {_PLACED} ORDER BY severity DESC, place, kind"
        return [Finding(*row) for row in db.execute(sql, {"findings": str(store.reports / name / FILE)}).fetchall()]


@contextmanager
def selecting(
    store: Store, kinds: Collection[str], report: str | None = None, *, images: Collection[str] | None = None
) -> Iterator[tuple[duckdb.DuckDBPyConnection, int]]:
    """DuckDB with the table `selected`: the findings of `kinds` with what the store knows of their images.

    Its column `place` orders findings of the same severity, see `read`.

    Args:
        store: the store.
        kinds: of `findings.KINDS`.
        report: the report's name; by default the current one.
        images: ids of images to select in place of findings, in this order; their kind is then `chosen`.

    Yields:
        the connection, and the number of findings left out because their image has changed, or left the store, since
        the report was made.

    Raises:
        UsageError: no kind, or one that there is not.
        StoreError: see `read`.

    """
    if images is not None:
        with connect(store) as db:
            _choose(db, images)
            yield db, 0
        return
    if not kinds or not set(kinds) <= set(KINDS):
        raise UsageError(f"select one or more of the kinds {', '.join(KINDS)}")
    name = named(store, report)
    with connect(store, report=name) as db:
        yield db, _select(db, store, kinds, name)


def in_evaluation(db: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """How many images are `selected` of each split that models are judged on, by what a model says of them."""
    rows = db.execute(
        "SELECT split, count(DISTINCT image_id) FROM selected JOIN images USING (image_id) "
        "WHERE split IN (SELECT unnest($splits::VARCHAR[])) AND kind NOT IN (SELECT unnest($facts::VARCHAR[])) "
        "GROUP BY 1 ORDER BY 1",
        {"splits": list(EVALUATION), "facts": ["exact-duplicate", "leak", "unreadable"]},
    )
    return dict(rows.fetchall())


def listed(store: Store, path: str) -> list[str]:
    """The ids of the images that a file names, a path on each line, as `export` writes them; `-` is stdin.

    Raises:
        UsageError: the file can't be read, or names what is not in the store, or several images by one name.

    """
    try:
        content = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {printable(path)}: {(error.strerror or str(error)).lower()}") from error
    names = [os.fsdecode(line) for line in content.splitlines() if line.strip()]
    found = annotations.images(store, names, Path(path))
    for name, ids in found.items():
        if len(ids) != 1:
            what = "several images of the store; write absolute paths" if ids else "no readable image of the store"
            raise UsageError(f"{printable(path)}: {printable(storable(name))} is {what}")
    return [image_id for name in names for image_id in found[name]]


def _select(db: duckdb.DuckDBPyConnection, store: Store, kinds: Collection[str], name: str) -> int:
    metadata = pq.read_schema(store.reports / name / FILE).metadata or {}
    try:
        generation = int(metadata[b"generation"])
    except (KeyError, ValueError):
        raise StoreError(f"the findings of report {name} are damaged; run `ood-audit report` again") from None
    db.execute(
        f"""
        CREATE TABLE selected AS
        SELECT {", ".join(f"s.{column}" for column in COLUMNS if column not in ("uri", "path"))},
               s.place, {_OF_IMAGE}
        FROM {_PLACED} AS s JOIN images AS i USING (image_id)
        JOIN (SELECT image_id, max(part) AS part FROM _rows GROUP BY image_id) AS n USING (image_id)
        WHERE list_contains($kinds, s.kind) AND n.part <= $generation
        """,
        {"kinds": list(kinds), "generation": generation, "findings": str(store.reports / name / FILE)},
    )
    row = db.execute(
        "SELECT (SELECT count(*) FROM findings WHERE list_contains($kinds, kind)) - (SELECT count(*) FROM selected)",
        {"kinds": list(kinds)},
    ).fetchone()
    return row[0] if row else 0


def _choose(db: duckdb.DuckDBPyConnection, images: Collection[str]) -> None:
    chosen = pa.table({"image_id": pa.array(images, pa.string()), "place": pa.array(range(len(images)), pa.int64())})
    db.register("_chosen", chosen)
    db.execute(
        f"""
        CREATE TABLE selected AS
        SELECT c.image_id, 'chosen' AS kind, 1.0::FLOAT AS severity, 'chosen by its path' AS evidence,
               '' AS suggestion, '' AS report, c.place, {_OF_IMAGE}
        FROM _chosen AS c JOIN images AS i USING (image_id)
        """
    )


def _checked(finding: Finding) -> Finding:
    if finding.kind not in KINDS or not 0.0 <= finding.severity <= 1.0:
        raise ValueError(f"not a finding: {finding}")
    return finding


def named(store: Store, report: str | None) -> str:
    """The name of the report, by default the current one; StoreError where it has no findings."""
    name = store.current_report if report is None else report
    names = sorted(path.parent.name for path in store.reports.glob(f"[!.]*/{FILE}"))
    if name in names:
        return name
    if report is None or not names:
        raise StoreError("there are no findings to act on yet: run `ood-audit report`")
    raise StoreError(f"no report {printable(name)} with findings; there are: {', '.join(names)}")
