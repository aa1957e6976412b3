"""Losses of prompt tuning: cross-entropy (CoOp) and energy-bound maximisation (EBM), as functions of tensors.

z: (N, D) unit image features; t: (K, D) unit class features; y: (N,) int64 labels; s = z tᵀ: (N, K) cosines.

EBM is the tuning loss of Zhu et al., NeurIPS 2025, arXiv 2510.11296. Its code was not to be had; the two readings here
are of its figure and captions.
"""

import torch
from torch import Tensor
from torch.nn import functional


def energy(cosines: Tensor, temperature: float) -> Tensor:
    """E = −log Σ_j exp(s_j/τ), (N,). It falls as any cosine rises."""
    return -torch.logsumexp(cosines / temperature, dim=1)


def mask(images: Tensor, classes: Tensor, labels: Tensor, *, proportion: float, keep: bool) -> Tensor:
    """m, (N, D) of 0 and 1, by the products h = z ⊙ t_y; no gradient passes through the choice.

    Args:
        images: z.
        classes: t.
        labels: y.
        proportion: p, the share of elements with the largest h, rounded to whole elements.
        keep: False puts 0 on that share and 1 elsewhere; True the other way around.

    """
    products = (images * classes[labels]).detach()
    count = round(proportion * products.shape[1])
    largest = torch.zeros_like(products).scatter(1, products.topk(count, dim=1).indices, 1.0)
    return largest if keep else 1.0 - largest


def edited_cosines(images: Tensor, classes: Tensor, labels: Tensor, kept: Tensor) -> Tensor:
    """s with s'_y = (m ⊙ z)·t_y in place of s_y, (N, K)."""
    own = (kept * images * classes[labels]).sum(1, keepdim=True)
    return (images @ classes.T).scatter(1, labels[:, None], own)


def bound(cosines: Tensor, edited: Tensor, temperature: float) -> Tensor:
    """mean exp(E_0 − E_2), E_0 of the cosines and E_2 of the edited ones; minimising it raises E_2 − E_0.

    With the largest products masked s'_y ≥ v for v low enough, so that E_2 − E_0 ≤ E_1 − E_0, ΔEnergy's own change:
    what is raised is a lower bound of it. `temperature` is the energies' own: at a CLIP's 0.01 E_2 − E_0 is about 26,
    and exp(−26) has no gradient to speak of.
    """
    return torch.exp(energy(cosines, temperature) - energy(edited, temperature)).mean()


def coop(images: Tensor, classes: Tensor, labels: Tensor, *, scale: float) -> Tensor:
    """L = CE(scale · s, y): CoOp."""
    return functional.cross_entropy(scale * images @ classes.T, labels)


def ebm_literal(
    images: Tensor,
    classes: Tensor,
    labels: Tensor,
    *,
    scale: float,
    weight: float,
    temperature: float,
    proportion: float,
    keep: bool,
) -> Tensor:
    """L = CE(scale · s', y) + λ · mean exp(E_0 − E_2): both terms on the cosines with s'_y in place of s_y.

    λ = 0 and p = 0 is CoOp.
    """
    kept = mask(images, classes, labels, proportion=proportion, keep=keep)
    edited = edited_cosines(images, classes, labels, kept)
    loss = functional.cross_entropy(scale * edited, labels)
    return loss + weight * bound(images @ classes.T, edited, temperature) if weight else loss


def ebm_renormalised(
    images: Tensor,
    classes: Tensor,
    labels: Tensor,
    *,
    scale: float,
    weight: float,
    temperature: float,
    proportion: float,
    keep: bool,
) -> Tensor:
    """L = CE(scale · s, y) + λ · mean exp(E_0 − E_m), E_m = −log Σ_j exp(z'·t_j/τ), z' = (m ⊙ z) / |m ⊙ z|.

    The masked image is a unit feature like any other and keeps all its similarities; the cross-entropy is CoOp's own.
    λ = 0 is CoOp.
    """
    cosines = images @ classes.T
    loss = functional.cross_entropy(scale * cosines, labels)
    if not weight:
        return loss
    masked = functional.normalize(mask(images, classes, labels, proportion=proportion, keep=keep) * images, dim=1)
    return loss + weight * bound(cosines, masked @ classes.T, temperature)
