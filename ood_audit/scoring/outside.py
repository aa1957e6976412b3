"""How like other things images are: the background names, of which there are tens of thousands.

All cosines to them would be 180 MB for a thousand images, and go through the memory once for each step. On a CPU they
are summed up while they are in the caches, some names at a time.
"""

from collections.abc import Iterator

import numpy as np

from ood_audit.arrays import Array, Spanned, log_add_exp, log_sum_exp, namespace

_NAMES = 4096  # at a time, on a CPU
_CELLS = 1 << 20  # cosines at a time, 4 MB: fewer names for more images


def sums(images: Array, names: Spanned, temperature: float, correction: Array | None = None) -> tuple[Array, Array]:
    """The log Σ exp(s/τ) of the cosines of images to names, and the largest cosine: (N,) each.

    Args:
        images: (N, D), a NumPy array, or a torch tensor on a GPU.
        names: M of them, their text features of the same kind.
        temperature: τ > 0.
        correction: (M,) what is added to the cosines to each name before they are summed up, see `scoring.joining`.

    """
    xp = namespace(images)
    found, largest, start = [], [], 0
    for cosines in _cosines(images, names):
        largest.append(xp.max(cosines, axis=1))
        if correction is not None:
            cosines += correction[start : start + cosines.shape[1]]
            start += cosines.shape[1]
        found.append(log_sum_exp(cosines, temperature))
    return log_add_exp(*found), xp.max(xp.stack(largest), axis=0)


def nearest(images: Array, names: Spanned) -> Array:
    """(N,) the largest cosine of each image to a name."""
    xp = namespace(images)
    return xp.max(xp.stack([xp.max(cosines, axis=1) for cosines in _cosines(images, names)]), axis=0)


def _cosines(images: Array, names: Spanned) -> Iterator[Array]:
    few = min(_NAMES, max(256, _CELLS // max(1, len(images))))
    own, features = names.beside(images), names.coordinates
    size = few if isinstance(images, np.ndarray) else max(1, len(features))
    return (own @ features[start : start + size].T for start in range(0, len(features), size))
