"""How many of the images are out of distribution: an estimate, with or without labelled images, and no more than that.

What unknown classes look like is known without having any: an image of a known class is one of an unknown class, once
that class is left out and its name is one of the others. G is the distribution of their `lead` (see `shift`), H that of
the images under audit, of which a share π is of unknown classes. At low leads there are few images of known classes, so
that

    H(t) ≥ π G(t)   for all t,   and   π ≈ min over t of H(t) / G(t),   t the quantiles `_AT` of G

which is the largest share of G that fits into H (mixture proportion estimation: Blanchard, Lee & Scott, JMLR 2010). The
interval is that of both being samples: G by a bootstrap, H by what its counts leave open (Dirichlet; for the upper end
with half an image more a count, so that none seen is not none at all). It knows nothing of how unlike the unknown
classes really are to known ones that are left out, which is why this is an estimate only: too high where the images are
in a style in which the encoder recognises no class, and where few of them are of known classes; too low where the
unknown ones resemble the known ones.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_AT = (0.1, 0.15, 0.2, 0.3, 0.5)
_ROUNDS = 200
_FEWEST = 20
_TAIL = 0.05  # of the interval, at either end
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
    rng, lead = np.random.default_rng(seed), np.sort(lead)
    drawn = []
    for _ in range(_ROUNDS):
        counts = np.diff(_below(lead, rng.choice(unknown, len(unknown))), prepend=0, append=len(lead))
        drawn.append([_fits(rng.dirichlet(counts + more).cumsum()[:-1]) for more in (1e-9, 0.5)])
    share = _fits(_below(lead, unknown) / len(lead))
    low, high = (float(np.quantile(ends, at)) for ends, at in zip(np.transpose(drawn), (_TAIL, 1 - _TAIL), strict=True))
    return Share(share, min(share, low), max(share, high))


def _below(lead: Numbers, unknown: Numbers) -> NDArray[np.int64]:
    """How many of `lead`, in order, are no higher than each of the quantiles of `unknown`."""
    return np.searchsorted(lead, np.quantile(unknown, _AT), side="right")


def _fits(within: Numbers) -> float:
    """The largest share of G that fits into H, which has `within` at the quantiles of G."""
    return float(min(1.0, (within / np.array(_AT)).min()))
