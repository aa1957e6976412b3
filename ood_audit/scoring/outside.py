"""How like other things images are: the background names, of which there are tens of thousands.

All cosines to them would be 180 MB for a thousand images, and go through the memory once for each step. On a CPU they
are summed up while they are in the caches, some names at a time.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

_NAMES = 4096  # at a time, on a CPU
_CELLS = 4 << 20  # cosines at a time: with fewer names for more images, which are the same in 16 MB


def sums(images: Tensor, names: Tensor, temperature: float, correction: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The log Σ exp(s/τ) of the cosines of images to names, and the largest cosine: (N,) each.

    Args:
        images: (N, D).
        names: (M, D), on the same device.
        temperature: τ > 0.
        correction: (M,) what is added to the cosines to each name before they are summed up, see `scoring.joining`.

    """
    found, largest, start = [], [], 0
    for cosines in _cosines(images, names):
        top = cosines.amax(dim=1)
        largest.append(top)
        if correction is not None:
            cosines += correction[start : start + cosines.shape[1]]
            start += cosines.shape[1]
            top = cosines.amax(dim=1)
        found.append(cosines.sub_(top[:, None]).mul_(1 / temperature).exp_().sum(dim=1).log_() + top / temperature)
    return torch.stack(found).logsumexp(dim=0), torch.stack(largest).amax(dim=0)


def nearest(images: Tensor, names: Tensor) -> Tensor:
    """(N,) the largest cosine of each image to a name."""
    return torch.stack([cosines.amax(dim=1) for cosines in _cosines(images, names)]).amax(dim=0)


def _cosines(images: Tensor, names: Tensor) -> Iterator[Tensor]:
    few = min(_NAMES, max(256, _CELLS // max(1, len(images))))
    size = few if images.device.type == "cpu" else max(1, len(names))
    return (images @ some.T for some in torch.split(names, size))
