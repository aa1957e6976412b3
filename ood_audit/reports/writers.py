"""The report's formats. To add one: a function of rows and a path here, and its call in `reports.run`."""

import json
from pathlib import Path

from ood_audit import text
from ood_audit.values import Row


def write_csv(path: Path, rows: list[Row]) -> None:
    """CSV, UTF-8, with a header."""
    with path.open("w", encoding="utf-8", newline="") as file:
        text.write_csv(file, list(rows[0]) if rows else ["rank"], [list(row.values()) for row in rows])


def write_json(path: Path, values: object) -> None:
    """Indented UTF-8 JSON."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
