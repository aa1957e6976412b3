"""The report's formats. To add one: a function of rows and a path here, and its call in `reports.report`."""

import json
from pathlib import Path
from typing import Any

from ood_audit import text


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """CSV, UTF-8, with a header."""
    with path.open("w", encoding="utf-8", newline="") as file:
        text.write_csv(file, list(rows[0]) if rows else ["rank"], [list(row.values()) for row in rows])


def write_json(path: Path, values: Any) -> None:
    """Indented UTF-8 JSON."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
