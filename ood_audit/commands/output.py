"""What the commands print: tables and notes."""

import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING

import click

from ood_audit.commands.options import as_options
from ood_audit.text import JsonText, printable, write_csv

if TYPE_CHECKING:
    from ood_audit.store.sources import Source

_NOT_FINITE = re.compile("NaN|Infinity")


def note(message: str) -> None:
    """A sentence for the person, on stderr. Parameters of the API that it names become options."""
    context = click.get_current_context(silent=True)
    click.echo(printable(as_options(message, context.command if context else None)), err=True)


def note_outdated(findings: int) -> None:
    """Say that findings were left out, if some were."""
    if findings:
        note(
            f"findings left out, as their image was changed or removed after the report: "
            f"{findings}; run `ood-audit report` again"
        )


def note_evaluation(images: Mapping[str, int]) -> None:
    """Warn of cleaning the data that models are judged on."""
    if images:
        counts = ", ".join(f"{count} of {split}" for split, count in images.items())
        note(
            f"warning: {counts} are among these images: leaving out of an evaluation set what a model finds odd biases "
            "the evaluation; have a person look at each"
        )


def note_missing(known: "Sequence[Source]") -> None:
    """Warn of sources that are no longer where the store has them, if some are."""
    from ood_audit.store.sources import warning

    if (text := warning(known)) is not None:
        note(f"warning: {text}")


def print_rows(columns: Sequence[str], rows: Iterable[Sequence[object]], format: str) -> None:
    """Rows to stdout. Tables show control characters as escapes; the other formats hold the exact values.

    `csv` and `jsonl` are printed row by row, so that there may be any number of them.
    """
    if format == "table":
        from tabulate import tabulate

        rows = list(rows)
        cells = [[_cell(value) for value in row] for row in rows]
        numbers = [
            bool(rows) and all(isinstance(row[i], (int, float, Decimal, type(None))) for row in rows)
            for i in range(len(columns))
        ]
        align = ["right" if number else "left" for number in numbers]
        click.echo(
            tabulate(
                cells,
                headers=[printable(name) for name in columns],
                tablefmt="simple",
                disable_numparse=True,
                colalign=align if rows else None,
            )
        )
    elif format == "csv":
        write_csv(sys.stdout, columns, ([_text(value) for value in row] for row in rows))
    else:
        _print_json(columns, rows, one_a_line=format == "jsonl")


def _print_json(columns: Sequence[str], rows: Iterable[Sequence[object]], *, one_a_line: bool) -> None:
    escape = "utf" not in (sys.stdout.encoding or "").lower()
    names = [json.dumps(name, ensure_ascii=escape) for name in columns]
    records = (
        [
            f"{name}: {cell}"
            for name, cell in {n: _json_text(v, escape) for n, v in zip(names, row, strict=True)}.items()
        ]
        for row in rows
    )
    if one_a_line:
        for record in records:
            click.echo("{" + ", ".join(record) + "}")
        return
    blocks = ("  {\n    " + ",\n    ".join(record) + "\n  }" for record in records)
    text = ",\n".join(blocks)
    click.echo(f"[\n{text}\n]" if text else "[]")


def _json_text(value: object, escape: bool) -> str:
    """A value as JSON, which has no NaN and no infinity; `JsonText` is that already, but for these."""
    if isinstance(value, Decimal):
        return f"{value:f}" if value.is_finite() else "null"
    if isinstance(value, JsonText):
        if value.isascii() and not _NOT_FINITE.search(value):
            return value
        value = json.loads(value, parse_constant=lambda name: None)
    return json.dumps(_json(value), ensure_ascii=escape, default=str)


def _json(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return [_json(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _json(item) for name, item in value.items()}
    return value


def _text(value: object) -> object:
    """A value for CSV and tables, as DuckDB writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:f}" if isinstance(value, Decimal) else value


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else printable(str(_text(value)))
