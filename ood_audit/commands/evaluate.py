"""`ood-audit evaluate`."""

from typing import Any

import click

from ood_audit.commands.options import comparison_options, device_option, format_option, labels_option, store_option
from ood_audit.commands.output import note, print_rows
from ood_audit.progress import bars
from ood_audit.values import Row

SHOWN = ("score", "prompts", "auroc", "aupr_ood", "aupr_id", "fpr95", "fpr95_ood", "accuracy")


@click.command("evaluate", epilog="Example: ood-audit evaluate --truth truth.csv --labels classes.txt --format json")
@store_option
@click.option(
    "--truth",
    required=True,
    metavar="FILE",
    help="CSV, JSON or Parquet file with the columns path, is_ood (0 or 1) and, if known, label.",
)
@labels_option
@click.option(
    "--score",
    "only",
    multiple=True,
    metavar="SCORE",
    help="Score to evaluate. Can be repeated.  [default: all whose names are encoded already]",
)
@click.option(
    "--prototypes/--no-prototypes",
    default=None,
    help="Whether every score compares with pictures of the classes, too.  [default: chosen on the data]",
)
@comparison_options
@device_option
@format_option
def command(format: str, **options: Any) -> None:
    """Measure every score against known answers.

    fpr95 is the share of OOD images that pass at the threshold that keeps 95% of the in-distribution images. fpr95_ood
    is the share of in-distribution images that are flagged at the threshold that catches 95% of the OOD images. The
    table shows each figure with its 95% bootstrap interval; the other formats have the interval in columns of its own.
    """
    from ood_audit.scoring.evaluation import evaluate
    from ood_audit.scoring.metrics import METRICS
    from ood_audit.scoring.settings import ScoreSettings, taken

    settings = taken(ScoreSettings, options)
    with bars() as on_progress:
        result = evaluate(settings=settings, note=note, on_progress=on_progress, **options)
    if format == "table":
        rows = [[_with_interval(row, name) if name in METRICS else row[name] for name in SHOWN] for row in result.rows]
        print_rows(SHOWN, rows, format)
    else:
        columns = [*SHOWN, *(name for name in result.rows[0] if name not in SHOWN)]
        print_rows(columns, [[row[name] for name in columns] for row in result.rows], format)
    note(f"{result.images} images, {result.ood} of them OOD")
    for paths, what in (
        (result.not_in_store, "of the truth are not in the store, or unreadable"),
        (result.not_in_truth, "of the store are not in the truth"),
    ):
        if paths:
            some = ", ".join(paths[:3]) + (", …" if len(paths) > 3 else "")
            note(f"left out: {len(paths)} paths {what} ({some})")


def _with_interval(row: Row, name: str) -> str:
    return f"{row[name]:.3f} ({row[f'{name}_low']:.3f}–{row[f'{name}_high']:.3f})"
