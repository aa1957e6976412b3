"""`ood-audit labels`."""

import click

from ood_audit.commands.options import device_option, format_option, store_option
from ood_audit.commands.output import note, print_rows
from ood_audit.progress import bars
from ood_audit.store.store import open_store

_COLUMNS = ("name", "images", "example", "example_2", "example_3")
_REGISTERED = ("source", "kind", "images", "classes", "unreadable", "added")


@click.group("labels", epilog="Example: ood-audit labels add labelled/")
def command() -> None:
    """Suggest class names, and register labelled images."""


@command.command("add", epilog="Example: ood-audit labels add labelled/")
@store_option
@device_option
@click.argument("source", metavar="FOLDER|FILE")
def add(source: str, store: str, device: str) -> None:
    """Register labelled images: known examples of your classes.

    FOLDER holds one folder of images for each class, apart from the images under audit. FILE is a CSV, JSON or Parquet
    file with the columns `path`, of an image in the store, and `label`. Reports then flag images at a false-alarm rate,
    tell kinds of shift apart and compare with pictures of the classes, and `tune` learns from them. Run the command
    again after the folder or file has changed.
    """
    from ood_audit.classes import labelled
    from ood_audit.images.noise import quiet_libraries

    with quiet_libraries(), bars() as on_progress:
        added = labelled.add(open_store(store), source, device=device, note=note, on_progress=on_progress)
    images = f"{added.images} labelled image{'s' * (added.images != 1)}"
    note(f"registered {images} of {len(added.classes)} class{'es' * (len(added.classes) != 1)} from {source}")
    note("next: ood-audit report")


@command.command("list", epilog="Example: ood-audit labels list --format json")
@store_option
@format_option
def listed(store: str, format: str) -> None:
    """List the registered labelled images."""
    from ood_audit.classes import labelled

    found = labelled.registered(open_store(store))
    rows = [[own.source, own.kind, own.images, len(own.classes), own.unreadable, own.added] for own in found]
    print_rows(_REGISTERED, rows, format)
    if not found:
        note("no labelled images are registered; register some with `ood-audit labels add FOLDER`")


@command.command("remove", epilog="Example: ood-audit labels remove labelled/")
@store_option
@click.argument("source", metavar="FOLDER|FILE")
def remove(source: str, store: str) -> None:
    """Remove labelled images from the store. The files themselves stay where they are."""
    from ood_audit.classes import labelled

    removed = labelled.remove(open_store(store), source)
    note(f"removed {removed.images} labelled images from the store; the files stay where they are")


@command.command("suggest", epilog="Example: ood-audit labels suggest --names 30 --format labels > classes.txt")
@store_option
@click.option(
    "--names",
    "most",
    type=click.IntRange(min=1),
    metavar="N",
    default=50,
    show_default=True,
    help="Maximum number of names.",
)
@device_option
@click.option(
    "--format",
    type=click.Choice(["table", "csv", "json", "jsonl", "labels"]),
    default="table",
    show_default=True,
    help="Output format. labels is a list of classes to start from.",
)
def suggest(store: str, most: int, device: str, format: str) -> None:
    """Suggest names for what is in the images, to start a list of classes.

    Images that look alike form groups, and each group gets the noun of WordNet that it resembles more than other images
    do. Names come from the model and can be wrong: look at the examples and correct them. The nouns are encoded once
    for each store, which takes seconds with the starter and minutes with a ViT on a CPU.
    """
    from ood_audit.findings import naming

    with bars() as on_progress:
        found = naming.suggest(store, most=most, device=device, on_progress=on_progress)
    if format == "labels":
        click.echo(naming.as_labels(found), nl=False)
    else:
        rows = [[row.name, row.images, *(row.examples + [None] * 2)[:3]] for row in found.rows]
        print_rows(_COLUMNS, rows, format)
    if found.why_none:
        note(found.why_none)
    note(f"{len(found.rows)} names for {found.images - found.unnamed} of {found.images} images")
    if format != "labels" and found.rows:
        note("make a list of them: ood-audit labels suggest --format labels > classes.txt")
