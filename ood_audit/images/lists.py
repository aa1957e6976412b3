"""The entries of a list of paths: .txt, one a line, or .csv and .parquet with a column `path`."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from ood_audit.errors import UsageError
from ood_audit.text import printable

LIST_SUFFIXES = (".txt", ".csv", ".parquet")


def entries(source: Path) -> Iterator[str]:
    """The paths in a list, as they stand there; UsageError where it can't be read."""
    try:
        if source.suffix.lower() == ".parquet":
            yield from _parquet_entries(source)
            return
        with source.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
            if source.suffix.lower() == ".txt":
                for line in lines:
                    if line.strip("\r\n"):
                        yield line.strip("\r\n")
                return
            rows = csv.DictReader(lines)
            _require_path_column(rows.fieldnames or [], source)
            yield from (row["path"] for row in rows if row["path"])
    except (OSError, csv.Error) as error:
        raise UsageError(f"cannot read the list {printable(str(source))}: {error}") from error


def _parquet_entries(source: Path) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(source)
        _require_path_column(file.schema_arrow.names, source)
        kind = file.schema_arrow.field("path").type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise UsageError(f"the list {printable(str(source))}: its column 'path' holds {kind}, not text")
        for batch in file.iter_batches(columns=["path"]):
            yield from (path for path in batch.column(0).to_pylist() if path)
    except pa.ArrowException as error:
        raise UsageError(f"cannot read the list {printable(str(source))}: {error}") from error


def _require_path_column(names: Sequence[str], source: Path) -> None:
    if "path" not in names:
        found = ", ".join(names) or "none"
        raise UsageError(f"the list {printable(str(source))} needs a column named 'path' (it has: {found})")
