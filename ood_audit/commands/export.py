"""`ood-audit export`."""

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from ood_audit.commands.options import Chosen, selection, selection_options, store_option
from ood_audit.commands.output import note, note_evaluation, note_missing, note_outdated
from ood_audit.errors import UsageError
from ood_audit.progress import bars
from ood_audit.store.sources import sources
from ood_audit.store.store import Store
from ood_audit.text import printable

_DATASETS = ("coco", "yolo", "parquet", "atlas")


@click.command(
    "export", epilog="Example: ood-audit export --flagged --duplicates --keep --format coco --output kept.json"
)
@selection_options
@click.option(
    "--format",
    type=click.Choice(["paths", "csv", "keep-list", "split", *_DATASETS]),
    default="paths",
    show_default=True,
    help="paths: the images with a finding, the worst first; csv: the findings, or with --keep the other images with "
    "label and split; keep-list: all other readable images; split: the splits of all images anew, as CSV, so that they "
    "share nothing; coco, yolo, parquet: a dataset with labels, splits and boxes; atlas: a Parquet file for "
    "embedding-atlas.",
)
@click.option("--keep", is_flag=True, help="Write the images that are left without those selected.")
@click.option("--copy", is_flag=True, help="Copy the images into the folder of a coco or yolo dataset.")
@click.option("--null", is_flag=True, help="End each path with a null byte instead of a line break, for xargs -0.")
@click.option("--output", metavar="PATH", help="File or folder to write.  [default: stdout]")
@store_option
def command(
    store: str,
    report: str | None,
    format: str,
    keep: bool,
    copy: bool,
    null: bool,
    output: str | None,
    **selected: Any,
) -> None:
    """Write the images with findings, or the images to keep, as a list or a dataset for other tools.

    Paths are absolute and exact. A name with a line break needs --null or --format csv. A keep-list is a source for
    `ood-audit embed`, like any list of paths. coco, yolo, parquet and atlas write all readable images where none are
    selected. What verdicts removed is left out of datasets, and labels are as verdicts corrected them.
    """
    from ood_audit.store.store import open_store

    opened = open_store(store)
    is_any = any(selected.values())
    if format in _DATASETS or (format == "csv" and (keep or not is_any)):
        if output is None:
            raise UsageError(f"--format {format} of images needs `output=PATH`; select findings for a table of these")
        if null:
            raise UsageError("--null is for paths and keep-lists")
        some: Chosen = selection(opened, **selected) if is_any else {}
        _dataset(opened, output, some, format, keep, copy, report)
        return
    if copy:
        raise UsageError("--copy is for the formats coco and yolo")
    if keep:
        if format == "split":
            raise UsageError("the format split writes all images; leave out --keep")
        format = "keep-list"
    chosen: Chosen = {} if format == "split" and not is_any else selection(opened, **selected)
    _list(opened, output, chosen, format, null, report)


def _list(opened: Store, output: str | None, chosen: Chosen, format: str, null: bool, report: str | None) -> None:
    from ood_audit.actions.export import export
    from ood_audit.store.files import replacing

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
    note_missing(sources(opened))


def _dataset(
    opened: Store, output: str, chosen: Chosen, format: str, keep: bool, copy: bool, report: str | None
) -> None:
    from ood_audit.actions.datasets.atlas import OPEN
    from ood_audit.actions.datasets.write import export_dataset

    with bars() as on_progress:
        result = export_dataset(
            output, opened, **chosen, format=format, keep=keep, copy=copy, report=report, on_progress=on_progress
        )
    boxes = f", boxes: {result.boxes}" if result.boxes else ""
    note(f"images written: {result.images}{boxes}, in {output}")
    if result.left_out:
        note(f"boxes left out, as they have no class and YOLO's have one: {result.left_out}")
    if result.relabelled:
        note(f"labels as verdicts corrected them: {result.relabelled}")
    if format == "atlas":
        note(f"open it with: {OPEN.format(shlex.quote(output))}")
    note_evaluation(result.evaluation)
    note_outdated(result.outdated)
    note_missing(sources(opened))
