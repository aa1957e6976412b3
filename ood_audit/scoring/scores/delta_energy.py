"""ΔEnergy: how much the energy of an image's similarities changes when its largest ones are reset.

Zhu et al., NeurIPS 2025, arXiv 2510.11296. With cosines s_1 … s_K, temperature τ and E = −log Σ exp(s/τ):

    E_0 = −log Σ_j exp(s_j/τ)
    E_k = −log [ Σ_{j≠(k)} exp(s_j/τ) + exp(v/τ) ]     only the k-th largest is reset, to v
    ΔE  = Σ_{k=1..c} (E_k − E_0)                       higher is more in-distribution

With a background, names B of other things, the energies run over classes and background, and class similarities alone
are reset: what resembles another thing more has little energy to lose. For one class reset, v low and τ = 0.01 that is
−log(1 − p_(1)) of the softmax over both.

The paper gives v = 0 ("the maximum cosine similarity is cropped to zero") and the sum over one reset at a time; τ and
c are ours to choose. `ood_score` is −ΔE.
"""

import math

import torch
from torch import Tensor


def delta_energy(
    cosines: Tensor, *, temperature: float, top_c: int, reset_to: float, background: Tensor | None = None
) -> Tensor:
    """ΔE of each row.

    Args:
        cosines: (N, K) float.
        temperature: τ > 0.
        top_c: how many of the largest are reset, each alone; all K where there are fewer.
        reset_to: v.
        background: (N, B) float, cosines to the names of other things.

    Returns:
        (N,), in the dtype of `cosines`.

    """
    outside = None if background is None else (background / temperature).logsumexp(dim=1)
    return energy_changes(cosines, temperature, top_c, reset_to, outside).sum(dim=1)


def energy_changes(
    cosines: Tensor, temperature: float, top_c: int, reset_to: float, outside: Tensor | None = None
) -> Tensor:
    """E_k − E_0 for k = 1 … c: the terms of ΔE.

    Two forms of the same number are used, each where float32 resolves it. Where p_(k) = softmax(s/τ)_(k) is small,
    E_k − E_0 = −log(1 − p_(k) (1 − exp((v − s_(k))/τ))), which does not cancel; where it is near 1, a difference of
    log-sum-exps that never subtracts from a sum.

    Args:
        cosines: (N, K) float.
        temperature: τ > 0.
        top_c: c.
        reset_to: v.
        outside: (N,) float, the log-sum-exp of what else the energies run over.

    Returns:
        (N, min(c, K)), in the dtype of `cosines`.

    """
    top, where = cosines.topk(min(top_c, cosines.shape[1]), dim=1)
    # Everything but the top c; for K <= c and no background that is nothing, and its log is -inf.
    rest = (cosines.scatter(1, where, -math.inf) / temperature).logsumexp(dim=1)
    if outside is not None:
        rest = torch.logaddexp(rest, outside)
    return changes_of(top, rest, temperature, reset_to)[0]


def changes_of(
    top: Tensor, rest: Tensor, temperature: float | Tensor, reset_to: float | Tensor
) -> tuple[Tensor, Tensor]:
    """E_k − E_0 for the k-th largest, and E_0.

    Args:
        top: (N, c) float, the largest cosines.
        rest: (N,) float, the log-sum-exp at this temperature of all else that the energies run over.
        temperature: τ > 0, one for all rows or (N,).
        reset_to: v, one for all rows or (N,).

    Returns:
        (N, c) and (N,), in the dtype of `top`.

    """
    low = torch.as_tensor(reset_to / temperature, dtype=top.dtype, device=top.device).expand_as(rest)
    top = (top.T / temperature).T
    energy = -torch.cat([rest[:, None], top], dim=1).logsumexp(dim=1)
    changes = []
    for k in range(top.shape[1]):
        kept = [top[:, j] for j in range(top.shape[1]) if j != k]
        reset = torch.stack([rest, low, *kept], dim=1).logsumexp(dim=1)
        gap = top[:, k] - low
        # p_(k) (1 − exp(−gap)); for gap < 0 as −exp(v/τ + E_0) (1 − exp(gap)), so that no exponential overflows.
        share = torch.where(
            gap >= 0,
            -torch.exp(top[:, k] + energy) * torch.expm1(-gap.clamp(min=0)),
            torch.exp((low + energy).clamp(max=0)) * torch.expm1(gap.clamp(max=0)),
        )
        exact = (share <= 0.5) & (low + energy <= 0)
        changes.append(torch.where(exact, -torch.log1p(-share.clamp(max=0.5)), -reset - energy))
    return torch.stack(changes, dim=1), energy
