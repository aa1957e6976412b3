"""The ranking and its figures: SQL over the views, so that DuckDB does the sorting, on disk where need be."""

from pathlib import Path
from typing import TYPE_CHECKING

from duckdb import DuckDBPyConnection

from ood_audit.store.views import ranking, registered
from ood_audit.values import Row

if TYPE_CHECKING:
    import pyarrow as pa

_BINS = 40


def top(db: DuckDBPyConnection, limit: int) -> list[Row]:
    """The most OOD images, with the columns of the view `report`."""
    answer = db.execute("FROM report WHERE rank <= ? ORDER BY rank", [limit])
    names = [column[0] for column in answer.description or []]
    return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]


def cut(db: DuckDBPyConnection, top: int) -> float | None:
    """The `ood_score` from which on images are flagged; from which on they are listed, where none is flagged."""
    row = db.execute(
        "SELECT coalesce(min(ood_score) FILTER (flagged), min(ood_score) FILTER (rank <= ?)) FROM report", [top]
    ).fetchone()
    return row[0] if row else None


def counts(db: DuckDBPyConnection) -> dict[str, int]:
    """How many images were scored, and how many could not be read."""
    row = db.execute(
        "SELECT (SELECT count(*) FROM report), (SELECT count(*) FROM images WHERE status = 'error')"
    ).fetchone()
    return {"scored": row[0], "unreadable": row[1]} if row else {}


def write_all(db: DuckDBPyConnection, decisions: "pa.Table", path: Path) -> None:
    """Write the whole ranking as Parquet, in order, with the decisions about each image."""
    with registered(db, decisions=decisions):
        db.execute(
            f"COPY (FROM ({ranking('decisions')}) ORDER BY rank) TO $path (FORMAT parquet, COMPRESSION zstd)",
            {"path": str(path)},
        )


def histogram(db: DuckDBPyConnection) -> list[tuple[float, float, int]]:
    """`ood_score` of all images in bins of equal width: (low, high, count)."""
    rows = db.execute(
        f"""
        WITH bounds AS (SELECT min(ood_score)::DOUBLE AS low, max(ood_score)::DOUBLE AS high FROM report),
             bins AS (
                SELECT least(floor({_BINS} * (ood_score - low) / nullif(high - low, 0)), {_BINS - 1}) AS bin,
                       count(*) AS n
                FROM report, bounds GROUP BY bin)
        SELECT low + (high - low) * i / {_BINS}, low + (high - low) * (i + 1) / {_BINS}, coalesce(n, 0)
        FROM bounds, range({_BINS}) AS r(i) LEFT JOIN bins ON coalesce(bin, 0) = i
        WHERE low IS NOT NULL ORDER BY i
        """
    ).fetchall()
    return [(float(low), float(high), int(n)) for low, high, n in rows]


def unreadable(db: DuckDBPyConnection, limit: int) -> list[tuple[str, str]]:
    """Path and error of images that could not be read."""
    rows = db.execute("SELECT path, error FROM images WHERE status = 'error' ORDER BY path LIMIT ?", [limit])
    return [(str(path), str(error)) for path, error in rows.fetchall()]
