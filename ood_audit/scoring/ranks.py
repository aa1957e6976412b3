"""Ranks, and how well a value tells two groups apart. Ties count half, as in the U of Mann and Whitney.

SciPy has both in `scipy.stats`, which takes half a second to import.
"""

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


def ranks(values: NDArray[np.floating]) -> Numbers:
    """In (0, 1)."""
    return ranks_within(values, values)


def ranks_within(values: NDArray[np.floating], reference: NDArray[np.floating]) -> Numbers:
    """(N,) values → (N,) the ranks that they would have among those of `reference`, in (0, 1)."""
    most = max(0.5, len(reference) - 0.5)
    found: Numbers = np.clip(_below(values, reference), 0.5, most) / max(1, len(reference))
    return found


def auroc(inside: NDArray[np.floating], unknown: NDArray[np.floating]) -> float:
    """How well a value tells the unknown, where it is higher, from those inside; 0.5 where there are none of either."""
    if not len(inside) or not len(unknown):
        return 0.5
    return float(_below(np.sort(unknown), inside).sum() / (len(inside) * len(unknown)))


def _below(values: NDArray[np.floating], reference: NDArray[np.floating]) -> Numbers:
    """How many of `reference` are smaller than each value; those that equal it count half."""
    ordered = np.sort(reference)
    found: Numbers = (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / 2
    return found
