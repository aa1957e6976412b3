"""MaxLogit: the largest cosine. Hendrycks et al., ICML 2022, arXiv 1911.11132; as in deeplearning-wisc/MCM.

    max_j s_j                         higher is more in-distribution

`ood_score` is −max s.
"""

from ood_audit.arrays import Array, namespace


def maxlogit(cosines: Array) -> Array:
    """(N, K) cosines → (N,) raw values, of a NumPy array or a torch tensor.

    >>> import numpy as np
    >>> maxlogit(np.array([[0.1, 0.3], [0.2, 0.1]])).tolist()
    [0.3, 0.2]

    """
    return namespace(cosines).max(cosines, axis=1)
