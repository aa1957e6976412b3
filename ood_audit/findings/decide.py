"""From scores to decisions: what is flagged, by which shift, which labels look wrong; and the findings of a report."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from duckdb import DuckDBPyConnection
from numpy.typing import NDArray

from ood_audit.findings import calibration, copies, folders, label_issues, leaks, quality, shift, shortcuts, written
from ood_audit.findings.settings import FindingSettings
from ood_audit.findings.shortcuts import Shortcut
from ood_audit.findings.written import Misnamed
from ood_audit.store.findings import Finding

if TYPE_CHECKING:
    import pyarrow as pa

    from ood_audit.scoring.recipe import Recipe

FILE = "decisions.parquet"


@dataclass(frozen=True)
class Decisions:
    """What a report concludes, in figures.

    Attributes:
        flags: How many images are flagged, and by which rule; None where nothing can be flagged.
        unflagged: why nothing can be flagged, and the remedy; "" where something can.
        shift: How many images show which shift; None without labelled images.
        labels: labelled and found.
        duplicates: clusters, images, extra.
        notes: what a person should know, a sentence each.

    """

    flags: "FlagFigures | None"
    unflagged: str
    shift: "ShiftFigures | None"
    labels: dict[str, int]
    duplicates: dict[str, int]
    notes: list[str]


class FlagFigures(TypedDict):
    """How many images are flagged, and by which rule; see `calibration.Flags`."""

    rule: str
    level: float
    flagged: int
    expected: float  # false alarms at most, in images
    calibration: int  # images
    reachable: bool
    calibrated: str  # by what, in words


class ShiftFigures(TypedDict):
    """How many images show which shift; see `shift.Shifts`."""

    semantic: int
    covariate: int
    flagged_covariate: int
    in_distribution: int
    expected: float  # false alarms among the covariate ones at most, in images
    by_name: bool


@dataclass(frozen=True)
class Judged:
    """What is flagged, and by which shift.

    Attributes:
        flags: the flags, or the reason why nothing can be flagged, with the remedy.
        calibrated: by what the flags are calibrated, in words.
        shifts: None without labelled images.
        table: the columns image_id, flagged, p_value, shift and p_distance; null where they are not known.

    """

    flags: calibration.Flags | str
    calibrated: str
    shifts: shift.Shifts | None
    table: "pa.Table"


def judge(
    scored: "pa.Table", recipe: "Recipe", *, fdr: float | None = None, false_alarms: float | None = None
) -> Judged:
    """Flag images: by labelled images where there are some, else by the images in class folders.

    Args:
        scored: the columns image_id, ood_score, distance, lead, given_label and folder_rank of the scores.
        recipe: of the scores, with their `calibration`.
        fdr: see `calibration.flag`.
        false_alarms: see `calibration.flag`.

    """
    import pyarrow as pa
    import pyarrow.compute as pc

    ood_score = _numbers(scored, "ood_score")
    flags: calibration.Flags | str
    shifts = None
    if own := recipe["calibration"]:
        labelled = _as_scored(own["ood_score"])
        flags = by_labelled = calibration.flag(labelled, ood_score, fdr=fdr, false_alarms=false_alarms)
        calibrated = f"by {len(labelled)} labelled images"
        unknown = None if recipe["lead_of_unknown"] is None else _as_scored(recipe["lead_of_unknown"])
        distance, lead = (_numbers(scored, name) for name in ("distance", "lead"))
        distances = _as_scored(own["distance"])
        shifts = shift.tell(by_labelled, distances, unknown, distance, lead, fdr=fdr, false_alarms=false_alarms)
    else:
        ranks = pc.fill_null(scored["folder_rank"], -1).to_numpy().astype(np.int64)
        classes = pc.count_distinct(scored["given_label"].filter(pc.is_valid(scored["folder_rank"]))).as_py()
        flags = folders.flag(ood_score, ranks, classes, fdr=fdr, false_alarms=false_alarms)
        calibrated = f"by the folders' own images, {folders.ASSUMPTION}"
    known = None if isinstance(flags, str) else flags
    unknown_of = partial(pa.nulls, len(scored))
    table = pa.table(
        {
            "image_id": scored["image_id"],
            "flagged": known.flagged if known else unknown_of("bool"),
            "p_value": known.p_values if known else unknown_of("double"),
            "shift": np.array(shift.NAMES)[shifts.shift] if shifts else unknown_of("string"),
            "p_distance": shifts.p_distance if shifts else unknown_of("double"),
        }
    )
    return Judged(flags, calibrated, shifts, table)


def decide(
    db: DuckDBPyConnection,
    recipe: "Recipe",
    duplicates: dict[str, int],
    settings: FindingSettings,
) -> tuple["pa.Table", Decisions]:
    """Decide about every scored image.

    Args:
        db: a connection with the view `scores`, see `store.views.connect`.
        recipe: of the scores, with their `calibration`.
        duplicates: the counts of `copies.current`.
        settings: which images to flag.

    Returns:
        A row for each scored image but boxes that are too small to tell, with the columns of `schema.DECISIONS`, of
        which `cluster` is null until `naming.group`; and the figures.

    """
    labels = label_issues.find(db)
    columns = "image_id, ood_score, distance, lead, given_label, folder_rank"
    scored = db.sql(f"SELECT {columns} FROM scores WHERE {label_issues.CAN_BE_TOLD}").to_arrow_table()
    judged = judge(scored, recipe, fdr=settings.fdr, false_alarms=settings.false_alarms)
    table = _joined(judged.table, labels.table)
    counts = {"labelled": labels.labelled, "found": labels.found}
    if isinstance(judged.flags, str):
        notes = [*labels.notes(), f"nothing is flagged: {judged.flags}"]
        return table, Decisions(None, notes[-1], None, counts, duplicates, notes)
    found = _figures(judged.flags, judged.calibrated)
    about = _about(found)
    notes = [*labels.notes(), about]
    shifts = None
    if judged.shifts:
        shifts = _counted(judged.shifts, judged.flags.flagged)
        notes += _about_shift(shifts, found)
    return table, Decisions(found, "" if found["reachable"] else about, shifts, counts, duplicates, notes)


def _joined(flags: "pa.Table", labels: "pa.Table") -> "pa.Table":
    """The decisions about each image."""
    import pyarrow.compute as pc

    from ood_audit.store import schema

    rows = pc.index_in(flags["image_id"], value_set=labels["image_id"])
    suggested = pc.if_else(labels["found"], labels["suggested_label"], None)
    for name, values in (("label_issue", labels["label_issue"]), ("suggested_label", suggested)):
        flags = flags.append_column(name, values.take(rows))
    return schema.completed(flags, schema.arrow(schema.DECISIONS))


def save(table: "pa.Table", folder: Path) -> None:
    """Keep the decisions about each image beside the report."""
    import pyarrow.parquet as pq

    pq.write_table(table, folder / FILE, compression="zstd")


def findings(
    db: DuckDBPyConnection,
    decided: Decisions,
    duplicates: Path,
    leaked: leaks.Leaks,
    found: Sequence[Shortcut],
    misnamed: Sequence[Misnamed],
    report: str,
    *,
    look_alikes: bool = False,
) -> Iterator[Finding]:
    """All findings of a report.

    Args:
        db: a connection whose view `report` has what was decided.
        decided: what was decided.
        duplicates: the file of `copies.current`.
        leaked: what the splits have in common.
        found: what goes with a class or a split.
        misnamed: the images whose text names another class.
        report: the report's name.
        look_alikes: whether look-alikes within one recording are duplicates.

    """
    together = {} if look_alikes else leaked.together
    return chain(
        _flagged(db, "labelled images" if decided.shift else "images that fit their folders", report),
        label_issues.findings(db, report),
        leaks.findings(leaked, report),
        copies.findings(db, duplicates, report, together),
        quality.findings(db, report),
        written.findings(misnamed, _named(db, [one.image_id for one in misnamed]), report),
        shortcuts.findings(found, _named(db, [image_id for one in found for image_id in one.images]), report),
        copies.unreadable(db, report),
    )


def _named(db: DuckDBPyConnection, ids: list[str]) -> dict[str, tuple[str, str]]:
    """The URI and the path of each image."""
    rows = db.execute(
        "SELECT image_id, uri, path FROM images WHERE image_id IN (SELECT unnest($ids::VARCHAR[]))", {"ids": ids}
    ).fetchall()
    return {image_id: (uri, path) for image_id, uri, path in rows}


def read_recipe(path: Path) -> "Recipe":
    """The recipe beside a file of scores."""
    recipe: Recipe = json.loads(path.with_suffix(".json").read_bytes())
    return recipe


def _numbers(scored: "pa.Table", name: str) -> calibration.Floats:
    numbers: calibration.Floats = scored[name].to_numpy().astype(np.float64)
    return numbers


def _as_scored(values: list[float]) -> calibration.Floats:
    """Rounded as the scores in the store are, so that what is equal stays equal."""
    return np.asarray(values, np.float32).astype(np.float64)


def _figures(flags: calibration.Flags, calibrated: str) -> FlagFigures:
    return {
        "rule": flags.rule,
        "level": flags.level,
        "flagged": int(flags.flagged.sum()),
        "expected": flags.expected,
        "calibration": flags.calibration,
        "reachable": flags.reachable,
        "calibrated": calibrated,
    }


def _counted(told: shift.Shifts, flagged: NDArray[np.bool_]) -> ShiftFigures:
    inside, covariate, semantic = np.bincount(told.shift, minlength=len(shift.NAMES)).tolist()
    return {
        "semantic": semantic,
        "covariate": covariate,
        "flagged_covariate": int((flagged & (told.shift == 1)).sum()),
        "in_distribution": inside,
        "expected": told.expected,
        "by_name": told.by_name,
    }


def _flagged(db: DuckDBPyConnection, known: str, report: str) -> Iterator[Finding]:
    """A finding for each flagged image, and one for each covariate image; an image may be both.

    `known` says which images the p-values compare with.
    """
    rows = db.execute(
        "SELECT image_id, uri, path, p_value, label, shift, p_distance, flagged, cluster FROM report "
        "WHERE flagged OR shift = 'covariate' ORDER BY rank"
    ).fetchall()
    for image_id, uri, path, p_value, label, kind, p_distance, flagged, cluster in rows:
        if flagged:
            evidence = f"only {100 * p_value:.2g}% of the {known} match the classes this badly (p = {p_value:.3g})"
            evidence += f"; nearest class: {label}"
            evidence += f"; looks like: {cluster}" if cluster else ""
            evidence += "; it looks like a known class in another style" if kind == "covariate" else ""
            todo = "look at it; take it out or add a class"
            yield Finding(image_id, uri, path, "ood", 1 - p_value, evidence, todo, report)
        if kind == "covariate":
            evidence = f"looks like {label}, but unlike its labelled pictures: p = {p_distance:.3g}"
            evidence += f"; out of distribution by the score as well: p = {p_value:.3g}" if flagged else ""
            todo = "if pictures of this style belong here, label some with `ood-audit labels add`; else take it out"
            # Less severe than an unknown class: its label may well be right.
            yield Finding(image_id, uri, path, "covariate-shift", (1 - p_distance) / 2, evidence, todo, report)


def _about(flags: FlagFigures) -> str:
    n, level = flags["calibration"], flags["level"]
    what = "false discovery rate" if flags["rule"] == "fdr" else "false alarm rate"
    if not flags["reachable"]:
        needed = (
            f"at least {math.ceil(1 / calibration.as_written(level)) - 1} are needed"
            if flags["rule"] != "fdr"
            else "use --false-alarms"
        )
        return (
            f"nothing can be flagged: {n} calibration images are too few for a {what} of {level:g}, {needed}; "
            "register more with `ood-audit labels add FOLDER`"
        )
    text = f"flagged: {flags['flagged']} images at a {what} of {level:g}, {flags['calibrated']}"
    return f"{text}; about {flags['expected']:.1f} of them false alarms at most"


def _about_shift(found: ShiftFigures, flags: FlagFigures) -> list[str]:
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
