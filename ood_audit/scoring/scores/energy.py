"""Energy. Liu et al., NeurIPS 2020, arXiv 2010.03759.

    −E = τ log Σ_j exp(s_j/τ)         higher is more in-distribution

Follows deeplearning-wisc/MCM with τ = 1; LinLLLL/CRoFT uses log Σ exp(100 s), which orders images as τ = 0.01 does.
`ood_score` is E.
"""

from torch import Tensor


def energy(cosines: Tensor, *, temperature: float = 1.0) -> Tensor:
    """(N, K) cosines → (N,) raw values."""
    return temperature * (cosines / temperature).logsumexp(dim=1)
