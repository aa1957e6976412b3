"""Losses of prompt tuning: cross-entropy (CoOp) and energy-bound maximisation (EBM), as functions of tensors.

z: (N, D) unit image features; t: (K, D) unit class features; y: (N,) int64 labels; s = z tᵀ: (N, K) cosines.

EBM is the tuning loss of Zhu et al., NeurIPS 2025, arXiv 2510.11296. Its code is not public; the two readings here
are of its figure and captions. `benchmarks/tuning_search.py` compares them.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional


def energy(cosines: Tensor, temperature: float) -> Tensor:
    """E = −log Σ_j exp(s_j/τ), (N,). It falls as any cosine rises."""
    return -torch.logsumexp(cosines / temperature, dim=1)


def mask(
    images: Tensor, classes: Tensor, labels: Tensor, *, proportion: float, how: str, generator: torch.Generator
) -> Tensor:
    """m, (N, D) of 0 and 1, by the products h = z ⊙ t_y; no gradient passes through the choice.

    Args:
        images: z.
        classes: t.
        labels: y.
        proportion: p, a share of the elements, rounded to whole elements; with `adaptive` a share of the similarity.
        how: `top` puts 0 on the share p with the largest h, `keep` 0 on all others, `random` 0 on p, drawn anew.
            `adaptive` puts 0 on the smallest set of elements whose h add up to the share p of the similarity z·t_y.
        generator: of the draws, on the CPU.

    """
    products = (images * classes[labels]).detach()
    if how == "adaptive":
        return 1.0 - _carriers(products, proportion)
    if how == "random":
        products = torch.rand(products.shape, generator=generator).to(products.device)
    count = round(proportion * products.shape[1])
    chosen = torch.zeros_like(products).scatter(1, products.topk(count, dim=1).indices, 1.0)
    return chosen if how == "keep" else 1.0 - chosen


def _carriers(products: Tensor, share: float) -> Tensor:
    """(N, D) of 0 and 1: the smallest set of elements that add up to a share of the sum; empty if that is not above 0.

    The largest come first, so that the running sum before an element tells whether it is needed still.
    """
    largest = products.sort(dim=1, descending=True)
    before = largest.values.cumsum(1) - largest.values
    wanted = (share - 1e-5) * products.sum(1, keepdim=True)  # to rounding
    needed = (before < wanted) & (largest.values > 0)
    return torch.zeros_like(products).scatter(1, largest.indices, needed.to(products.dtype))


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


def pull(classes: Tensor, written: Tensor) -> Tensor:
    """mean_k (1 − t_k·t⁰_k), t⁰ the features of hand-written prompts: KgCoOp (Yao et al., CVPR 2023)."""
    return 1.0 - (classes * written).sum(1).mean()


def with_background(logits: Tensor, background: Tensor | None) -> Tensor:
    """(N, K) logits, and as one more column those of all background names together, where there are any: (N, K + 1)."""
    return logits if background is None else torch.cat([logits, background[:, None]], dim=1)


def coop(cosines: Tensor, labels: Tensor, *, scale: float, background: Tensor | None = None) -> Tensor:
    """L = CE(scale · s, y): CoOp.

    Args:
        cosines: s.
        labels: y.
        scale: what cosines are multiplied by.
        background: (N,) log Σ_b exp(scale · z·b) over the background names b. The softmax then runs over them, too.

    """
    return functional.cross_entropy(with_background(scale * cosines, background), labels)


def apart(cosines: Tensor, labels: Tensor, *, scale: float, background: Tensor) -> Tensor:
    """Mean of −log of the background's share where the class of the image is left out: to the others it is unknown.

    Args:
        cosines: s.
        labels: y.
        scale: what cosines are multiplied by.
        background: (N,) log Σ_b exp(scale · z·b) over the background names b.

    """
    others = (scale * cosines).scatter(1, labels[:, None], -torch.inf)
    mean: Tensor = (with_background(others, background).logsumexp(1) - background).mean()
    return mean


def ebm_literal(
    images: Tensor,
    classes: Tensor,
    labels: Tensor,
    kept: Tensor,
    *,
    scale: float,
    weight: float,
    temperature: float,
    background: Tensor | None = None,
) -> Tensor:
    """L = CE(scale · s', y) + λ · mean exp(E_0 − E_2): both terms on the cosines with s'_y in place of s_y.

    λ = 0 and nothing masked is CoOp.
    """
    edited = edited_cosines(images, classes, labels, kept)
    loss = functional.cross_entropy(with_background(scale * edited, background), labels)
    return loss + weight * bound(images @ classes.T, edited, temperature)


def ebm_renormalised(
    images: Tensor,
    classes: Tensor,
    labels: Tensor,
    kept: Tensor,
    *,
    scale: float,
    weight: float,
    temperature: float,
    background: Tensor | None = None,
) -> Tensor:
    """L = CE(scale · s, y) + CE(scale · s^m, y) + λ · mean exp(E_0 − E_m), s^m the cosines of z^m = (m ⊙ z) / |m ⊙ z|.

    The masked image is a unit feature like any other: all its similarities are edited, not that of its own class alone,
    so that they stay comparable; E_m is their energy. λ = 0 and nothing masked is twice CoOp's loss. The background
    names stand beside the classes for the whole image only.
    """
    cosines = images @ classes.T
    masked = functional.normalize(kept * images, dim=1) @ classes.T
    loss = functional.cross_entropy(with_background(scale * cosines, background), labels)
    loss = loss + functional.cross_entropy(scale * masked, labels)
    return loss + weight * bound(cosines, masked, temperature)


def consistency(logits: Tensor, teacher: Tensor, confident: Tensor) -> Tensor:
    """Mean over the confident images of −Σ_k q_k log softmax(logits)_k; 0 where none is confident.

    Args:
        logits: (N, K) of masked images.
        teacher: q, (N, K), what a teacher says of the whole images; no gradient.
        confident: (N,) bool.

    """
    each = -(teacher * logits.log_softmax(1)).sum(1)
    mean: Tensor = (each * confident).sum() / confident.sum().clamp(min=1)
    return mean


def collapse(logits: Tensor) -> Tensor:
    """log K − H(mean softmax): 0 where the classes are predicted equally often, log K where one takes all."""
    marginal = logits.softmax(1).mean(0)
    entropy: Tensor = torch.special.entr(marginal).sum()
    return math.log(logits.shape[1]) - entropy


def distillation(logits: Tensor, teacher: Tensor, scale: float) -> Tensor:
    """Mean squared difference of the (N, K) logits from a teacher's, in cosines: both are divided by the scale."""
    return functional.mse_loss(logits / scale, teacher / scale)
