"""The table of findings, `reports/NAME/issues.parquet`, which `findings/records.py` writes."""

from dataclasses import dataclass, fields

KINDS = (
    "ood",
    "covariate-shift",
    "label",
    "leak",
    "exact-duplicate",
    "near-duplicate",
    "quality",
    "shortcut",
    "unreadable",
)
FILE = "issues.parquet"


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding about one image; these fields are the columns of the table.

    `kind` is one of KINDS and `severity` from 0 to 1. `evidence` is a sentence, `suggestion` what to do: a label, or
    the path of the duplicate to keep, about which there is no finding.
    """

    image_id: str
    uri: str
    path: str
    kind: str
    severity: float
    evidence: str
    suggestion: str
    report: str


COLUMNS = {field.name: "FLOAT" if field.type is float else "VARCHAR" for field in fields(Finding)}  # DuckDB's types
