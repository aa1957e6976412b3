"""Flags with a stated error, from labelled in-distribution images that nothing was tuned on.

Conformal p-values (Bates et al., Annals of Statistics 2023, arXiv 2104.08279): with n calibration scores,

    p_i = (1 + #{calibration images at least as OOD as i}) / (n + 1)

An in-distribution image like those of the calibration has p ≤ α with probability α at most. `false_alarms` flags p ≤ α:
of the in-distribution images about α are flagged. `fdr` flags by Benjamini and Hochberg's rule: of the flagged images
about q are false alarms. Both hold for images like those labelled; harder ones, in another style, raise more alarms.

Both rules are decided in whole numbers and fractions. With p_i = a_i / (n + 1), Benjamini and Hochberg's bound
p_(k) ≤ q k / N is a_(k) N ≤ q k (n + 1), where equality is common and rounding would lose it. A level counts as it is
written: 0.1 is a tenth, not the double beside it.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray

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
    values: Floats = _numerators(calibration, ood_score) / (len(calibration) + 1)
    return values


def _numerators(calibration: Floats, ood_score: Floats) -> NDArray[np.int64]:
    """(N,): 1 + how many of the calibration scores are at least as high, which is (n + 1) times the p-value."""
    ordered = np.sort(calibration)
    numerators: NDArray[np.int64] = 1 + len(ordered) - np.searchsorted(ordered, ood_score, side="left")
    return numerators


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
    numerators, denominator = _numerators(calibration, ood_score), len(calibration) + 1
    p = numerators / denominator
    if fdr is None:
        level = DEFAULT_FALSE_ALARMS if false_alarms is None else false_alarms
        allowed = as_written(level) * denominator
        flagged = numerators <= int(allowed)
        return Flags(p, flagged, "false-alarms", level, level * len(p), len(calibration), allowed >= 1)
    # A p-value passes where at least so many images have it, or a smaller one.
    values, counts = np.unique(numerators, return_counts=True)
    needed = Fraction(len(p)) / (as_written(fdr) * denominator)
    passing = [a for a, k in zip(values.tolist(), counts.cumsum().tolist(), strict=True) if a * needed <= k]
    flagged = numerators <= max(passing, default=0)
    # Where all that is flagged has the smallest p-value there is, it takes so many of them.
    reachable = bool(flagged.any()) or int((numerators == 1).sum()) >= needed
    return Flags(p, flagged, "fdr", fdr, fdr * int(flagged.sum()), len(calibration), reachable)


def as_written(level: float) -> Fraction:
    """The number as a person writes it: 0.1 is 1/10, not the binary fraction nearest to it."""
    return Fraction(repr(float(level)))
