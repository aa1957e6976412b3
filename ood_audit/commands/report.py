"""`ood-audit report`."""

from typing import Any

import click

from ood_audit.commands.common import device_option, format_option, note, print_rows, progress, store_option
from ood_audit.errors import UsageError

COLUMNS = ("rank", "path", "ood_score", "delta_energy", "label", "label_2", "margin", "max_cosine")


@click.command(
    "report",
    epilog='Example: ood-audit report --labels classes.txt --template "a sketch of a {}." --top 50 --format json',
)
@store_option
@click.option(
    "--labels",
    metavar="FILE",
    help="One class a line, synonyms after |.  [default: as last time, or folders]",
)
@click.option("--template", multiple=True, metavar="TEXT", help="A prompt with {}; repeat to average.")
@click.option("--template-set", type=click.Choice(["openai-imagenet", "simple"]), help="open_clip's prompts.")
@click.option(
    "--top", type=click.IntRange(1, 2**31 - 1), default=100, show_default=True, help="How many images to list."
)
@click.option("--name", default="latest", show_default=True, metavar="NAME", help="The report is kept as reports/NAME.")
@click.option(
    "--score",
    default="delta-energy",
    show_default=True,
    metavar="SCORE",
    help="delta-energy, mcm, energy, maxlogit, simlabel, logitgap, or one of another package.",
)
@click.option("--temperature", type=float, metavar="τ", help="The score's temperature.  [default: the model's]")
@click.option("--top-c", type=int, metavar="C", help="How many largest similarities are reset.  [default: the model's]")
@click.option("--reset-to", type=float, metavar="V", help="What they are reset to.  [default: the model's]")
@device_option
@format_option
def command(format: str, template: tuple[str, ...], template_set: str | None, score: str, **options: Any) -> None:
    """Score every image, rank them, and write the report.

    Prints the most out-of-distribution images, and writes all formats to reports/NAME in the store: report.html,
    report.csv, report.json (the top), report.parquet (all images).
    """
    from ood_audit.reports import report
    from ood_audit.reports.writers import described

    if template and template_set:
        raise UsageError("choose --template or --template-set, not both")
    if template_set:
        from ood_audit.vocabulary import template_set as prompts

        template = prompts(template_set)
    with progress("scoring") as update:
        result = report(templates=template or None, method=score, note=note, on_progress=update, **options)
    print_rows(COLUMNS, [[row[column] for column in COLUMNS] for row in result.rows], format)
    scores = result.scores
    by = described(scores.method, scores.parameters) + (" (as scored before)" if scores.reused else "")
    note(f"{scores.images} images against {len(scores.vocabulary.classes)} classes by {by}")
    note(f"report: {result.html}")
