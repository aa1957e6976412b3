"""`ood-audit compare`."""

from typing import Any

import click

from ood_audit.commands.options import SEED, device_option, format_option, labels_option, store_option
from ood_audit.commands.output import note, print_rows
from ood_audit.progress import bars

COLUMNS = ("kind", "name", "reference", "other", "effect", "low", "high", "p_value", "evidence", "examples")
SHOWN = ("kind", "name", "p_value", "evidence")


@click.command("compare", epilog="Example: ood-audit compare train test --top 20 --fail-below 0.01")
@click.argument("reference")
@click.argument("other")
@store_option
@labels_option
@click.option(
    "--top",
    type=click.IntRange(1, 1_000),
    metavar="N",
    default=20,
    show_default=True,
    help="Number of images least like the reference to list.",
)
@click.option(
    "--fail-below",
    type=click.FloatRange(0, 1),
    metavar="P",
    help="Exit with code 3 if the p-value of the test for drift is below P.",
)
@click.option("--seed", type=SEED, metavar="N", default=0, show_default=True, help="Random seed for the permutations.")
@device_option
@format_option
def command(format: str, fail_below: float | None, **options: Any) -> int:
    """Compare OTHER with REFERENCE: drift, classes, and what there is more of.

    REFERENCE and OTHER each are a split, a source of the store, a folder in one, or another store of the same encoder.
    A test says whether the two sets differ at all. Where they do, names and measures say how. The table shows the
    classes whose share has changed; the other formats have all classes. The page is comparison.html in the store.
    """
    from ood_audit.findings.comparison import FDR
    from ood_audit.images.noise import quiet_libraries
    from ood_audit.reports.comparison import compare

    with quiet_libraries(), bars() as on_progress:
        found = compare(note=note, on_progress=on_progress, **options)
    if format == "table":
        rows = [row for row in found.rows if row.kind != "class" or row.p_value <= FDR]
        print_rows(SHOWN, [[getattr(row, name) for name in SHOWN] for row in rows], format)
    else:
        several = [{**vars(row), "examples": " ".join(row.examples)} for row in found.rows]  # URIs have no spaces
        print_rows(COLUMNS, [[row[name] for name in COLUMNS] for row in several], format)
    note(
        f"{found.images[1]:,} images against {found.images[0]:,}; {found.unlike:,} are as far from the reference as "
        f"5% of it are, where {found.expected:.0f} would be by chance"
    )
    for sentence in found.notes:
        note(sentence)
    note(f"page: {found.html}")
    if fail_below is not None and found.p_value < fail_below:
        note(f"the two sets differ: p = {found.p_value:.3g}, below --fail-below {fail_below:g}")
        return 3
    return 0
