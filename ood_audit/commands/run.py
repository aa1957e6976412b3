"""`ood-audit run`."""

import shlex

import click

from ood_audit.commands.options import device_option, labels_option, store_option
from ood_audit.commands.output import note
from ood_audit.progress import bars
from ood_audit.store.store import DEFAULT_STORE
from ood_audit.text import printable

_FEWEST, _MOST = 10, 100  # images that are listed for their rank alone
_PART = 5  # within these limits one image in five is


@click.command("run", epilog="Example: ood-audit run ./images --labels classes.txt --labelled labelled/ --open")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@store_option
@labels_option
@click.option(
    "--labelled", metavar="FOLDER", help="Labelled images to compare with; see `ood-audit labels add --help`."
)
@click.option(
    "--model",
    default="auto",
    show_default=True,
    metavar="MODEL",
    help="auto, starter, ARCH/TAG, hf-hub:ORG/NAME or local-dir:DIR; see `ood-audit embed --help`.",
)
@device_option
@click.option("--open", "show", is_flag=True, help="Open the page in a browser.")
def command(
    sources: tuple[str, ...],
    store: str,
    labels: str | None,
    labelled: str | None,
    model: str,
    device: str,
    show: bool,
) -> None:
    """Embed images, report what does not belong, and say what was found in ten lines.

    This is `embed`, `labels add` for the labelled images, and `report`, one after another, each with its defaults.
    SOURCE is whatever `embed` takes.
    """
    from ood_audit.classes import labelled as labelled_images
    from ood_audit.embedding.run import embed
    from ood_audit.images.noise import quiet_libraries
    from ood_audit.reports.run import report
    from ood_audit.reports.summary import lines

    with quiet_libraries(), bars() as on_progress:
        embedded = embed(sources, store=store, model=model, device=device, on_note=_warn, on_progress=on_progress)
        if labelled is not None:
            labelled_images.add(embedded.store, labelled, device=device, note=_warn, on_progress=on_progress)
        images = sum(embedded.counts[outcome] for outcome in ("added", "unchanged", "changed", "moved", "relabelled"))
        top = max(_FEWEST, min(_MOST, images // _PART))
        result = report(store, labels=labels, top=top, device=device, on_progress=on_progress)
    for line in lines(result):
        click.echo(printable(line))
    click.echo(_next(result.unreadable + sum(section.count for section in result.sections), store))
    if show and not click.launch(result.html.resolve().as_uri()):
        return
    if show:
        note("no browser could be opened; open the page by hand")


def _next(found: int, store: str) -> str:
    if not found:
        return "next: nothing to do"
    where = "" if store == DEFAULT_STORE else f" --store {shlex.quote(printable(store))}"
    return (
        f"next: decide on the page (keys: ?), press Finish, and run ood-audit apply decisions.csv --to ../aside{where}"
    )


def _warn(text: str) -> None:
    note(f"warning: {text}")
