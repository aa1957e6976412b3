"""The report's formats. To add one: a function of rows and a path here, and its call in `reports.report`."""

import json
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ood_audit import text
from ood_audit.reports.html import Page, render
from ood_audit.scoring import described


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """CSV, UTF-8, with a header."""
    with path.open("w", encoding="utf-8", newline="") as file:
        text.write_csv(file, list(rows[0]) if rows else ["rank"], [list(row.values()) for row in rows])


def write_json(path: Path, values: Any) -> None:
    """Indented UTF-8 JSON."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


def html_page(
    name: str,
    meta: dict[str, Any],
    rows: list[dict[str, Any]],
    thumbnails: list[bytes | None],
    histogram: list[tuple[float, float, int]],
    unreadable: list[tuple[str, str]],
) -> str:
    """The page that opens from disk; `thumbnails` of the first rows at least (`cards.LIMIT`), which are shown."""
    facts = [
        ("Classes", f"{len(meta['classes']):,}"),
        ("Score", described(meta["method"], meta["parameters"])),
        ("Model", meta["model"]),
    ]
    return render(
        Page(
            title=f"ood-audit: {name}",
            created=meta["created"],
            facts=facts,
            rows=[{**row, "thumbnail": thumbnail} for row, thumbnail in zip_longest(rows, thumbnails)],
            histogram=histogram,
            cut=rows[-1]["ood_score"] if rows else None,
            scored=meta["scored"],
            unreadable=unreadable,
            unreadable_count=meta["unreadable"],
        )
    )
