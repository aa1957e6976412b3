"""From scores to decisions: what is flagged, by which shift, which labels look wrong; and the findings of a report."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from duckdb import DuckDBPyConnection

from ood_audit.findings import calibration, copies, label_issues, share, shift
from ood_audit.store.findings import Issue

FILE = "decisions.parquet"


@dataclass(frozen=True)
class Decisions:
    """What a report concludes, in figures; the table `_decided` of the connection has them by image.

    Attributes:
        flags: rule, level, flagged, expected (false alarms, in images), calibration (images), reachable; None without
            calibration images.
        shift: semantic, covariate, flagged_covariate, in_distribution (images), expected (as of flags, among the
            covariate ones), by_name (see `shift.Shifts`); None without calibration images.
        ood_share: an estimate, needs no labels; None where the names of other things were not compared with.
        labels: labelled and found.
        duplicates: clusters, images, extra.
        notes: what a person should know, a sentence each.

    """

    flags: dict[str, Any] | None
    shift: dict[str, Any] | None
    ood_share: share.Share | None
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
    found, shifts = None, None
    none = {"flagged": "bool", "p_value": "double", "shift": "string", "p_distance": "double"}
    decided = pa.table({"image_id": pa.array([], "string"), **{name: pa.array([], of) for name, of in none.items()}})
    unknown = None if recipe["lead_of_unknown"] is None else _as_scored(recipe["lead_of_unknown"])
    if recipe["calibration"]:
        scored = db.sql("SELECT image_id, ood_score, distance, lead FROM scores").to_arrow_table()
        own = recipe["calibration"]
        rule = {"fdr": fdr, "false_alarms": false_alarms}
        flags = calibration.flag(_as_scored(own["ood_score"]), _numbers(scored, "ood_score"), **rule)
        told = shift.tell(
            flags,
            _as_scored(own["distance"]),
            unknown,
            _numbers(scored, "distance"),
            _numbers(scored, "lead"),
            **rule,
        )
        decided = pa.table(
            {
                **{"image_id": scored["image_id"], "flagged": flags.flagged, "p_value": flags.p_values},
                "shift": pa.DictionaryArray.from_arrays(told.shift, list(shift.NAMES))
                if told
                else pa.nulls(len(scored), "string"),
                "p_distance": told.p_distance if told else pa.nulls(len(scored), "double"),
            }
        )
        found = {
            **{"rule": flags.rule, "level": flags.level, "flagged": int(flags.flagged.sum())},
            **{"expected": flags.expected, "calibration": flags.calibration, "reachable": flags.reachable},
        }
        notes += _about(found)
        if told:
            shifts = _counted(told, flags.flagged)
            notes += _about_shift(shifts, found)
    elif fdr is not None or false_alarms is not None:
        notes.append(
            "nothing is flagged: that needs labelled in-distribution images; register some with "
            "`ood-audit labels add FOLDER`"
        )
    estimated = None
    if unknown is not None:
        estimated = share.estimate(_numbers(db.sql("SELECT lead FROM scores").to_arrow_table(), "lead"), unknown)
        notes += _about_share(estimated)
    db.register("_flags", decided)
    db.execute(
        "CREATE OR REPLACE TABLE _decided AS SELECT s.image_id, f.flagged, f.p_value::DOUBLE AS p_value, "
        "f.shift::VARCHAR AS shift, f.p_distance::DOUBLE AS p_distance, l.label_issue, "
        "CASE WHEN l.found THEN l.suggested_label END AS suggested_label, NULL::VARCHAR AS cluster "
        "FROM scores AS s LEFT JOIN _flags AS f USING (image_id) LEFT JOIN label_issues AS l USING (image_id)"
    )
    db.execute("CREATE OR REPLACE VIEW _decisions AS FROM _decided")
    return Decisions(found, shifts, estimated, {"labelled": labels.labelled, "found": labels.found}, duplicates, notes)


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


def _numbers(scored: Any, name: str) -> calibration.Floats:
    numbers: calibration.Floats = scored[name].to_numpy().astype(np.float64)
    return numbers


def _as_scored(values: list[float]) -> calibration.Floats:
    """Rounded as the scores in the store are, so that what is equal stays equal."""
    return np.asarray(values, np.float32).astype(np.float64)


def _counted(told: shift.Shifts, flagged: Any) -> dict[str, Any]:
    inside, covariate, semantic = np.bincount(told.shift, minlength=len(shift.NAMES)).tolist()
    return {
        **{"semantic": semantic, "covariate": covariate, "flagged_covariate": int((flagged & (told.shift == 1)).sum())},
        **{"in_distribution": inside, "expected": told.expected, "by_name": told.by_name},
    }


def _flagged(db: DuckDBPyConnection, report: str) -> Iterator[Issue]:
    """A finding for each flagged image, and one for each covariate image; an image may be both."""
    rows = db.execute(
        "SELECT image_id, uri, path, p_value, label, shift, p_distance, flagged, cluster FROM report "
        "WHERE flagged OR shift = 'covariate' ORDER BY rank"
    ).fetchall()
    for image_id, uri, path, p_value, label, kind, p_distance, flagged, cluster in rows:
        if flagged:
            evidence = f"p = {p_value:.3g}: so unlike the classes are few of the labelled images; nearest class {label}"
            evidence += f"; looks like: {cluster}" if cluster else ""
            evidence += "; by its shift a known class in another style" if kind == "covariate" else ""
            todo = "look at it; take it out or add a class"
            yield Issue(image_id, uri, path, "ood", 1 - p_value, evidence, todo, report)
        if kind == "covariate":
            evidence = f"looks like {label}, but unlike its labelled pictures: p = {p_distance:.3g}"
            evidence += f"; out of distribution by the score as well: p = {p_value:.3g}" if flagged else ""
            todo = "if pictures of this style belong here, label some for `ood-audit tune`; else take it out"
            # Less severe than an unknown class: its label may well be right.
            yield Issue(image_id, uri, path, "covariate-shift", (1 - p_distance) / 2, evidence, todo, report)


def _about(flags: dict[str, Any]) -> list[str]:
    n, level = flags["calibration"], flags["level"]
    what = "false discovery rate" if flags["rule"] == "fdr" else "false alarm rate"
    if not flags["reachable"]:
        needed = (
            f"{math.ceil(1 / calibration.as_written(level)) - 1} are needed"
            if flags["rule"] != "fdr"
            else "use --false-alarms"
        )
        return [
            f"nothing can be flagged at a {what} of {level:g}: {n} calibration images can't tell it, {needed}; "
            "register more with `ood-audit labels add FOLDER`"
        ]
    text = f"flagged: {flags['flagged']} images at a {what} of {level:g} by {n} calibration images"
    return [f"{text}; about {flags['expected']:.1f} of them false alarms at most"]


def _about_share(found: share.Share | None) -> list[str]:
    if found is None:
        return []
    text = f"images of unknown classes: {found.share:.1%} is an estimate, not a bound"
    return [f"{text} (from {found.low:.1%} to {found.high:.1%} by chance alone)"]


def _about_shift(found: dict[str, Any], flags: dict[str, Any]) -> list[str]:
    if not flags["reachable"] or not found["semantic"] + found["covariate"]:
        return []
    notes = [
        f"shift: {found['semantic']} images semantic (flagged: an unknown class), {found['covariate']} covariate (a "
        f"known class in another style than the labelled images; {found['flagged_covariate']} of them flagged), about "
        f"{found['expected']:.1f} of these false alarms at most"
    ]
    if not found["by_name"]:
        notes.append("shift: all that is flagged counts as semantic, as there are no other names to compare with")
    return notes
