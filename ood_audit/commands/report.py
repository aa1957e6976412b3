"""`ood-audit report`."""

from typing import Any

import click

from ood_audit.commands.options import (
    AutoNumber,
    Share,
    comparison_options,
    device_option,
    format_option,
    labels_option,
    store_option,
)
from ood_audit.commands.output import note, note_missing, print_rows
from ood_audit.errors import OodAuditError, UsageError
from ood_audit.progress import bars
from ood_audit.store.sources import sources

COLUMNS = (
    *("rank", "path", "ood_score", "delta_energy", "label", "label_2", "margin", "max_cosine"),
    *("flagged", "p_value", "given_label"),
)
_FOR_PEOPLE = ("rank", "path", "flagged", "p_value", "ood_score", "label", "label_2")  # no number twice


@click.command(
    "report",
    epilog='Example: ood-audit report --labels classes.txt --template "a sketch of a {}." --top 50 --format json',
)
@store_option
@labels_option
@click.option(
    "--template", multiple=True, metavar="TEXT", help="Prompt with {} for the class name. Repeat it to average several."
)
@click.option("--template-set", type=click.Choice(["openai-imagenet", "simple"]), help="A set of prompts of open_clip.")
@click.option(
    "--top",
    type=click.IntRange(1, 2**31 - 1),
    metavar="N",
    default=100,
    show_default=True,
    help="Number of images to list.",
)
@click.option("--name", default="latest", show_default=True, metavar="NAME", help="Name of the report.")
@click.option(
    "--score",
    default="auto",
    show_default=True,
    metavar="SCORE",
    help="Score to rank by. auto joins ΔEnergy with other evidence; best chooses a score on your data. One score: "
    "delta-energy, mcm, energy, maxlogit, simlabel, logitgap, neglabel, csp, knn, or one of another package.",
)
@click.option(
    "--temperature", type=AutoNumber(float), metavar="τ", help="Temperature of the score, or auto.  [default: auto]"
)
@click.option(
    "--top-c",
    type=AutoNumber(int),
    metavar="C",
    help="Number of similarities that ΔEnergy resets, or auto.  [default: auto]",
)
@click.option(
    "--reset-to", type=AutoNumber(float), metavar="V", help="Value that they are reset to, or auto.  [default: auto]"
)
@click.option(
    "--background",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="Whether to compare with 45,000 names of other things, too.",
)
@click.option(
    "--prototypes/--no-prototypes",
    default=None,
    help="Whether to compare with pictures of the classes, too.  [default: chosen on the data]",
)
@click.option(
    "--novelty",
    type=AutoNumber(float, on_off=True),
    metavar="WEIGHT",
    help="How much it counts that an image is unlike the rest of its folder: a number, auto, on or off.  "
    "[default: auto]",
)
@click.option(
    "--fdr", type=float, metavar="Q", help="Flag images so that a share Q of the flagged ones are false alarms."
)
@click.option(
    "--false-alarms",
    type=float,
    metavar="A",
    help="Flag images so that a share A of the in-distribution ones is flagged.  [default: 0.01]",
)
@click.option(
    "--near-duplicates/--exact-duplicates",
    default=None,
    help="Which duplicates to look for.  [default: near and exact ones, without look-alikes in one recording; above "
    "200,000 images only exact ones]",
)
@click.option(
    "--read-text",
    is_flag=True,
    help="Also read the text in up to 2,000 pictures, for text that goes with one class and names of other classes. "
    "Takes a sixth of a second a picture, and pip install 'ood-audit[text]'.",
)
@click.option(
    "--fail-over",
    type=Share(),
    metavar="SHARE",
    help="Exit with code 3 if more of the images are flagged: 1% or 0.01. Those decided with apply do not count.",
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
    """Rank the images by how little they belong, and write a report.

    The most out-of-distribution images are printed. The folder reports/NAME of the store gets report.html (the page to
    open), report.csv and report.json (the printed images) and report.parquet (all images).

    Images are flagged where labelled images are registered, see `ood-audit labels add`.
    """
    from ood_audit.findings.settings import FindingSettings
    from ood_audit.images.noise import quiet_libraries
    from ood_audit.reports.run import report
    from ood_audit.scoring.settings import ScoreSettings, described, taken

    if template and template_set:
        raise UsageError("choose --template or --template-set, not both")
    if template_set:
        from ood_audit.classes import vocabulary

        template = vocabulary.template_set(template_set)
    options |= {"method": score, "background": {"auto": None, "on": True, "off": False}[background]}
    settings, find = taken(ScoreSettings, options), taken(FindingSettings, options)
    with quiet_libraries(), bars() as on_progress:
        result = report(
            settings=settings,
            find=find,
            templates=template or None,
            note=note,
            on_progress=on_progress,
            **options,
        )
    columns = _FOR_PEOPLE if format == "table" else COLUMNS
    print_rows(columns, [[row[column] for column in columns] for row in result.rows], format)
    scores = result.scores
    if scores.doubt:
        note(scores.doubt)
    by = described(scores.method, scores.parameters) + (" (as scored before)" if scores.reused else "")
    classes = len(scores.vocabulary.classes)
    note(f"{scores.images} image{'s' * (scores.images != 1)} against {classes} class{'es' * (classes != 1)} by {by}")
    if scores.references and scores.parameters["prototypes"]:
        note(f"pictures of the classes: {scores.references['images']} images, {scores.references['source']}")
    if scores.forecast is not None:
        note(f"expected AUROC on this data about {scores.forecast:.2f} (classes left out in turn)")
    for sentence in result.decisions.notes:
        note(sentence)
    found = result.decisions
    odd = next((section.count for section in result.sections if section.kind == "quality"), 0)
    if found.labels["found"] or found.duplicates["extra"] or odd:
        issues = [f"label issues: {found.labels['found']}"] if found.labels["labelled"] else []
        quality = [f"of odd quality: {odd}"] if odd else []
        note("; ".join([*issues, f"duplicates: {found.duplicates['extra']}", *quality]))
    note_missing(sources(scores.store))
    note(f"report: {result.html}")
    if fail_over is None:
        return 0
    if found.flags is None or found.unflagged:
        raise OodAuditError(f"--fail-over cannot be checked, as {found.unflagged}")
    if (share := result.open_flags / scores.images) > fail_over:
        note(f"{share:.2%} of the images are flagged and not decided about, more than --fail-over {fail_over:.2%}")
        return 3
    return 0
