"""MaxLogit: the largest cosine. Hendrycks et al., ICML 2022, arXiv 1911.11132; as in deeplearning-wisc/MCM.

    max_j s_j                         higher is more in-distribution

`ood_score` is −max s.
"""

from torch import Tensor


def maxlogit(cosines: Tensor) -> Tensor:
    """(N, K) cosines → (N,) raw values."""
    return cosines.amax(dim=1)
