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
    "text",
    "shortcut",
    "unreadable",
)
FILE = "issues.parquet"


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding about one image; these fields are the columns of the table.

    Attributes:
        image_id: The image.
        uri: Where the image lies.
        path: Its path within its source.
        kind: What is wrong, one of `KINDS`.
        severity: How bad it is, from 0 to 1.
        evidence: Why, in a sentence.
        suggestion: What to do; for a wrong label, the class that the image looks like.
        report: The name of the report.

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
