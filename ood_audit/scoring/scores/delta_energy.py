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

from ood_audit.arrays import Array, largest, log_add_exp, log_sum_exp, namespace, put


def delta_energy(
    cosines: Array, *, temperature: float, top_c: int, reset_to: float, background: Array | None = None
) -> Array:
    """ΔE of each row, of NumPy arrays or torch tensors.

    Args:
        cosines: (N, K) float.
        temperature: τ > 0.
        top_c: how many of the largest are reset, each alone; all K where there are fewer.
        reset_to: v.
        background: (N, B) float, cosines to the names of other things.

    Returns:
        (N,), in the dtype of `cosines`.

    Example:
        >>> import numpy as np
        >>> cosines = np.array([[0.31, 0.20, 0.18], [0.22, 0.21, 0.20]])
        >>> delta_energy(cosines, temperature=0.05, top_c=1, reset_to=0.0).round(3).tolist()
        [1.846, 0.506]

    """
    outside = None if background is None else log_sum_exp(background, temperature)
    return namespace(cosines).sum(energy_changes(cosines, temperature, top_c, reset_to, outside), axis=1)


def energy_changes(
    cosines: Array, temperature: float, top_c: int, reset_to: float, outside: Array | None = None
) -> Array:
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
    xp = namespace(cosines)
    top, where = largest(cosines, min(top_c, cosines.shape[1]))
    # Everything but the top c; for K <= c and no background that is nothing, and its log is -inf.
    left = xp.asarray(cosines, copy=True)
    put(left, where, -math.inf)
    rest = log_sum_exp(left, temperature)
    if outside is not None:
        rest = xp.logaddexp(rest, outside)
    return changes_of(top, rest, temperature, reset_to)[0]


def changes_of(top: Array, rest: Array, temperature: float | Array, reset_to: float | Array) -> tuple[Array, Array]:
    """E_k − E_0 for the k-th largest, and E_0.

    Args:
        top: (N, c) float, the largest cosines.
        rest: (N,) float, the log-sum-exp at this temperature of all else that the energies run over.
        temperature: τ > 0, one for all rows or (N,).
        reset_to: v, one for all rows or (N,).

    Returns:
        (N, c) and (N,), in the dtype of `top`.

    """
    xp = namespace(top)
    low = xp.zeros_like(rest) + reset_to / temperature
    highest = [top[:, k] / temperature for k in range(top.shape[1])]
    energy = -log_add_exp(rest, *highest)
    changes = []
    for k, high in enumerate(highest):
        reset = log_add_exp(rest, low, *highest[:k], *highest[k + 1 :])
        gap, excess = high - low, low + energy
        # p_(k) (1 − exp(−gap)); for gap < 0 as −exp(v/τ + E_0) (1 − exp(gap)), so that no exponential overflows.
        factor = xp.where(gap >= 0, -xp.exp(high + energy), xp.exp(-xp.abs(excess)))
        share = factor * xp.expm1(-xp.abs(gap))
        exact = (share <= 0.5) & (excess <= 0)
        changes.append(xp.where(exact, -xp.log1p(-xp.where(exact, share, 0)), -reset - energy))
    return xp.stack(changes, axis=1), energy
