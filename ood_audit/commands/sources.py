"""`ood-audit sources`."""

from dataclasses import astuple, fields

import click

from ood_audit.commands.options import format_option, store_option
from ood_audit.commands.output import note, print_rows
from ood_audit.errors import UsageError


@click.command("sources", epilog="Example: ood-audit sources --forget ./old-images --dry-run")
@click.option(
    "--forget", multiple=True, metavar="SOURCE", help="Remove the images of SOURCE from the store. Can be repeated."
)
@click.option("--dry-run", is_flag=True, help="Print what --forget would do, without doing it.")
@store_option
@format_option
def command(forget: tuple[str, ...], dry_run: bool, store: str, format: str) -> None:
    """List where the images of the store came from, and whether that is still there.

    The state of a source is present, missing, empty (a folder with nothing in it), link (its path now leads elsewhere)
    or not checked (a remote source). If a source has moved, run `ood-audit embed` on its new place: files with the same
    content keep their features. If it is gone for good, remove it with --forget, which leaves the files alone.
    """
    from ood_audit.store import sources

    if dry_run and not forget:
        raise UsageError("--dry-run says what --forget would do; add --forget SOURCE")
    if forget:
        from ood_audit.store.forget import forget as forgotten

        found = forgotten(forget, store, dry_run=dry_run)
    else:
        found = sources.sources(store)
    print_rows([field.name for field in fields(sources.Source)], map(astuple, found), format)
    images = sum(source.images + source.unreadable for source in found)
    if forget:
        note(f"images {'that would be ' if dry_run else ''}removed from the store: {images}; their files are unchanged")
    elif missing := [source for source in found if source.is_missing]:
        note(
            f"missing or empty: {len(missing)} of {len(found)} sources; embed the places they moved to, "
            "or remove them with --forget SOURCE"
        )
