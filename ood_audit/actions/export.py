"""`export`: the findings, or what is left without them, as a list that other tools take."""

import io
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

from ood_audit.actions import splits
from ood_audit.errors import OodAuditError, UsageError
from ood_audit.findings.records import in_evaluation, selecting
from ood_audit.images.uri import exact_location, location
from ood_audit.store import DEFAULT_STORE, Store, open_store
from ood_audit.text import printable, storable, write_csv
from ood_audit.values import RowValues

if TYPE_CHECKING:
    import duckdb

FORMATS = ("paths", "csv", "keep-list", "split")
_CSV = ("path", "kind", "severity", "evidence", "suggestion", "uri")
_SQL = {
    "paths": "SELECT uri FROM selected GROUP BY uri ORDER BY max(severity) DESC, min(place), uri",
    "keep-list": "SELECT uri FROM images WHERE status = 'ok' AND image_id NOT IN (SELECT image_id FROM selected) "
    "ORDER BY uri",
    "csv": "SELECT uri, kind, severity::VARCHAR::DOUBLE, evidence, suggestion FROM selected "  # 0.9, not 0.89999998
    "ORDER BY severity DESC, place, kind",
}


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        lines: How many images or findings.
        outdated: How many findings were left out, as their image has changed.
        evaluation: By split that models are judged on, how many images were selected by what a model says.
        moved: How many images change their split, for the format `split`.

    """

    lines: int
    outdated: int
    evaluation: dict[str, int] = field(default_factory=dict)
    moved: int = 0


def export(
    store: str | os.PathLike[str] | Store = DEFAULT_STORE,
    *,
    out: BinaryIO,
    kinds: Collection[str] = (),
    images: Collection[str] | None = None,
    format: str = "paths",
    null: bool = False,
    report: str | None = None,
) -> Exported:
    """Write the findings of some kinds, or the images without them.

    `paths` lists the images with a finding, the worst first and of equally bad ones the most OOD; `keep-list` lists all
    readable images of the store without one. Each line is an absolute path, byte for byte as the file system has it, or
    TAR#MEMBER for a member of a tar file, or the URI of a remote image. `csv` has a row for each finding, in which a
    name that is not UTF-8 shows its bytes as `\\xNN`, and `uri` is exact.

    Args:
        store: a store or its folder.
        out: where to write.
        kinds: of `findings.KINDS`.
        images: image ids in place of kinds.
        format: `paths`, `csv`, `keep-list`, or `split`: the splits of all images anew, so that they share nothing.
        null: end each path with a null byte instead of a line break, as `find -print0` does.
        report: the report's name; by default the current one.

    Raises:
        OodAuditError: a path holds a line break and `null` is not set; nothing is written.
        UsageError, StoreError: see `records.selecting`.

    """
    if format not in FORMATS:
        raise UsageError(f"format {printable(format)}: choose {', '.join(FORMATS)}")
    if null and format in ("csv", "split"):
        raise UsageError("`null` is for paths and keep-lists: CSV quotes names with line breaks")
    if not isinstance(store, Store):
        store = open_store(store)
    if format == "split":
        if kinds or images is not None:
            raise UsageError("the format `split` writes all images; select none")
        lines, moved = splits.write(store, out, report)
        return Exported(lines, 0, moved=moved)
    with selecting(store, kinds, report, images=images) as (db, outdated):
        evaluation = in_evaluation(db)
        if format == "csv":
            return Exported(_write_table(db, out), outdated, evaluation)
        if not null:
            _refuse_line_breaks(db, _SQL[format])
        end = b"\0" if null else b"\n"
        lines = 0
        for (uri,) in _stream(db, _SQL[format]):
            out.write(os.fsencode(exact_location(uri)) + end)
            lines += 1
        return Exported(lines, outdated, evaluation)


def _write_table(db: "duckdb.DuckDBPyConnection", out: BinaryIO) -> int:
    lines = 0

    def rows() -> Iterator[list[object]]:
        nonlocal lines
        for uri, *rest in _stream(db, _SQL["csv"]):
            yield [storable(exact_location(uri)), *rest, uri]
            lines += 1

    text = io.TextIOWrapper(out, encoding="utf-8", newline="", write_through=True)
    try:
        write_csv(text, _CSV, rows())
    finally:
        text.detach()
    return lines


def _refuse_line_breaks(db: "duckdb.DuckDBPyConnection", sql: str) -> None:
    answer = db.execute(
        f"SELECT count(*), min(uri), (SELECT count(*) FROM ({sql})) FROM ({sql}) "
        "WHERE starts_with(uri, 'file:')"  # the others stay percent-encoded; many readers take %0D for a line's end
        " AND (contains(uri, '%0A') OR contains(uri, '%0D'))"
    ).fetchone()
    if answer and answer[0]:
        broken, first, total = answer
        raise OodAuditError(
            f"{broken} of {total} names hold a line break, the first {printable(location(first))}: "
            "use `null` (and `xargs -0`) or `format=csv`; nothing is written"
        )


def _stream(db: "duckdb.DuckDBPyConnection", sql: str) -> Iterator[RowValues]:
    answer = db.execute(sql)
    while rows := answer.fetchmany(4096):
        yield from rows
