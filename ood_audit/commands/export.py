"""`ood-audit export`."""

import os
import sys
from pathlib import Path
from typing import Any

import click

from ood_audit.commands.options import selection, selection_options, store_option
from ood_audit.commands.output import note, note_evaluation, note_missing, note_outdated
from ood_audit.errors import UsageError
from ood_audit.text import printable


@click.command("export", epilog="Example: ood-audit export --flagged --duplicates --format keep-list --output keep.txt")
@selection_options
@click.option(
    "--format",
    type=click.Choice(["paths", "csv", "keep-list", "split"]),
    default="paths",
    show_default=True,
    help="paths: the images with a finding, the worst first; csv: the findings; keep-list: all other readable images; "
    "split: the splits of all images anew, as CSV, so that they share nothing.",
)
@click.option("--null", is_flag=True, help="End each path with a null byte instead of a line break, for xargs -0.")
@click.option("--output", metavar="FILE", help="File to write.  [default: stdout]")
@store_option
def command(store: str, report: str | None, format: str, null: bool, output: str | None, **selected: Any) -> None:
    """List the images with findings, or the images to keep, for other tools.

    Paths are absolute and exact. A name with a line break needs --null or --format csv. A keep-list is a source for
    `ood-audit embed`, like any list of paths.
    """
    from ood_audit.actions.export import export
    from ood_audit.store.files import replacing
    from ood_audit.store.store import open_store

    opened = open_store(store)
    chosen = {} if format == "split" and not any(selected.values()) else selection(opened, **selected)
    if output is None:
        out = sys.stdout.buffer
        result = export(opened, out=out, **chosen, format=format, null=null, report=report)
        out.flush()
    else:
        target = os.path.realpath(output)
        if os.path.lexists(target) and not os.path.isfile(target):
            raise UsageError(f"--output {printable(output)} is not a regular file; name one, or write to stdout")
        if not os.path.isdir(os.path.dirname(target)):
            raise UsageError(f"--output {printable(output)}: there is no such folder; make it first")
        with replacing(Path(target)) as temporary, temporary.open("wb") as file:
            result = export(opened, out=file, **chosen, format=format, null=null, report=report)
    what = {"paths": "images found", "keep-list": "images to keep", "csv": "findings", "split": "images"}[format]
    note(f"{what}: {result.lines}" + (f", in {output}" if output else ""))
    if format == "split":
        note(f"images in another split than before: {result.moved}")
    note_evaluation(result.evaluation)
    note_outdated(result.outdated)
    note_missing(opened)
