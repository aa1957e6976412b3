"""`ood-audit apply`."""

from dataclasses import astuple, fields
from typing import TYPE_CHECKING

import click

from ood_audit.commands.options import format_option, store_option
from ood_audit.commands.output import note, note_evaluation, print_rows
from ood_audit.errors import OodAuditError, UsageError
from ood_audit.progress import bars

if TYPE_CHECKING:
    from ood_audit.actions import verdicts


@click.command("apply", epilog="Example: ood-audit apply decisions.csv --to ../aside --dry-run")
@click.argument("decisions", metavar="DECISIONS")
@click.option("--to", metavar="DIR", help="Move what is to be removed there, with a journal of all moves.")
@click.option(
    "--labels-file",
    metavar="FILE",
    default="labels.csv",
    show_default=True,
    help="Write new labels there, as CSV with the columns path and label.",
)
@click.option("--move", is_flag=True, help="Move images with a new label into the folder of their class instead.")
@click.option("--dry-run", is_flag=True, help="Print what would be done, and do nothing.")
@click.option("--undo", is_flag=True, help="Revert what these decisions did.")
@store_option
@format_option
def command(
    decisions: str,
    to: str | None,
    labels_file: str,
    move: bool,
    dry_run: bool,
    undo: bool,
    store: str,
    format: str,
) -> None:
    """Act on the decisions that were made on the report's page.

    DECISIONS is the file decisions.csv that the page's button Finish saves. Images to remove are moved to the folder of
    --to, new labels are written to a file, and every decision is remembered in the store, so that the next report lists
    only what is left. What has changed since it was embedded is left alone, and nothing is overwritten.
    """
    from ood_audit.actions import quarantine, verdicts

    if undo and (to is not None or move):
        raise UsageError("--undo reverts all that these decisions did; leave out --to and --move")
    with bars() as on_progress:
        if undo:
            result = verdicts.undo(decisions, store, dry_run=dry_run, on_progress=on_progress)
        else:
            result = verdicts.apply(
                decisions, store, to=to, labels=labels_file, move=move, dry_run=dry_run, on_progress=on_progress
            )
    if outcomes := result.moved.outcomes:
        columns = [field.name for field in fields(quarantine.Outcome)]
        shown = columns[:-1] if format == "table" else columns
        print_rows(shown, [astuple(outcome)[: len(shown)] for outcome in outcomes], format)
    note_evaluation(result.moved.evaluation)
    for sentence in _said(result, undo=undo, dry_run=dry_run):
        note(sentence)
    if left := result.moved.counts["left"]:
        raise OodAuditError(f"left where they are: {left} of {len(outcomes)} images, for the reasons above")


def _said(result: "verdicts.Applied", *, undo: bool, dry_run: bool) -> list[str]:
    """What was done, a sentence each."""
    would = "would be " if dry_run else ""
    counts = ", ".join(f"{n} {outcome}" for outcome, n in sorted(result.moved.counts.items()))
    said = [f"images: {counts}"] if counts else []
    if result.labels and result.relabelled:
        done = "taken back from" if undo else "written to"
        said.append(f"new labels: {result.relabelled} {would}{done} {result.labels}")
    if result.kept:
        said.append(f"kept as they are: {result.kept}")
    if result.new_classes and not undo:
        said.append(f"add the new classes to your list of classes: {', '.join(result.new_classes)}")
    if result.outdated:
        said.append(f"left out, as their image has changed or gone since: {result.outdated}")
    if not dry_run and not undo:
        said.append(
            "to revert this, give --undo in place of --to and --move; to sync the store, run `ood-audit embed` again"
        )
    return said
