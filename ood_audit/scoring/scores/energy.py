"""Energy. Liu et al., NeurIPS 2020, arXiv 2010.03759.

    −E = τ log Σ_j exp(s_j/τ)         higher is more in-distribution

Follows deeplearning-wisc/MCM with τ = 1; LinLLLL/CRoFT uses log Σ exp(100 s), which orders images as τ = 0.01 does.
`ood_score` is E.
"""

from ood_audit.arrays import Array, log_sum_exp


def energy(cosines: Array, *, temperature: float = 1.0) -> Array:
    """(N, K) cosines → (N,) raw values, of a NumPy array or a torch tensor.

    >>> import numpy as np
    >>> energy(np.array([[0.1, 0.3], [0.2, 0.1]]), temperature=0.01).round(6).tolist()
    [0.3, 0.2]

    """
    return temperature * log_sum_exp(cosines, temperature)
