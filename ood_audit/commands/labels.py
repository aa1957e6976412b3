"""`ood-audit labels`."""

import click

from ood_audit.commands.options import device_option, store_option
from ood_audit.commands.output import note, print_rows, progress

_COLUMNS = ("name", "images", "example", "example_2", "example_3")


@click.group("labels", epilog="Example: ood-audit labels suggest --format labels > classes.txt")
def command() -> None:
    """Help with the list of classes."""


@command.command("suggest", epilog="Example: ood-audit labels suggest --names 30 --format labels > classes.txt")
@store_option
@click.option("--names", "most", type=click.IntRange(min=1), default=50, show_default=True, help="How many at most.")
@device_option
@click.option(
    "--format",
    type=click.Choice(["table", "csv", "json", "jsonl", "labels"]),
    default="table",
    show_default=True,
    help="How rows are printed; labels: a list of classes to start from.",
)
def suggest(store: str, most: int, device: str, format: str) -> None:
    """Name what is in the images, to start a list of classes from.

    Like images are put together, and each group is given the noun of WordNet that it looks like more than other images
    do. Names are of the model's making: look at the examples, and correct them. The nouns are encoded once a store:
    seconds with the starter, minutes with a ViT on a CPU.
    """
    from ood_audit.findings import naming

    with progress() as on_progress:
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
