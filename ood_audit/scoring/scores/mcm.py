"""MCM: maximum concept matching. Ming et al., NeurIPS 2022, arXiv 2211.13445.

    MCM = max_j softmax(s/τ)_j        higher is more in-distribution

Follows deeplearning-wisc/MCM, utils/detection_util.py: raw cosines and τ = 1. With τ = 0.01 it is the maximum softmax
probability of CLIP's own classifier. `ood_score` is −MCM.
"""

from ood_audit.arrays import Array, log_sum_exp, namespace


def mcm(cosines: Array, *, temperature: float = 1.0) -> Array:
    """(N, K) cosines → (N,) raw values, as exp(max_j s_j/τ − log Σ exp(s/τ)), of a NumPy array or a torch tensor.

    >>> import numpy as np
    >>> mcm(np.array([[0.1, 0.3], [0.2, 0.2]]), temperature=0.1).round(4).tolist()
    [0.8808, 0.5]

    """
    xp = namespace(cosines)
    return xp.exp(xp.max(cosines, axis=1) / temperature - log_sum_exp(cosines, temperature))
