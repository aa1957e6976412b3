"""`ood-audit evaluate`."""

from typing import Any

import click

from ood_audit.commands.options import comparison_options, device_option, format_option, store_option
from ood_audit.commands.output import note, print_rows
from ood_audit.progress import bars

SHOWN = ("score", "prompts", "auroc", "aupr_ood", "aupr_id", "fpr95", "fpr95_ood", "accuracy")


@click.command("evaluate", epilog="Example: ood-audit evaluate --truth truth.csv --labels classes.txt --format json")
@store_option
@click.option(
    "--truth", required=True, metavar="FILE", help="CSV, JSON or Parquet: path, is_ood (0 or 1) and, if known, label."
)
@click.option(
    "--labels",
    metavar="FILE",
    help="Classes: one a line, synonyms after |; or CSV, JSON, YAML.  [default: as last time, or folders]",
)
@click.option(
    "--score",
    "only",
    multiple=True,
    metavar="SCORE",
    help="Evaluate only this score; repeatable.  [default: all but those with names to encode]",
)
@click.option(
    "--prototypes/--no-prototypes", default=None, help="Give every score pictures of the classes.  [default: chosen]"
)
@comparison_options
@device_option
@format_option
def command(format: str, **options: Any) -> None:
    """Compare every score with known answers.

    fpr95 is the share of OOD images kept where 95% of the ID images are kept; fpr95_ood the share of ID images flagged
    where 95% of the OOD images are caught. The table shows each figure with its 95% bootstrap interval; the other
    formats have the ends as columns of their own.
    """
    from ood_audit.scoring.evaluation import evaluate
    from ood_audit.scoring.metrics import METRICS

    with bars() as on_progress:
        result = evaluate(note=note, on_progress=on_progress, **options)
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


def _with_interval(row: dict[str, Any], name: str) -> str:
    return f"{row[name]:.3f} ({row[f'{name}_low']:.3f}–{row[f'{name}_high']:.3f})"
