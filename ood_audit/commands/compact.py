"""`ood-audit compact`."""

import click

from ood_audit.commands.options import store_option
from ood_audit.commands.output import note
from ood_audit.progress import bars


@click.command("compact", epilog="Example: ood-audit compact --store .ood-audit")
@store_option
def command(store: str) -> None:
    """Merge the store's small files into large ones, and drop outdated rows.

    Queries, reports and scores stay the same. This makes them faster after many runs of `embed`, or after many images
    were changed or removed. It can be interrupted at any moment.
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
