"""From scores to decisions: what is flagged, which labels look wrong, and the findings of a report."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from duckdb import DuckDBPyConnection

from ood_audit.audit import calibration, copies, label_issues
from ood_audit.audit.issues import Issue

FILE = "decisions.parquet"


@dataclass(frozen=True)
class Decisions:
    """What a report concludes, in figures; the table `_decided` of the connection has them by image.

    Attributes:
        flags: rule, level, flagged, expected (false alarms, in images), calibration (images), reachable; None without
            calibration images.
        labels: labelled and found.
        duplicates: clusters, images, extra.
        notes: what a person should know, a sentence each.

    """

    flags: dict[str, Any] | None
    labels: dict[str, int]
    duplicates: dict[str, int]
    notes: list[str]


def decide(
    db: DuckDBPyConnection,
    recipe: dict[str, Any],
    duplicates: dict[str, int],
    *,
    fdr: float | None,
    false_alarms: float | None,
) -> Decisions:
    """Decide about every scored image; from then on the view `report` of the connection shows it.

    The column `cluster` is left to `naming.group`.

    Args:
        db: a connection of `store.views.connect`.
        recipe: of the scores, with their `calibration`.
        duplicates: the counts of `copies.current`.
        fdr: see `calibration.flag`.
        false_alarms: likewise.

    """
    import pyarrow as pa

    labels = label_issues.find(db)
    notes = labels.notes()
    found = None
    flagged = pa.table({"image_id": pa.array([], pa.string()), "flagged": pa.array([], pa.bool_()), "p_value": []})
    if recipe.get("calibration"):
        scored = db.sql("SELECT image_id, ood_score FROM scores").to_arrow_table()
        own = np.asarray(recipe["calibration"]["ood_score"], np.float64)
        flags = calibration.flag(
            own.astype(np.float32).astype(np.float64),
            scored["ood_score"].to_numpy().astype(np.float64),
            fdr=fdr,
            false_alarms=false_alarms,
        )
        flagged = pa.table({"image_id": scored["image_id"], "flagged": flags.flagged, "p_value": flags.p_values})
        found = {
            **{"rule": flags.rule, "level": flags.level, "flagged": int(flags.flagged.sum())},
            **{"expected": flags.expected, "calibration": flags.calibration, "reachable": flags.reachable},
        }
        notes += _about(found)
    elif fdr is not None or false_alarms is not None:
        notes.append(
            "nothing is flagged: that needs labelled in-distribution images; register some with "
            "`ood-audit tune --from FOLDER --epochs 0`"
        )
    db.register("_flags", flagged)
    db.execute(
        "CREATE OR REPLACE TABLE _decided AS SELECT s.image_id, f.flagged, f.p_value::DOUBLE AS p_value, "
        "l.label_issue, CASE WHEN l.found THEN l.suggested_label END AS suggested_label, NULL::VARCHAR AS cluster "
        "FROM scores AS s LEFT JOIN _flags AS f USING (image_id) LEFT JOIN label_issues AS l USING (image_id)"
    )
    db.execute("CREATE OR REPLACE VIEW _decisions AS FROM _decided")
    return Decisions(found, {"labelled": labels.labelled, "found": labels.found}, duplicates, notes)


def save(db: DuckDBPyConnection, folder: Path) -> None:
    """Keep what `decide` found beside the report."""
    db.execute("COPY _decided TO $path (FORMAT parquet, COMPRESSION zstd)", {"path": str(folder / FILE)})


def findings(db: DuckDBPyConnection, duplicates: Path, report: str) -> Iterator[Issue]:
    """All findings of a report; after `decide` on the same connection."""
    return chain(
        _flagged(db, report),
        label_issues.findings(db, report),
        copies.findings(db, duplicates, report),
        copies.unreadable(db, report),
    )


def read_recipe(path: Path) -> dict[str, Any]:
    """The recipe beside a file of scores."""
    recipe: dict[str, Any] = json.loads(path.with_suffix(".json").read_bytes())
    return recipe


def _flagged(db: DuckDBPyConnection, report: str) -> Iterator[Issue]:
    rows = db.execute(
        "SELECT image_id, uri, path, p_value, label, cluster FROM report WHERE flagged "
        "ORDER BY ood_score DESC, path, image_id"
    ).fetchall()
    for image_id, uri, path, p_value, label, cluster in rows:
        evidence = f"p = {p_value:.3g}: so unlike the classes are few of the labelled images; nearest class {label}"
        evidence += f"; looks like: {cluster}" if cluster else ""
        yield Issue(image_id, uri, path, "ood", 1 - p_value, evidence, "look at it; take it out or add a class", report)


def _about(flags: dict[str, Any]) -> list[str]:
    n, level = flags["calibration"], flags["level"]
    what = "false discovery rate" if flags["rule"] == "fdr" else "false alarm rate"
    if not flags["reachable"]:
        needed = f"{int(np.ceil(1 / level)) - 1} are needed" if flags["rule"] != "fdr" else "use --false-alarms"
        return [
            f"nothing can be flagged at a {what} of {level:g}: {n} calibration images can't tell it, {needed}; "
            "label more, or register all labelled ones with `ood-audit tune --epochs 0`"
        ]
    text = f"flagged: {flags['flagged']} images at a {what} of {level:g} by {n} calibration images"
    return [f"{text}; about {flags['expected']:.1f} of them false alarms at most"]
