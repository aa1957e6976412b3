"""What a score run keeps about itself beside its table: the settings in use, and how labelled images score."""

from typing import TypedDict

import numpy as np

from ood_audit.arrays import without
from ood_audit.classes.prototypes import sample
from ood_audit.scoring import scores
from ood_audit.scoring.joining import Joined
from ood_audit.scoring.plan import Plan
from ood_audit.scoring.scores import Options, Score
from ood_audit.scoring.similarity import chunk_of
from ood_audit.scoring.table import leads

_MOST_KNOWN = 1000


class Recipe(TypedDict):
    """What is known of a table of scores.

    Attributes:
        parameters: The settings in use; for `best` also the `score` that was chosen.
        neighbours: How many neighbours novelty is measured by; None where it does not count.
        doubt: A sentence where the encoder seems not to know the classes, else "".
        forecast: The AUROC to expect; None where no settings were chosen on images of known classes.
        references: Where the pictures of the classes are from and how many they are; None where none were used.
        calibration: How the calibration images score; None without labelled images.
        lead_of_unknown: The lead of known images were their class unknown; None where it can't be told.

    """

    parameters: Options
    neighbours: int | None
    doubt: str
    forecast: float | None
    references: "UsedReferences | None"
    calibration: "CalibrationScores | None"
    lead_of_unknown: list[float] | None


class UsedReferences(TypedDict):
    """Where the pictures of the classes are from, and how many they are."""

    source: str
    images: int


class CalibrationScores(TypedDict):
    """How the calibration images score: lists with an entry for each of them, and classes by their numbers."""

    ood_score: list[float]
    distance: list[float]
    label: list[int]
    predicted: list[int]


def recipe_of(plan: Plan, method: str, joined: Joined | None) -> Recipe:
    """What there is to tell about a plan, as JSON."""
    function, settings = plan.runs[method]
    used = plan.target.references
    parameters = {"score": name_of(function), **settings} if method == "best" else dict(settings)
    by_neighbours = joined if plan.joint is not None else None
    if by_neighbours is not None:
        parameters["novelty"] = round(by_neighbours.weight, 3)
    if plan.pictures is not None:
        parameters["pictures"] = plan.pictures.weight
    return {
        "parameters": parameters,
        "neighbours": None if by_neighbours is None else by_neighbours.neighbours,
        "doubt": plan.doubt,
        "forecast": plan.forecasts.get(method),
        "references": {"source": used.source, "images": len(used.labels)} if used else None,
        "calibration": _calibration(plan, method, joined),
        "lead_of_unknown": _lead_of_unknown(plan),
    }


def name_of(function: Score) -> str:
    """The name of a score."""
    return next((name for name in scores.names() if scores.load(name) is function), function.__name__)


def _calibration(plan: Plan, method: str, joined: Joined | None) -> CalibrationScores | None:
    """How the calibration images score: ood_score, and distance beside the class they are of."""
    if plan.calibration is None:
        return None
    own = plan.calibration
    chunk = chunk_of(own.names, own.features, own.target(plan.target))
    function, settings = plan.runs[method]
    nearest = chunk.largest(settings["prototypes"], 1)[1][:, 0]
    distance = 1 - np.take_along_axis(chunk.to_prototypes, nearest[:, None], axis=1)[:, 0]
    score = -chunk.raw(function, settings) if joined is None or joined.calibration is None else joined.calibration
    return {
        "ood_score": score.tolist(),
        "distance": distance.tolist(),
        "label": own.labels.tolist(),
        "predicted": nearest.tolist(),
    }


def _lead_of_unknown(plan: Plan) -> list[float] | None:
    """The lead of known images were their class unknown: left out of the classes, and its name one of the others.

    These are the calibration images, or up to 1,000 of the references where there are none.
    """
    known = plan.calibration or plan.target.references
    if not leads(plan.target) or known is None or not len(known.labels):
        return None
    rows = sample(len(known.labels), most=_MOST_KNOWN)
    chunk, labels = chunk_of([""] * len(rows), known.features[rows], plan.target), known.labels[rows]
    own = labels[:, None]
    named = np.take_along_axis(chunk.to_text, own, axis=1)
    with without(chunk.to_text, own, named):
        others = chunk.to_text.max(axis=1)
    lead: list[float] = (others - np.maximum(chunk.nearest_thing, named[:, 0])).tolist()
    return lead
