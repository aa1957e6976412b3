"""NegLabel: is an image more like the classes than like words far from them?

Jiang et al., ICLR 2024, arXiv 2403.20078. With s_i the cosines to the K classes and n_j those to M negative
words, these in G groups of equal size:

    NegLabel = 1/G Σ_g  Σ_i exp(s_i/τ) / [ Σ_i exp(s_i/τ) + Σ_{j in g} exp(n_j/τ) ]     higher is more in-distribution

Follows tmlr-group/NegLabel, mmcls/models/ood/clip_ood.py: τ = 0.01; what is left over by G equal groups is dropped from
the end (of the adjectives, the least far), the rest permuted at random and cut into groups. The classes have the
prompts of the method (see `classes.pools`), so its s are not the `cosines` of other scores. `ood_score` is −NegLabel.
"""

import torch
from torch import Tensor

from ood_audit.errors import UsageError

_SLICE_BYTES = 32 << 20  # cosines to the negatives at a time; their exponentials take as much again


def neglabel(
    cosines: Tensor,
    *,
    images: Tensor,
    neglabel_classes: Tensor,
    neglabel_negatives: Tensor,
    temperature: float = 0.01,
    groups: int = 100,
    seed: int = 0,
) -> Tensor:
    """NegLabel of each image.

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


def grouped_share(
    images: Tensor, classes: Tensor, negatives: Tensor, temperature: float, groups: int, seed: int
) -> Tensor:
    """The formula above, for any negatives. (N, D), (K, D), (M, D) → (N,)."""
    if not 1 <= groups <= len(negatives):
        raise UsageError(f"{groups} groups of {len(negatives)} negatives: choose between 1 and {len(negatives)}")
    size = len(negatives) // groups
    order = torch.randperm(size * groups, generator=torch.Generator().manual_seed(seed))
    negatives = negatives[order.to(negatives.device)]
    values = images.new_empty(len(images))
    rows = max(1, _SLICE_BYTES // (images.element_size() * max(len(negatives), len(classes))))
    for start in range(0, len(images), rows):
        some = images[start : start + rows]
        inside = (some @ classes.T).div_(temperature).logsumexp(dim=1)
        outside = (some @ negatives.T).div_(temperature).view(len(some), groups, size).logsumexp(dim=2)
        values[start : start + rows] = torch.sigmoid(inside[:, None] - outside).mean(dim=1)
    return values
