"""`ood-audit compact`."""

import click

from ood_audit.commands.options import store_option
from ood_audit.commands.output import note
from ood_audit.progress import bars


@click.command("compact", epilog="Example: ood-audit compact --store .ood-audit")
@store_option
def command(store: str) -> None:
    """Merge small parts of the store into large ones, and drop rows that no longer count.

    What queries and reports show stays the same, and what was scored stays valid. Useful after many runs of embed, and
    after many images have changed or gone. It can be interrupted at any moment.
    """
    from ood_audit.store import open_store
    from ood_audit.store.compaction import compact

    with bars() as on_progress:
        done = compact(open_store(store), on_progress=on_progress)
    click.echo(
        f"{done.parts_before} parts became {done.parts_after}; {done.dropped} rows dropped; "
        f"{done.bytes_before / 1e6:,.1f} MB became {done.bytes_after / 1e6:,.1f} MB"
    )
    if done.left:
        note(f"parts kept, as a report may be reading them: {done.left}; run `ood-audit compact` again after it")
