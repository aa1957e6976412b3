"""NegLabel: is an image more like the classes than like words far from them?

Jiang et al., ICLR 2024, arXiv 2403.20078. With s_i the cosines to the K classes and n_j those to M negative
words, these in G groups of equal size:

    NegLabel = 1/G Σ_g  Σ_i exp(s_i/τ) / [ Σ_i exp(s_i/τ) + Σ_{j in g} exp(n_j/τ) ]     higher is more in-distribution

Follows tmlr-group/NegLabel, mmcls/models/ood/clip_ood.py: τ = 0.01; what is left over by G equal groups is dropped from
the end (of the adjectives, the least far), the rest permuted at random and cut into groups. The classes have the
prompts of the method (see `classes.pools`), so its s are not the `cosines` of other scores. `ood_score` is −NegLabel.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ood_audit.arrays import Array, beside, log_sum_exp, namespace
from ood_audit.errors import UsageError

_SLICE_BYTES = 32 << 20  # cosines to the negatives at a time; their exponentials take as much again


def neglabel(
    cosines: Array,
    *,
    images: Array,
    neglabel_classes: Array,
    neglabel_negatives: Array,
    temperature: float = 0.01,
    groups: int = 100,
    seed: int = 0,
) -> Array:
    """NegLabel of each image; all arrays are NumPy's, or torch tensors on one device.

    Args:
        cosines: (N, K), not used: those to the classes under the vocabulary's own prompts.
        images: (N, D) image features of length 1.
        neglabel_classes: (K, D) text features of the classes, of length 1.
        neglabel_negatives: (M, D) text features of the negatives, of length 1, in the order of the pool.
        temperature: τ.
        groups: G.
        seed: of the permutation.

    Returns:
        (N,), in [0, 1].

    Raises:
        UsageError: there are fewer negatives than groups.

    """
    return grouped_share(images, neglabel_classes, neglabel_negatives, temperature, groups, seed)


def grouped_share(images: Array, classes: Array, negatives: Array, temperature: float, groups: int, seed: int) -> Array:
    """The formula above, for any negatives. (N, D), (K, D), (M, D) → (N,)."""
    if not 1 <= groups <= len(negatives):
        raise UsageError(f"{groups} groups of {len(negatives)} negatives: choose between 1 and {len(negatives)}")
    size = len(negatives) // groups
    xp = namespace(images)
    negatives = negatives[beside(_permutation(size * groups, seed), negatives)]
    found = []
    rows = max(1, _SLICE_BYTES // (4 * max(len(negatives), len(classes))))
    for start in range(0, len(images), rows):
        some = images[start : start + rows]
        inside = log_sum_exp(some @ classes.T, temperature)
        outside = log_sum_exp(xp.reshape(some @ negatives.T, (-1, size)), temperature)
        less = xp.reshape(outside, (-1, groups)) - inside[:, None]
        found.append(xp.mean(xp.exp(-xp.logaddexp(less, xp.zeros_like(less))), axis=1))
    return xp.concat(found)


@lru_cache(maxsize=2)
def _permutation(count: int, seed: int) -> NDArray[np.int64]:
    """What `torch.randperm` gives with this seed, which the published code calls."""
    order = np.arange(count)
    drawn = np.random.RandomState(seed).randint(0, 1 << 32, max(0, count - 1), np.uint32)
    for i, number in enumerate(drawn.tolist()):
        j = i + number % (count - i)
        order[i], order[j] = order[j], order[i]
    return order
