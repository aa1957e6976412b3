"""Which kind of shift an image shows: none, covariate (a known class in another style) or semantic (an unknown class).

Three conformal p-values against labelled images (see `calibration`), of three statistics of a score run:

    p_value     of `ood_score`, against the labelled images: small for unknown classes, and for other styles
    p_distance  of `distance`, 1 − cosine to the prototype of the nearest class: small for other styles
    p_unknown   of `lead`, the cosine to the nearest name of a class less that to the nearest of thousands of names of
                other things, against the labelled images were their class unknown (its name is then one of the others):
                small for known classes, in other styles as well. For what a style does to the cosine to one name it
                does to those to all, and their difference hardly changes.

    flagged     as `calibration.flag` decides by p_value;  far: the same rule on p_distance;  known: p_unknown ≤ 0.1

    covariate        far, and known or not flagged
    semantic         flagged, and not covariate
    in-distribution  neither flagged nor far

Covariate images are far and semantic ones are flagged, so of the images in distribution no more are called the one, or
the other, than the rule allows. Of the unknown classes about a tenth pass for known ones, if they are like the known
classes; an unknown class that resembles a known one does so more often. Nothing bounds how many covariate images are
called semantic: where the encoder does not recognise a class in a style, it is unknown to it. Where `lead` is not known
(`--background off`), what is flagged is semantic, and what is far but not flagged is covariate.

Without labelled images there is nothing to hold an image against, and no shift is told.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ood_audit.findings.calibration import Flags, Floats, flag, p_values

NAMES = ("in-distribution", "covariate", "semantic")
# Chosen on photos and drawings of four classes, against photos of three other classes; see benchmarks/shift.py.
_KNOWN = 0.1


@dataclass(frozen=True)
class Shifts:
    """What each image shows.

    Attributes:
        shift: (N,) places in `NAMES`.
        p_distance: (N,).
        expected: how many images in distribution to expect among the covariate ones, at most; see `Flags`.
        by_name: whether `lead` was known.

    """

    shift: NDArray[np.int8]
    p_distance: Floats
    expected: float
    by_name: bool


def tell(
    flags: Flags,
    distances: Floats,
    unknown: Floats | None,
    distance: Floats,
    lead: Floats,
    *,
    fdr: float | None = None,
    false_alarms: float | None = None,
) -> Shifts | None:
    """Tell the kinds of shift apart; None where no distance is known.

    Args:
        flags: what is flagged by the score.
        distances: (n,) of labelled images in distribution, and
        unknown: (n,) their leads were their class unknown; None where not known.
        distance: (N,) 1 − cosine to the prototype of the nearest class; NaN where not known.
        lead: (N,) see above; NaN where not known.
        fdr: the false discovery rate that `flags` keep to; None where they keep to `false_alarms`.
        false_alarms: the rate of false alarms that `flags` keep to.

    """
    if not len(distance) or np.isnan(distance).any():
        return None
    far = flag(distances, distance, fdr=fdr, false_alarms=false_alarms)
    by_name = unknown is not None and not np.isnan(lead).any()
    known = p_values(unknown, lead) <= _KNOWN if unknown is not None and by_name else ~flags.flagged
    covariate = far.flagged & (known | ~flags.flagged)
    shift = np.where(covariate, 1, np.where(flags.flagged, 2, 0)).astype(np.int8)
    return Shifts(shift, far.p_values, far.expected, by_name)
