"""Pictures that are odd to look at among the others: dark, bright, blurred, grey, of an odd size.

Each measure is compared with the median of the dataset, by robust deviations, so that a dataset of night scenes is not
full of dark pictures. A picture is odd from 4 deviations on. The deviation is that of the half of the pictures beyond
the median, as the two sides of most measures differ, and never so small that the difference could not be seen.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from duckdb import DuckDBPyConnection

from ood_audit.store.findings import Finding

ODD = 4.0  # robust standard deviations from the median
FEWEST = 20  # images to compare with
_WHOLE = "coalesce(NOT contains(uri, '#box='), true)"  # boxes are of any size, and as sharp as their picture
_SIGMA = 0.6745  # the upper quartile of a normal distribution
_GREY = 2 / 255  # the saturation of a grey picture is below this, whatever JPEG does to it
_MOST_GREY = 0.2  # where more of the images are grey, grey pictures belong to the dataset


@dataclass(frozen=True)
class _Measure:
    """How a reason is judged.

    Attributes:
        column: the measure.
        value: in SQL, the measure on a scale that spreads most datasets evenly; larger is worse.
        least: the smallest deviation on that scale.
        said: the evidence, with the measure of the picture and the median.
        both: whether pictures on both sides of the median are odd.

    """

    column: str
    value: str
    least: float
    said: str
    both: bool = False


_MEASURES = {
    "dark": _Measure(
        "highlights",
        "-sqrt(highlights)",
        0.05,
        "its brightest parts are at {:.0%} of white, where {:.0%} is usual",
    ),
    "bright": _Measure("shadows", "shadows", 0.05, "its darkest parts are at {:.0%} of white, where {:.0%} is usual"),
    "low contrast": _Measure(
        "contrast", "-sqrt(contrast)", 0.05, "its grey levels span {:.0%} of the range, where {:.0%} is usual"
    ),
    "blurred": _Measure(
        "sharpness", "-ln(greatest(sharpness, 0.001))", 0.25, "its sharpness is {:.2f}, where {:.2f} is usual"
    ),
    "little information": _Measure(
        "entropy", "-sqrt(entropy)", 0.15, "its grey levels hold {:.1f} bits, where {:.1f} are usual"
    ),
    "odd size": _Measure("area", "ln(area)", 0.35, "it has {:,.0f} pixels, where {:,.0f} are usual", both=True),
    "odd aspect ratio": _Measure(
        "aspect_ratio", "ln(aspect_ratio)", 0.2, "its width is {:.2f} of its height, where {:.2f} is usual", both=True
    ),
}
REASONS = (*_MEASURES, "grey")


def known(db: DuckDBPyConnection) -> tuple[int, int]:
    """How many readable images have measures, and how many there are."""
    sql = f"SELECT count(brightness), count(*) FROM images WHERE status = 'ok' AND {_WHOLE}"
    ((measured, readable),) = db.execute(sql).fetchall()
    return int(measured), int(readable)


def odd(db: DuckDBPyConnection) -> dict[str, list[tuple[float, str, str]]]:
    """By the id of an image, why it is odd: robust deviations, reason and evidence, the oddest first.

    Args:
        db: A connection with the view `images`.

    """
    found = defaultdict(list)
    for reason, measure in _MEASURES.items():
        for image_id, distance, value, median in _beyond(db, measure):
            found[image_id].append((distance, reason, measure.said.format(value, median)))
    for image_id in _grey(db):
        found[image_id].append((ODD, "grey", "it has no colour, and most of the pictures do"))
    return {image_id: sorted(reasons, reverse=True) for image_id, reasons in found.items()}


def findings(db: DuckDBPyConnection, report: str) -> Iterator[Finding]:
    """A finding for each odd image, the oddest first."""
    found = sorted(odd(db).items(), key=lambda item: (-item[1][0][0], item[0]))
    rows = db.execute(
        "SELECT image_id, uri, path FROM images WHERE image_id IN (SELECT unnest($ids::VARCHAR[]))",
        {"ids": [image_id for image_id, _ in found]},
    )
    images = {image_id: (uri, path) for image_id, uri, path in rows.fetchall()}
    for image_id, reasons in found:
        evidence = "; ".join(f"{reason}: {said}" for _, reason, said in reasons)
        severity = 1 - math.exp(-reasons[0][0] / ODD)
        yield Finding(image_id, *images[image_id], "quality", severity, evidence, _SUGGESTION, report)


_SUGGESTION = "look at it; take it out, or replace it by a better picture"


def _beyond(db: DuckDBPyConnection, measure: _Measure) -> list[tuple[str, float, float, float]]:
    """Images, with their robust deviations, their measure and its median, from `ODD` deviations on."""
    off = "abs(value - middle)" if measure.both else "(value - middle)"
    return db.execute(
        f"""
        WITH measured AS (
            SELECT image_id, {measure.value} AS value, {measure.column} AS shown
            FROM images WHERE status = 'ok' AND {_WHOLE} AND brightness IS NOT NULL AND {measure.column} IS NOT NULL
        ), middle AS (SELECT median(value) AS middle, median(shown) AS usual, count(*) AS n FROM measured),
        wide AS (
            SELECT greatest(quantile_cont({off}, {0.5 if measure.both else 0.75}) / {_SIGMA}, {measure.least}) AS wide
            FROM measured, middle
        )
        SELECT image_id, {off} / wide AS distance, shown, usual FROM measured, middle, wide
        WHERE n >= {FEWEST} AND distance >= {ODD}
        """
    ).fetchall()


def _grey(db: DuckDBPyConnection) -> list[str]:
    rows = db.execute(
        f"SELECT image_id FROM images, (SELECT count(*) FILTER (saturation < {_GREY}) AS grey, count(saturation) AS n "
        f"FROM images WHERE status = 'ok' AND {_WHOLE}) "
        f"WHERE {_WHOLE} AND saturation < {_GREY} AND n >= {FEWEST} AND grey <= {_MOST_GREY} * n"
    ).fetchall()
    return [image_id for (image_id,) in rows]
