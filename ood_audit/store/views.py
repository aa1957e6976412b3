"""DuckDB over the store: the views `images`, `scores`, `labels`, `report`, `findings` and `annotations`."""

import os
import re
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

import duckdb

from ood_audit.errors import StoreError, UsageError
from ood_audit.store import findings, schema
from ood_audit.store.files import full_disk, no_room, temporary_name
from ood_audit.store.folder import StoreFolder, span
from ood_audit.text import JsonText, printable, storable
from ood_audit.values import JsonObject, Row, RowValues

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

# Types whose values are the same in Python, in CSV and in JSON.
_PLAIN = re.compile(r'U?(TINY|SMALL|BIG|HUGE)INT|U?INTEGER|FLOAT|DOUBLE|BOOLEAN|VARCHAR|DECIMAL\(.*\)|"NULL"')
VIEWS = ("images", "scores", "labels", "report", "findings", "issues", "annotations")

_IMAGES = f"""
CREATE VIEW _superseded AS SELECT image_id, max(part) AS part FROM _rows WHERE supersedes GROUP BY image_id;
CREATE VIEW images AS
SELECT {", ".join(schema.IMAGES)}, highlights - shadows AS contrast, width::BIGINT * height AS area,
       (width / height)::FLOAT AS aspect_ratio
FROM _rows AS r ANTI JOIN _superseded AS s ON s.image_id = r.image_id AND s.part > r.part
WHERE status <> 'removed'
"""  # NOT EXISTS, with its inequality, would have DuckDB build a table of all rows: 5 GB of two million


def ranking(decisions: str) -> str:
    """The SELECT of the view `report`, with the columns of a table of decisions (`schema.DECISIONS`)."""
    return (
        "SELECT row_number() OVER (ORDER BY ood_score DESC, s.path, s.image_id) AS rank, "
        "s.*, d.* EXCLUDE (image_id), i.* EXCLUDE (image_id, path, picture_hash) "
        f"FROM scores AS s JOIN images AS i USING (image_id) LEFT JOIN {decisions} AS d USING (image_id)"
    )


@dataclass(frozen=True)
class Rows:
    """The answer to a query."""

    columns: list[str]
    rows: list[tuple[Any, ...]]

    def dicts(self) -> list[Row]:
        """A dictionary for each row."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


@contextmanager
def connect(
    store: StoreFolder,
    parts: list[Path] | None = None,
    *,
    report: str | None = None,
    current: JsonObject | None = None,
    ranked: Path | None = None,
    reports: bool = True,
) -> Iterator[duckdb.DuckDBPyConnection]:
    """An in-memory DuckDB with the views of a store.

    Args:
        store: the store.
        parts: the parts to read; None for all that are in force.
        report: the report whose findings are the view `findings`; None for the last one.
        current: which vocabulary, scores and decisions the views show, as `Store.current` gives them; None for those
            that were last used. A report names its own, as another report may be made at the same time.
        ranked: a Parquet file with the rows of the view `report`, so that millions of images are joined and sorted
            once; None to compute the view from the scores and decisions.
        reports: False for the views `images`, `scores` and `labels` alone, which are there in half the time.

    Raises:
        StoreError: a file of the store can't be read, or the disk is full; also when that shows only inside of the
            `with`.

    """
    connection = duckdb.connect(config={"preserve_insertion_order": False})
    parts = store.parts if parts is None else parts
    try:
        with interruptible(connection):
            current = store.current() if current is None else current
            _create_views(connection, store, parts, current)
            if reports:
                _create_report_views(connection, store, report or store.current_report, current, ranked)
            yield connection
    except duckdb.Error as error:
        if (full := full_disk(error)) is not None:
            raise StoreError(no_room(store.root, full)) from error
        if not all(part.exists() for part in parts):
            raise merged() from error
        if os.path.abspath(store.root) in str(error) and not isinstance(error, duckdb.PermissionException):
            raise damaged(str(error)) from error
        raise
    finally:
        connection.close()


@contextmanager
def registered(connection: duckdb.DuckDBPyConnection, **tables: "pa.Table") -> Iterator[None]:
    """Arrow tables that SQL can name, within the `with` alone."""
    for name, table in tables.items():
        connection.register(name, table)
    try:
        yield
    finally:
        for name in tables:
            connection.unregister(name)


def limit_memory(connection: duckdb.DuckDBPyConnection, store: StoreFolder) -> None:
    """Have DuckDB sort and join in a gigabyte, and then on disk, in a folder of this process's own."""
    connection.execute("SET memory_limit = '1GB'")
    connection.execute("SET temp_directory = ?", [str(temporary_name(store.root / "spill"))])


