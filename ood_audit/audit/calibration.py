"""Flags with a stated error, from labelled in-distribution images that nothing was tuned on.

Conformal p-values (Bates et al., Annals of Statistics 2023, arXiv 2104.08279): with n calibration scores,

    p_i = (1 + #{calibration images at least as OOD as i}) / (n + 1)

An in-distribution image like those of the calibration has p ≤ α with probability α at most. `false_alarms` flags p ≤ α:
of the in-distribution images about α are flagged. `fdr` flags by Benjamini and Hochberg's rule: of the flagged images
about q are false alarms. Both hold for images like those labelled; harder ones, in another style, raise more alarms.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import false_discovery_control

Floats = NDArray[np.float64]
DEFAULT_FALSE_ALARMS = 0.01


@dataclass(frozen=True)
class Flags:
    """Who is flagged.

    Attributes:
        p_values: (N,).
        flagged: (N,) bool.
        rule: `fdr` or `false-alarms`, and
        level: the q or α of it.
        expected: how many false alarms to expect, in images, at most: q times the flagged ones, or α times all.
        calibration: n.
        reachable: whether n calibration images can tell so low a level.

    """

    p_values: Floats
    flagged: NDArray[np.bool_]
    rule: Literal["fdr", "false-alarms"]
    level: float
    expected: float
    calibration: int
    reachable: bool


def p_values(calibration: Floats, ood_score: Floats) -> Floats:
    """(n,) calibration scores and (N,) scores, higher for more OOD → (N,) in [1 / (n + 1), 1]; ties count as OOD."""
    ordered = np.sort(calibration)
    at_least = len(ordered) - np.searchsorted(ordered, ood_score, side="left")
    values: Floats = (1 + at_least) / (len(ordered) + 1)
    return values


def flag(
    calibration: Floats, ood_score: Floats, *, fdr: float | None = None, false_alarms: float | None = None
) -> Flags:
    """Flag by one of the two rules; by false alarms of 1% if neither is given.

    Args:
        calibration: (n,) scores of in-distribution images, higher for more OOD.
        ood_score: (N,).
        fdr: q, or
        false_alarms: α.

    """
    p = p_values(calibration, ood_score)
    smallest = 1 / (len(calibration) + 1)
    if fdr is None:
        level = DEFAULT_FALSE_ALARMS if false_alarms is None else false_alarms
        return Flags(p, p <= level, "false-alarms", level, level * len(p), len(calibration), smallest <= level)
    flagged = false_discovery_control(p) <= fdr if len(p) else np.zeros(0, bool)
    # Where all that is flagged has the smallest p-value there is, it takes so many of them.
    most = int((p == smallest).sum())
    reachable = bool(flagged.any()) or most >= np.ceil(smallest * len(p) / fdr)
    return Flags(p, flagged, "fdr", fdr, fdr * int(flagged.sum()), len(calibration), reachable)
