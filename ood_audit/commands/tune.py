"""`ood-audit tune`."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from ood_audit.commands.options import SEED, device_option, format_option, labels_option, store_option
from ood_audit.commands.output import note, print_rows
from ood_audit.errors import UsageError
from ood_audit.progress import Bars, Progress, bars

if TYPE_CHECKING:
    from ood_audit.tuning.settings import TuneSettings
    from ood_audit.tuning.trainer import Figures

_FIGURES = ("accuracy", "gap", "forecast_auroc")


@click.command("tune", epilog="Example: ood-audit tune --labels classes.txt --from labelled/ --shots 8 --name first")
@store_option
@labels_option
@click.option(
    "--from",
    "folder",
    metavar="FOLDER",
    help="Register the labelled images in FOLDER/CLASS/… first, as `labels add` does.",
)
@click.option(
    "--annotations",
    metavar="FILE",
    help="Register a CSV, JSON or Parquet file first: path (of an image in the store), label.",
)
@click.option(
    "--method",
    type=click.Choice(["residual", "prompt"]),
    help="What to learn: the words in front of the class names (prompt), or a residual added to each class feature.  "
    "[default: prompt for the starter model, else residual]",
)
@click.option(
    "--loss",
    type=click.Choice(["ebm", "coop"]),
    help="Training loss.  [default: ebm; coop with --method residual]",
)
@click.option(
    "--ebm",
    type=click.Choice(["renormalised", "literal"]),
    default="renormalised",
    show_default=True,
    help="Form of the EBM loss; literal is the formula as printed in the paper.",
)
@click.option(
    "--shots", default="all", show_default=True, metavar="N", help="Training images for each class: a number, or all."
)
@click.option(
    "--context-vectors",
    type=int,
    metavar="N",
    help="Number of learned vectors of prompts.  [default: as many as --init has tokens]",
)
@click.option(
    "--init",
    metavar="WORDS",
    help="Words that prompts start from, or random.  [default: a photo of a]",
)
@click.option("--epochs", type=int, metavar="N", help="Maximum number of epochs.")
@click.option("--lr", type=float, help="Learning rate.")
@click.option("--batch-size", type=int, metavar="N", help="Images in each training step.")
@click.option("--lambda", "lambda_", type=float, help="Weight of the EBM term; 0 is CoOp.")
@click.option("--ebm-temperature", type=float, help="Temperature of the energies in the EBM loss.")
@click.option("--mask-proportion", type=float, help="Share of a feature's elements that are masked.")
@click.option(
    "--mask",
    type=click.Choice(["random", "top", "keep", "adaptive"]),
    help="Elements to mask: random ones, those with the largest products (top), all others (keep), or the fewest that "
    "carry a share of the similarity (adaptive).  [default: random; top with --ebm literal]",
)
@click.option(
    "--regulariser",
    type=click.Choice(["none", "pull", "ogen"]),
    help="Hold the class features near those of the hand-written prompt (pull), or train on generated features of "
    "unknown classes as well (ogen).  [default: pull with the loss ebm, else none]",
)
@click.option(
    "--pull", type=float, help="How strongly the class features are pulled towards those of the hand-written prompt."
)
@click.option(
    "--unlabelled",
    type=click.Choice(["on", "off"]),
    default="off",
    show_default=True,
    help="Whether the images under audit take part in the training, without labels.",
)
@click.option(
    "--prototypes/--no-prototypes",
    default=True,
    show_default=True,
    help="Whether reports with these prompts compare images with class prototypes, too.",
)
@click.option("--seed", type=SEED, metavar="N", default=0, show_default=True, help="Random seed.")
@click.option("--name", metavar="NAME", help="Name of the prompts.  [default: the method or loss, and the time]")
@device_option
@format_option
def command(
    format: str,
    store: str,
    labels: str | None,
    folder: str | None,
    annotations: str | None,
    name: str | None,
    device: str,
    method: str | None,
    **options: Any,
) -> None:
    """Tune on labelled images: learn the words in front of the class names, or a residual on the class features.

    A residual (--method residual) is learned from stored features, so that it works for imported vectors as well.
    Either is kept under a name that --prompts takes.

    Training uses the images registered with `ood-audit labels add`; where there are none, the images of the store whose
    folder is named as a class. A quarter of them is held out. Held-out images and left-out classes decide when to stop,
    and give the printed figures. Ctrl-C saves the best prompts so far and exits with 130. The next report uses the
    prompts, unless they made the held-out figures worse.
    """
    from ood_audit.images.noise import quiet_libraries
    from ood_audit.store import open_store
    from ood_audit.tuning.tune import best_method, tune

    opened = open_store(store)
    if method is None:
        of_prompts = options["init"] is not None or options["context_vectors"] is not None
        method = "prompt" if of_prompts else best_method(opened)
    settings = _settings(method=method, **options)
    with quiet_libraries(), bars() as on_progress:
        result = tune(
            opened,
            labels=labels,
            folder=folder,
            annotations=annotations,
            settings=settings,
            name=name,
            device=device,
            note=note,
            on_progress=on_progress,
            on_epoch=_epochs(on_progress),
        )
    found = result.tuned
    rows = [
        [when, *(getattr(figures, figure) for figure in _FIGURES)]
        for when, figures in (("before", found.before), ("after", found.after))
    ]
    print_rows(("held_out", *_FIGURES), rows, format)
    stopped = "interrupted; kept the best so far, " if found.interrupted else ""
    note(f"{stopped}epoch {found.epoch} of {len(found.history) - 1}")
    note(f"method: {'residual on the class features' if method == 'residual' else 'prompts'}")
    note(f"prompts: {result.name}, from {result.images} labelled images of {result.classes} classes ({result.path})")
    if result.improved:
        note("next: ood-audit report")
    else:
        nothing = found.interrupted and found.epoch == 0
        why = "nothing was learned yet" if nothing else "the held-out figures are worse than before"
        note(f"warning: {why}; reports use these prompts only with --prompts NAME")
    if found.interrupted:
        click.get_current_context().exit(130)


def _settings(*, shots: str, init: str | None, **options: Any) -> "TuneSettings":
    """How to tune; options that are None have the defaults of the method."""
    from ood_audit.tuning.settings import settings_of

    given = {name: value for name, value in options.items() if value is not None}
    if shots.strip().lower() != "all":
        try:
            given["shots"] = int(shots)
        except ValueError as error:
            raise UsageError(f"--shots {shots}: write a whole number, or all") from error
    if given["method"] == "residual" and (init is not None or "context_vectors" in given):
        raise UsageError("--init and --context-vectors are for prompts; use --method prompt")
    given["unlabelled"] = given["unlabelled"] == "on"
    if init is not None:
        given["init"] = None if init.strip().lower() == "random" else init
    return settings_of(**given)


def _epochs(on_progress: Progress) -> "Callable[[Figures, int], None]":
    """Draws the epochs with loss and held-out figures."""

    def update(figures: "Figures", total: int) -> None:
        on_progress("tuning", figures.epoch, total)
        known = {"loss": figures.loss, "accuracy": figures.accuracy, "AUROC": figures.forecast_auroc}
        if isinstance(on_progress, Bars):
            on_progress.show({name: value for name, value in known.items() if value is not None})

    return update
