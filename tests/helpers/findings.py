"""A report's findings, written for a test."""

from collections.abc import Mapping
from pathlib import Path

import ood_audit
from ood_audit.findings import records
from ood_audit.store import findings
from ood_audit.store.findings import Finding


def write_findings(store: Path, found: Mapping[str, str | list[str]], report: str = "latest") -> list[Finding]:
    """Findings of the kinds given by path (as in the view `images`), the first the worst, as `reports/REPORT/`."""
    opened = ood_audit.open_store(store)
    images = {
        path: (image_id, uri) for image_id, uri, path in opened.query("SELECT image_id, uri, path FROM images").rows
    }
    rows = [
        Finding(*images[path], path, kind, round(0.9 - 0.001 * i, 3), f"It's {kind}.", "a remedy", report)
        for i, (path, kinds) in enumerate(found.items())
        for kind in ([kinds] if isinstance(kinds, str) else kinds)
    ]
    (opened.reports / report).mkdir(parents=True, exist_ok=True)
    records.write(opened.reports / report / findings.FILE, rows, generation=opened.generation)
    return rows
