"""What the commands share: options, tables, progress."""

import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, TypeVar

import click

from ood_audit.errors import UsageError
from ood_audit.progress import Progress, silent
from ood_audit.store.findings import KINDS
from ood_audit.store.layout import DEFAULT_STORE, Store
from ood_audit.text import JsonText, printable, write_csv

F = TypeVar("F", bound=Callable[..., Any])
_SELECTIONS = {
    "flagged": ("ood",),
    "shifted": ("covariate-shift",),
    "duplicates": ("exact-duplicate", "near-duplicate"),
    "label-issues": ("label",),
    "unreadable": ("unreadable",),
}

store_option = click.option(
    "--store",
    envvar="OOD_AUDIT_STORE",
    default=DEFAULT_STORE,
    show_default=True,
    show_envvar=True,
    metavar="DIR",
    help="The store's folder, or s3://BUCKET/FOLDER.",
)
format_option = click.option(
    "--format",
    type=click.Choice(["table", "csv", "json", "jsonl"]),
    default="table",
    show_default=True,
    help="How rows are printed.",
)
device_option = click.option(
    "--device", default="auto", show_default=True, metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps."
)


_NOT_FINITE = re.compile("NaN|Infinity")
SEED = click.IntRange(0, 2**32 - 1)


class AutoNumber(click.ParamType[Any]):
    """A number, or `auto`, which is None: the option's default."""

    name = "auto|number"

    def __init__(self, kind: type[int] | type[float], *, on_off: bool = False) -> None:
        self._kind = kind
        self._words = {"on": True, "off": False} if on_off else {}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """None for `auto`."""
        if value is None or isinstance(value, self._kind) or str(value).strip().lower() == "auto":
            return None if isinstance(value, str) else value
        if str(value).strip().lower() in self._words:
            return self._words[str(value).strip().lower()]
        try:
            return self._kind(value)
        except ValueError:
            kind = "a whole number" if self._kind is int else "a number"
            self.fail(f"{value!r} is neither {kind} nor 'auto'", param, ctx)


class Share(click.ParamType[float]):
    """A share of the images: 1% or 0.01."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """As a number from 0 to 1."""
        try:
            text = str(value).strip()
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            self.fail(f"{value!r} is no share: write 1% or 0.01", param, ctx)
        return share


def comparison_options(command: F) -> F:
    """How settings are chosen, and prompts."""
    options = [
        click.option(
            "--prompts", default="auto", show_default=True, metavar="NAME", help="Tuned prompts: auto, none or a name."
        ),
        click.option(
            "--auto/--no-auto",
            default=True,
            show_default=True,
            help="Choose settings that are not given by leaving classes out (from 6 classes and 60 images on).",
        ),
        click.option("--seed", type=SEED, default=0, show_default=True, help="Of that choice."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def selection_options(command: F) -> F:
    """The options that select findings, `--paths` and `--report`; `selection` takes the former two."""
    for option in (
        click.option("--report", metavar="NAME", help="The report to act on.  [default: the last one]"),
        click.option(
            "--paths", metavar="FILE", help="Select the images that a file names, a path a line; - for stdin."
        ),
        click.option(
            "--kind", "kind", type=click.Choice(KINDS), multiple=True, help="One kind of finding; repeatable."
        ),
        *(
            click.option(
                f"--{name}", is_flag=True, help=f"Select the kind{'s' * (len(kinds) > 1)} {' and '.join(kinds)}."
            )
            for name, kinds in reversed(_SELECTIONS.items())
        ),
    ):
        command = option(command)
    return command


def selection(store: Store, paths: str | None, kind: Sequence[str], **flags: bool) -> dict[str, Any]:
    """What the options select: `kinds` of findings, or `images` by their ids."""
    chosen = [name for flag, names in _SELECTIONS.items() if flags[flag.replace("-", "_")] for name in names]
    if paths is None:
        if not chosen and not kind:
            named = ", ".join(f"--{flag}" for flag in _SELECTIONS)
            raise UsageError(f"select findings: {named} or --kind; or images: --paths")
        return {"kinds": list(dict.fromkeys([*chosen, *kind]))}
    if chosen or kind:
        raise UsageError("give --paths or kinds of findings, not both")
    from ood_audit.findings.records import listed

    return {"images": dict.fromkeys(listed(store, paths))}


def note(message: str) -> None:
    """A sentence for the person, on stderr."""
    click.echo(printable(message), err=True)


def note_outdated(findings: int) -> None:
    """Say that findings were left out, if some were."""
    if findings:
        note(f"findings left out, as their image has changed or gone since: {findings}; run `ood-audit report` again")


def note_missing(store: Store) -> None:
    """Warn of sources that are no longer where the store has them, if some are."""
    from ood_audit.store.sources import warning

    if (text := warning(store)) is not None:
        note(f"warning: {text}")


def print_rows(columns: Sequence[str], rows: Iterable[Sequence[Any]], format: str) -> None:
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


def _print_json(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, one_a_line: bool) -> None:
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


@contextmanager
def progress() -> Iterator[Progress]:
    """A `Progress` that draws a bar for each stage on stderr, where that is a terminal; elsewhere a silent one."""
    if not sys.stderr.isatty():
        yield silent
        return
    bars = _Bars()
    try:
        yield bars
    finally:
        bars.close()


class _Bars:
    """One bar at a time. Each has a clock of its own, so that the rate and the end it shows are those of its stage."""

    _COUNTED = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]"
    _OPEN = "{desc} … [{elapsed}]"

    def __init__(self) -> None:
        self._stage: str | None = None
        self._bar: Any = None

    def __call__(self, stage: str, done: int = 0, total: int | None = None, /) -> None:
        if stage != self._stage or (self._bar.total is None) != (total is None):
            self._begin(stage, total)
        self._bar.total = total
        self._bar.set_description_str(stage if total is not None or not done else f"{stage}: {done:,}", refresh=False)
        self._bar.update(done - self._bar.n)

    def _begin(self, stage: str, total: int | None) -> None:
        from tqdm import tqdm

        self.close()
        layout = self._OPEN if total is None else self._COUNTED
        self._stage = stage
        self._bar = tqdm(desc=stage, total=total, bar_format=layout, unit="", dynamic_ncols=True, leave=False)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._stage = self._bar = None


def _json_text(value: Any, escape: bool) -> str:
    """A value as JSON, which has no NaN and no infinity; `JsonText` is that already, but for these."""
    if isinstance(value, Decimal):
        return f"{value:f}" if value.is_finite() else "null"
    if isinstance(value, JsonText):
        if value.isascii() and not _NOT_FINITE.search(value):
            return value
        value = json.loads(value, parse_constant=lambda name: None)
    return json.dumps(_json(value), ensure_ascii=escape, default=str)


def _json(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return [_json(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _json(item) for name, item in value.items()}
    return value


def _text(value: Any) -> Any:
    """A value for CSV and tables, as DuckDB writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:f}" if isinstance(value, Decimal) else value


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else printable(str(_text(value)))