@contextmanager
def interruptible(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Let a Ctrl-C stop what `connection` is doing, and come out of the `with` as a KeyboardInterrupt.

    While a statement runs, DuckDB's client lets Python handle signals, and on an exception gives the statement up. But
    it then waits for its own threads to finish their tasks, which can take as long as the statement, and does not tell
    them to stop (seen with 2.0: `Executor::CancelTasks`). So the handler tells them. It also keeps the exception:
    DuckDB raises one of its own, which depends on what it was doing, such as counting the rows of a table of Python's.
    """
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield  # Ctrl-C is ignored, or ends the process, or is handled in another thread
        return
    ours, raised = before, list[BaseException]()

    def handler(number: int, frame: FrameType | None) -> None:
        try:
            ours(number, frame)
        except BaseException as error:
            raised.append(error)
            with suppress(duckdb.Error):  # it is closed
                connection.interrupt()
            raise

    signal.signal(signal.SIGINT, handler)
    try:
        yield
    except (RuntimeError, duckdb.Error) as error:
        if raised:
            raise raised[0] from error
        raise
    finally:
        signal.signal(signal.SIGINT, before)


def damaged(what: str) -> StoreError:
    """The error for a file of the store that can't be read."""
    first = printable(what.splitlines()[0])
    return StoreError(f"the store is damaged: {first}; delete that file and run `ood-audit embed` again")


def merged() -> StoreError:
    """The error for a part that is no longer there."""
    return StoreError("`ood-audit compact` merged parts of the store in the meantime; run the command again")


def _create_views(
    connection: duckdb.DuckDBPyConnection, store: StoreFolder, parts: list[Path], current: JsonObject
) -> None:
    _view(connection, "_rows", parts, schema.PARTS)
    connection.execute(_IMAGES)
    scores = store.scores / f"{current.get('scores')}.parquet"
    _view(connection, "scores", [scores] if scores.exists() else [], schema.SCORES)
    _labels(connection, store.classes(current))


def _create_report_views(
    connection: duckdb.DuckDBPyConnection,
    store: StoreFolder,
    report: str,
    current: JsonObject,
    ranked: Path | None,
) -> None:
    decided = store.reports / report / "decisions.parquet"
    # What an older report decided is not about these scores.
    is_current = current.get("decided") == current.get("scores") and decided.exists()
    _view(connection, "_decisions", [decided] if is_current else [], schema.DECISIONS)
    rows = f"FROM {_read([ranked])}" if ranked else ranking("_decisions")
    connection.execute(f"CREATE VIEW report AS {rows}")
    written = store.reports / report / findings.FILE
    _view(connection, "findings", [written] if written.exists() else [], findings.COLUMNS)
    connection.execute("CREATE VIEW issues AS FROM findings")  # its name in 0.1.0
    _view(connection, "annotations", sorted(store.annotations.glob("*.parquet")), schema.ANNOTATIONS)


def query(store: StoreFolder, sql: str) -> Rows:
    """Run one read-only SELECT that can read the store's files and nothing else; see `Store.query`."""
    with streaming(store, sql) as (columns, rows):
        return Rows(columns, list(rows))


@contextmanager
def streaming(
    store: StoreFolder, sql: str, *, values: Literal["python", "text", "json"] = "python"
) -> Iterator[tuple[list[str], Iterator[RowValues]]]:
    """`query`, for answers of any length: the columns, and the rows one after another.

    Args:
        store: The store.
        sql: One SELECT.
        values: How values are given that are no numbers, booleans or strings: as Python objects, as the text that
            DuckDB writes to CSV, or as `JsonText`.

    """
    if not storable(sql) == sql:
        raise UsageError("the query is not valid UTF-8")
    with connect(store) as connection:
        root = _confine(connection, store)
        try:
            with interruptible(connection):  # a Ctrl-C is no error of the statement
                _check_select(connection, sql)
                statement, odd = (sql, []) if values == "python" else _converting(connection, sql, values)
                result = connection.execute(statement)
        except duckdb.Error as error:
            if root in str(error) and root not in sql and not isinstance(error, duckdb.PermissionException):
                raise  # a file of the store that can't be read
            raise UsageError(_explain(connection, error)) from error
        yield [column[0] for column in result.description or []], _rows(result, odd if values == "json" else [])


def relation(store: StoreFolder, sql: str) -> duckdb.DuckDBPyRelation:
    """A SELECT as a lazy relation, on a connection of its own that can read the store's files and nothing else.

    Raises:
        UsageError: the statement is not a SELECT, or DuckDB refuses it.

    """
    if not storable(sql) == sql:
        raise UsageError("the query is not valid UTF-8")
    connection = duckdb.connect(config={"preserve_insertion_order": False})
    current = store.current()
    _create_views(connection, store, store.parts, current)
    _create_report_views(connection, store, store.current_report, current, None)
    _confine(connection, store)
    try:
        _check_select(connection, sql)
        return connection.sql(sql)
    except duckdb.Error as error:
        raise UsageError(_explain(connection, error)) from error


def _confine(connection: duckdb.DuckDBPyConnection, store: StoreFolder) -> str:
    """Let a connection read the store's files and nothing else; its folder, with a separator at the end."""
    root = os.path.join(os.path.abspath(store.root), "")
    connection.execute(f"SET allowed_directories = [{_quoted(root)}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return root


def _check_select(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    statements = connection.extract_statements(sql)
    if [statement.type for statement in statements] != [duckdb.StatementType.SELECT]:
        raise UsageError(f"a query is one SELECT over the views {', '.join(VIEWS)}; this is not")


def _converting(connection: duckdb.DuckDBPyConnection, sql: str, values: str) -> tuple[str, list[int]]:
    """The same SELECT, with DuckDB converting what Python would show in a way of its own, such as dates and blobs.

    Returns:
        The statement, and the positions of the columns that it converts.

    """
    text = sql.encode()
    end = next((at for at, _ in duckdb.tokenize(sql) if text[at : at + 1] == b";"), len(text))
    inner = f"(\n{text[:end].decode()}\n)"
    columns = connection.execute(f"DESCRIBE FROM {inner}").fetchall()
    odd = [i for i, (_, kind, *_) in enumerate(columns) if not _PLAIN.fullmatch(kind)]
    if not odd:
        return sql, odd
    convert = "to_json(#{})" if values == "json" else "#{}::VARCHAR"
    chosen = (
        (convert.format(i + 1) if i in odd else f"#{i + 1}") + f" AS {_identifier(name)}"
        for i, (name, *_) in enumerate(columns)
    )
    return f"SELECT {', '.join(chosen)} FROM {inner}", odd


def _rows(result: duckdb.DuckDBPyConnection, are_json: list[int]) -> Iterator[RowValues]:
    while rows := result.fetchmany(8192):
        if not are_json:
            yield from rows
            continue
        for row in map(list, rows):
            for i in are_json:
                row[i] = None if row[i] is None else JsonText(row[i])
            yield tuple(row)


def count_readable(store: StoreFolder, parts: list[Path] | None = None) -> int:
    """How many readable images a store holds, or some of its parts."""
    parts = store.parts if parts is None else parts
    try:
        written = tuple(part.stat().st_mtime_ns for part in parts)
    except FileNotFoundError:
        raise merged() from None
    return _count_readable(StoreFolder(store.root), tuple(parts), written)


@lru_cache(maxsize=16)
def _count_readable(store: StoreFolder, parts: tuple[Path, ...], written: tuple[int, ...]) -> int:
    """Counted once for each set of parts, which never change: every step of a report asks for it."""
    errors = _statistics(parts, "error")
    if errors is not None and _holds_only(parts, "supersedes", False):  # none was removed
        return sum(found.null_count for found in errors)
    with connect(store, list(parts), reports=False) as db:
        ((count,),) = db.execute("SELECT count(*) FROM images WHERE status = 'ok'").fetchall()
    return int(count)


def outdated_rows(store: StoreFolder, parts: list[Path]) -> dict[Path, "pa.Array"]:
    """By part, the ids of the images of which it has a row that no longer counts."""
    if _holds_only(parts, "supersedes", False):  # none has been changed since
        return {}
    import numpy as np

    with connect(store, parts, reports=False) as connection:
        rows = connection.sql(
            "SELECT r.part, r.image_id FROM _rows AS r JOIN _superseded AS s USING (image_id) "
            "WHERE s.part > r.part ORDER BY r.part"
        ).to_arrow_table()
    # A merged part holds the rows of all numbers up to its own, from that of the part before it on.
    ends = np.searchsorted(rows["part"].to_numpy(), [span(part)[1] for part in parts], side="right").tolist()
    return {
        part: rows["image_id"].slice(start, end - start).combine_chunks()
        for part, start, end in zip(parts, [0, *ends], ends, strict=False)
        if end > start
    }


def _holds_only(parts: Iterable[Path], column: str, value: object) -> bool:
    """Whether a column is known to hold nothing else."""
    statistics = _statistics(parts, column)
    return statistics is not None and all(
        found.has_min_max and not found.null_count and {found.min, found.max} == {value} for found in statistics
    )


def _statistics(parts: Iterable[Path], column: str) -> "list[pq.Statistics] | None":
    """What parts say of a column, by row group, in a hundredth of a query; None where they do not.

    A part that can't be read is for the query to complain of.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    place, statistics = list(schema.PARTS).index(column), []
    try:
        for part in parts:
            metadata = pq.read_metadata(part)
            if metadata.schema.column(place).path != column:
                return None
            for group in range(metadata.num_row_groups):
                found = metadata.row_group(group).column(place).statistics
                if found is None or not found.has_null_count:
                    return None
                statistics.append(found)
    except (OSError, pa.ArrowInvalid):
        return None
    return statistics


def _view(connection: duckdb.DuckDBPyConnection, name: str, files: list[Path], columns: schema.Columns) -> None:
    """A view of files; columns that a file of an older version lacks are null."""
    connection.execute(f"CREATE TABLE _no_{name} ({schema.ddl(columns)})")
    rows = f"UNION ALL BY NAME FROM {_read(files)}" if files else ""
    connection.execute(f"CREATE VIEW {name} AS FROM _no_{name} {rows}")


def _read(files: list[Path]) -> str:
    """Files in a FROM clause; views can't have parameters."""
    paths = ", ".join(_quoted(os.path.abspath(file)) for file in files)
    return f"read_parquet([{paths}], hive_partitioning = false, union_by_name = true)"


def _labels(connection: duckdb.DuckDBPyConnection, classes: list[list[str]]) -> None:
    connection.execute(
        "CREATE TABLE labels AS SELECT position, names[1] AS label, names[2:] AS synonyms "
        "FROM (SELECT unnest(range(len(classes))) AS position, unnest(classes) AS names "
        "FROM (SELECT ?::VARCHAR[][] AS classes))",
        [classes],
    )


def _explain(connection: duckdb.DuckDBPyConnection, error: duckdb.Error) -> str:
    """DuckDB's first line, and what there is to ask for."""
    columns = connection.execute(
        "SELECT table_name, string_agg(column_name, ', ' ORDER BY ordinal_position) "
        "FROM information_schema.columns WHERE table_name NOT LIKE '\\_%' ESCAPE '\\' GROUP BY 1"
    ).fetchall()
    views = "; ".join(f"{name}({names})" for name, names in sorted(columns, key=lambda row: VIEWS.index(row[0])))
    return f"{printable(str(error).splitlines()[0])}; views: {views}"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
