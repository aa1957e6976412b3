"""`ood-audit run`."""

import shlex
from typing import Any

import click

from ood_audit.commands.common import device_option, note, progress, store_option
from ood_audit.store.layout import DEFAULT_STORE
from ood_audit.text import printable

_FEWEST, _MOST, _PART = 10, 100, 5  # images that are listed for their rank alone: a fifth of them, within limits


@click.command("run", epilog="Example: ood-audit run ./images --labels classes.txt --labelled labelled/ --open")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@store_option
@click.option(
    "--labels",
    metavar="FILE",
    help="Classes: one a line, synonyms after |; or CSV, JSON, YAML.  [default: as last time, or folders]",
)
@click.option("--labelled", metavar="DIR", help="Labelled images, DIR/CLASS/…, apart from SOURCE, to compare with.")
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

    This is `embed`, `tune --epochs 0` for the labelled images, and `report`, one after another, each with its defaults.
    SOURCE is whatever `embed` takes.
    """
    from ood_audit.embedding.run import embed
    from ood_audit.images.noise import quiet_libraries
    from ood_audit.reports.run import report
    from ood_audit.reports.summary import lines
    from ood_audit.tuning.trainer import Settings
    from ood_audit.tuning.tune import tune

    with quiet_libraries(), progress() as on_progress:
        given: dict[str, Any] = {"store": store, "device": device, "on_progress": on_progress}
        embedded = embed(sources, model=model, on_note=_warn, **given)
        if labelled is not None:
            settings = Settings(epochs=0)
            tune(labels=labels, folder=labelled, settings=settings, name="labelled", **given)
        images = sum(embedded.counts[outcome] for outcome in ("added", "unchanged", "changed", "moved"))
        top = max(_FEWEST, min(_MOST, images // _PART))
        result = report(labels=None if labelled is not None else labels, top=top, **given)
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
