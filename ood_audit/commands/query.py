"""`ood-audit query`."""

import re

import click

from ood_audit.commands.options import format_option, store_option
from ood_audit.commands.output import note, print_rows


@click.command(
    "query",
    epilog='Example: ood-audit query "SELECT label, count(*) FROM report WHERE rank <= 100 GROUP BY 1" --format csv',
)
@click.argument("sql")
@store_option
@format_option
def command(sql: str, store: str, format: str) -> None:
    """Run one read-only SELECT over the views images, scores, labels, report and findings."""
    from ood_audit.store import open_store
    from ood_audit.store.views import streaming

    opened = open_store(store)
    with streaming(opened, sql, values="json" if "json" in format else "text") as (columns, rows):
        if re.search(r"\b(scores|report)\b", sql, re.IGNORECASE) and "scores" not in opened.current():
            note("nothing is scored yet: run `ood-audit report --labels FILE`")
        print_rows(columns, rows, format)
