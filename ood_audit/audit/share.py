"""How many of the images are out of distribution: an estimate, with or without labelled images, and no more than that.

What unknown classes look like is known without having any: an image of a known class is one of an unknown class, once
that class is left out and its name is one of the others. G is the distribution of their `lead` (see `shift`), H that of
the images under audit, of which a share π is of unknown classes. At low leads there are few images of known classes, so
that

    H(t) ≥ π G(t)   for all t,   and   π ≈ min over t of H(t) / G(t),   t the quantiles `_AT` of G

which is the largest share of G that fits into H (mixture proportion estimation: Blanchard, Lee & Scott, JMLR 2010). The
interval is that of a bootstrap of both samples. It knows nothing of how unlike the unknown classes really are to known
ones that are left out, which is why this is an estimate only: too high where the images are in a style in which the
encoder recognises no class, and where few of them are of known classes; too low where the unknown ones resemble the
known ones.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_AT = (0.1, 0.15, 0.2, 0.3, 0.5)
_ROUNDS = 200
_MOST = 20_000  # images to resample: more do not narrow the interval, which the few that G is made of decide
_FEWEST = 20
LEVEL = 0.9  # of the interval
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Share:
    """The estimate, 0 … 1, and its interval."""

    share: float
    low: float
    high: float


def estimate(lead: Numbers, unknown: Numbers, *, seed: int = 0) -> Share | None:
    """The share of images of unknown classes; None where either sample has less than 20.

    Args:
        lead: (N,) of the images under audit.
        unknown: (n,) of images of known classes, were their class unknown.
        seed: of the bootstrap.

    """
    if min(len(lead), len(unknown)) < _FEWEST:
        return None
    rng = np.random.default_rng(seed)
    some = lead if len(lead) <= _MOST else rng.choice(lead, _MOST, replace=False)
    drawn = [_fits(rng.choice(some, len(some)), rng.choice(unknown, len(unknown))) for _ in range(_ROUNDS)]
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    share = _fits(lead, unknown)
    return Share(share, min(share, float(low)), max(share, float(high)))


def _fits(lead: Numbers, unknown: Numbers) -> float:
    """The largest share of `unknown` that fits into `lead`."""
    within = [float((lead <= t).mean()) for t in np.quantile(unknown, _AT)]
    return min(1.0, *(share / at for share, at in zip(within, _AT, strict=True)))
