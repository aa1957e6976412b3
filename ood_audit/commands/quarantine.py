"""`ood-audit quarantine`."""

from dataclasses import astuple, fields
from typing import Any

import click

from ood_audit.commands.options import format_option, selection, selection_options, store_option
from ood_audit.commands.output import note, note_evaluation, note_outdated, print_rows
from ood_audit.errors import OodAuditError, UsageError
from ood_audit.progress import bars


@click.command("quarantine", epilog="Example: ood-audit quarantine ../set-aside --flagged --duplicates --dry-run")
@click.argument("dest")
@selection_options
@click.option("--dry-run", is_flag=True, help="Print what would be done, without doing it.")
@click.option("--undo", is_flag=True, help="Move everything in DEST back to where it was.")
@store_option
@format_option
def command(dest: str, store: str, report: str | None, format: str, dry_run: bool, undo: bool, **selected: Any) -> None:
    """Move images with findings to the folder DEST, and back with --undo.

    Nothing is overwritten in either direction. A file that has changed since it was embedded stays where it is, and so
    does a file that an image to keep links to. A symbolic link is moved as a link. DEST keeps a journal,
    quarantine.jsonl: after an interruption, run the same command again, or --undo.
    """
    from ood_audit.actions import quarantine
    from ood_audit.store.store import open_store

    if undo and (report is not None or any(selected.values())):
        raise UsageError("--undo moves everything back; leave out the options that select findings")
    with bars() as on_progress:
        if undo:
            result = quarantine.restore(dest, dry_run=dry_run, on_progress=on_progress)
        else:
            opened = open_store(store)
            chosen = selection(opened, **selected)
            result = quarantine.quarantine(
                dest, opened, **chosen, report=report, dry_run=dry_run, on_progress=on_progress
            )
    columns = [field.name for field in fields(quarantine.Outcome)]
    shown = columns[:-1] if format == "table" else columns
    print_rows(shown, [astuple(outcome)[: len(shown)] for outcome in result.outcomes], format)
    if result.settled:
        note(f"moves of an interrupted run that {'would be' if dry_run else 'were'} finished first: {result.settled}")
    note_evaluation(result.evaluation)
    note_outdated(result.outdated)
    counts = ", ".join(f"{n} {outcome}" for outcome, n in sorted(result.counts.items()))
    what = "images in the quarantine" if undo else "images selected"
    note(f"{what}: {len(result.outcomes)}" + (f" ({counts})" if counts else ""))
    if result.counts["moved"]:
        note("to move them back, add --undo; to sync the store, run `ood-audit embed` again")
    if left := result.counts["left"]:
        raise OodAuditError(f"left where they are: {left} of {len(result.outcomes)} images, for the reasons above")
