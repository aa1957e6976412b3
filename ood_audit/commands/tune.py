"""`ood-audit tune`."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from ood_audit.commands.options import SEED, device_option, format_option, store_option
from ood_audit.commands.output import note, print_rows
from ood_audit.errors import UsageError
from ood_audit.progress import bars

if TYPE_CHECKING:
    from ood_audit.tuning.trainer import Figures

_FIGURES = ("accuracy", "gap", "forecast_auroc")


@click.command("tune", epilog="Example: ood-audit tune --labels classes.txt --from labelled/ --shots 8 --name first")
@store_option
@click.option(
    "--labels",
    metavar="FILE",
    help="Classes: one a line, synonyms after |; or CSV, JSON, YAML.  [default: as last time, or folders]",
)
@click.option("--from", "folder", metavar="FOLDER", help="Labelled images, FOLDER/CLASS/…, apart from those audited.")
@click.option("--annotations", metavar="FILE", help="CSV, JSON or Parquet: path (of an image in the store), label.")
@click.option("--loss", type=click.Choice(["ebm", "coop"]), default="ebm", show_default=True, help="What is minimised.")
@click.option(
    "--ebm",
    type=click.Choice(["renormalised", "literal"]),
    default="renormalised",
    show_default=True,
    help="How the EBM loss is read; literal is as printed in the paper.",
)
@click.option("--shots", default="all", show_default=True, metavar="N", help="Images a class to train on, or all.")
@click.option("--context-vectors", type=int, metavar="N", help="How many are learned.  [default: as the words need]")
@click.option("--init", default="a photo of a", show_default=True, metavar="WORDS", help="To start from; or random.")
@click.option("--epochs", type=int, help="At most; 0 only registers the labelled images.")
@click.option("--lr", type=float, help="The learning rate.")
@click.option("--batch-size", type=int, help="Images a step.")
@click.option("--lambda", "lambda_", type=float, help="The weight of the EBM term; 0 is CoOp.")
@click.option("--ebm-temperature", type=float, help="The temperature of its energies.")
@click.option("--mask-proportion", type=float, help="The share of a feature's elements that is masked.")
@click.option(
    "--mask",
    type=click.Choice(["random", "top", "keep"]),
    help="Mask any elements, those with the largest products, or the others.  [default: random; top where literal]",
)
@click.option("--pull", type=float, help="How strongly prompts are held near the hand-written one.")
@click.option(
    "--prototypes/--no-prototypes",
    default=True,
    show_default=True,
    help="Let reports take the labelled images as pictures of the classes.",
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of every random choice.")
@click.option("--name", metavar="NAME", help="What to call the prompts.  [default: the loss and the time]")
@device_option
@format_option
def command(
    format: str,
    store: str,
    labels: str | None,
    folder: str | None,
    annotations: str | None,
    shots: str,
    init: str,
    prototypes: bool,
    name: str | None,
    device: str,
    **options: Any,
) -> None:
    """Fit prompts to labelled images: learned context vectors in front of the class names.

    Labelled images are those of --from or --annotations, else those of the store whose folder is named as a class. A
    part of them is held out; it and classes left out in turn decide when to stop, and are what the figures are of.
    Ctrl-C saves the best so far and exits with 130. The next report uses the prompts, unless they made the held-out
    figures worse.
    """
    from ood_audit.images.noise import quiet_libraries
    from ood_audit.tuning.trainer import Settings
    from ood_audit.tuning.tune import tune

    given = {key: value for key, value in options.items() if value is not None}
    if shots.strip().lower() != "all":
        try:
            given["shots"] = int(shots)
        except ValueError as error:
            raise UsageError(f"--shots {shots}: write a whole number, or all") from error
    if given.get("ebm") == "literal":
        given.setdefault("mask", "top")
    settings = Settings(init=None if init.strip().lower() == "random" else init, **given)
    with quiet_libraries(), bars() as on_progress, _epochs() as on_epoch:
        result = tune(
            store,
            labels=labels,
            folder=folder,
            annotations=annotations,
            settings=settings,
            prototypes=prototypes,
            name=name,
            device=device,
            note=note,
            on_progress=on_progress,
            on_epoch=on_epoch,
        )
    found = result.tuned
    rows = [
        [when, *(getattr(figures, figure) for figure in _FIGURES)]
        for when, figures in (("before", found.before), ("after", found.after))
    ]
    print_rows(("held_out", *_FIGURES), rows, format)
    stopped = "interrupted; kept the best so far, " if found.interrupted else ""
    note(f"{stopped}epoch {found.epoch} of {len(found.history) - 1}")
    note(f"prompts: {result.name}, from {result.images} labelled images of {result.classes} classes ({result.path})")
    if not result.improved:
        note("warning: the held-out figures are worse than before: reports use these only by --prompts NAME")
    if found.interrupted:
        click.get_current_context().exit(130)


@contextmanager
def _epochs() -> Iterator["Callable[[Figures, int], None]"]:
    """A bar of epochs with loss and held-out figures, on a terminal."""
    if not sys.stderr.isatty():
        yield lambda figures, total: None
        return
    from tqdm import tqdm

    with tqdm(desc="tuning", unit="epoch", dynamic_ncols=True, leave=False) as bar:

        def update(figures: "Figures", total: int) -> None:
            bar.total = total
            known = {"loss": figures.loss, "accuracy": figures.accuracy, "AUROC": figures.forecast_auroc}
            bar.set_postfix({key: f"{value:.3f}" for key, value in known.items() if value is not None}, refresh=False)
            bar.update(figures.epoch - bar.n)

        yield update
