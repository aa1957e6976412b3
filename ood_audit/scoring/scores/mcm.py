"""MCM: maximum concept matching. Ming et al., NeurIPS 2022, arXiv 2211.13445.

    MCM = max_j softmax(s/τ)_j        higher is more in-distribution

Follows deeplearning-wisc/MCM, utils/detection_util.py: raw cosines and τ = 1. With τ = 0.01 it is the maximum softmax
probability of CLIP's own classifier. `ood_score` is −MCM.
"""

import torch
from torch import Tensor


def mcm(cosines: Tensor, *, temperature: float = 1.0) -> Tensor:
    """(N, K) cosines → (N,) raw values, as exp(max_j s_j/τ − log Σ exp(s/τ))."""
    logits = cosines / temperature
    return torch.exp(logits.amax(dim=1) - logits.logsumexp(dim=1))
