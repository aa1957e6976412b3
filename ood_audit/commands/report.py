"""`ood-audit report`."""

from typing import Any

import click

from ood_audit.commands.common import (
    AutoNumber,
    Share,
    comparison_options,
    device_option,
    format_option,
    note,
    note_missing,
    print_rows,
    progress,
    store_option,
)
from ood_audit.errors import OodAuditError, UsageError

COLUMNS = ("rank", "path", "ood_score", "delta_energy", "label", "label_2", "margin", "max_cosine")


@click.command(
    "report",
    epilog='Example: ood-audit report --labels classes.txt --template "a sketch of a {}." --top 50 --format json',
)
@store_option
@click.option(
    "--labels",
    metavar="FILE",
    help="Classes: one a line, synonyms after |; or CSV, JSON, YAML.  [default: as last time, or folders]",
)
@click.option("--template", multiple=True, metavar="TEXT", help="A prompt with {}; repeat to average.")
@click.option("--template-set", type=click.Choice(["openai-imagenet", "simple"]), help="open_clip's prompts.")
@click.option(
    "--top", type=click.IntRange(1, 2**31 - 1), default=100, show_default=True, help="How many images to list."
)
@click.option("--name", default="latest", show_default=True, metavar="NAME", help="The report is kept as reports/NAME.")
@click.option(
    "--score",
    default="auto",
    show_default=True,
    metavar="SCORE",
    help="auto (ΔEnergy joined with other evidence), or one score alone: delta-energy, mcm, energy, maxlogit, "
    "simlabel, logitgap, neglabel, csp, knn, one of another package; or best, which chooses.",
)
@click.option(
    "--temperature", type=AutoNumber(float), metavar="τ", help="auto, or the score's temperature.  [default: auto]"
)
@click.option(
    "--top-c", type=AutoNumber(int), metavar="C", help="auto, or how many similarities are reset.  [default: auto]"
)
@click.option(
    "--reset-to", type=AutoNumber(float), metavar="V", help="auto, or what they are reset to.  [default: auto]"
)
@click.option(
    "--background",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="Compare with 45,000 names of other things too.",
)
@click.option(
    "--prototypes/--no-prototypes",
    default=None,
    help="Compare with pictures of the classes too.  [default: chosen]",
)
@click.option(
    "--novelty",
    type=AutoNumber(float, on_off=True),
    metavar="WEIGHT",
    help="auto, on, off, or how much it counts that an image is unlike the rest of the folder.  [default: auto]",
)
@click.option("--fdr", type=float, metavar="Q", help="Flag images, of which about Q are false alarms.")
@click.option(
    "--false-alarms",
    type=float,
    metavar="A",
    help="Flag about A of the images in distribution, and what is more OOD.  [default: 0.01]",
)
@click.option(
    "--near-duplicates/--exact-duplicates",
    default=None,
    help="Which copies to look for.  [default: both, of at most 200,000 images; exact ones of more]",
)
@click.option(
    "--fail-over", type=Share(), metavar="SHARE", help="Exit with 3 where more is flagged: 1% or 0.01 of the images."
)
@comparison_options
@device_option
@format_option
def command(
    format: str,
    template: tuple[str, ...],
    template_set: str | None,
    score: str,
    background: str,
    fail_over: float | None,
    **options: Any,
) -> int:
    """Score every image, rank them, and write the report.

    Prints the most out-of-distribution images, and writes all formats to reports/NAME in the store: report.html,
    report.csv, report.json (the top), report.parquet (all images).
    """
    from ood_audit.images.noise import quiet_libraries
    from ood_audit.reports.run import report
    from ood_audit.scoring.run import described

    if template and template_set:
        raise UsageError("choose --template or --template-set, not both")
    if template_set:
        from ood_audit.classes.vocabulary import template_set as prompts

        template = prompts(template_set)
    with quiet_libraries(), progress() as on_progress:
        result = report(
            templates=template or None,
            method=score,
            background={"auto": None, "on": True, "off": False}[background],
            note=note,
            on_progress=on_progress,
            **options,
        )
    print_rows(COLUMNS, [[row[column] for column in COLUMNS] for row in result.rows], format)
    scores = result.scores
    if scores.doubt:
        note(scores.doubt)
    by = described(scores.method, scores.parameters) + (" (as scored before)" if scores.reused else "")
    note(f"{scores.images} images against {len(scores.vocabulary.classes)} classes by {by}")
    if scores.references and scores.parameters["prototypes"]:
        note(f"pictures of the classes: {scores.references['images']} images, {scores.references['source']}")
    if scores.forecast is not None:
        note(f"expected AUROC on this data about {scores.forecast:.2f} (classes left out in turn)")
    for sentence in result.decisions.notes:
        note(sentence)
    found = result.decisions
    if found.labels["found"] or found.duplicates["extra"]:
        issues = [f"label issues: {found.labels['found']}"] if found.labels["labelled"] else []
        note("; ".join([*issues, f"superfluous copies: {found.duplicates['extra']}"]))
    note_missing(scores.store)
    note(f"report: {result.html}")
    if fail_over is None:
        return 0
    if found.flags is None or found.unflagged:
        raise OodAuditError(f"--fail-over cannot be checked, as {found.unflagged}")
    if (share := found.flags["flagged"] / scores.images) > fail_over:
        note(f"{share:.2%} of the images are flagged, more than --fail-over {fail_over:.2%}")
        return 3
    return 0
