"""LogitGap: how far the largest similarity stands out. NeurIPS 2025; GIT-LJc/LogitGap.

    s_(1) − mean(s_(2) … s_(N))       N = 20% of the classes; higher is more in-distribution

`ood_score` is minus that. With one class there is nothing to stand out from: the value is s_(1).
"""

from torch import Tensor


def logitgap(cosines: Tensor, *, share: float = 0.2) -> Tensor:
    """(N, K) cosines → (N,) raw values; at least the runner-up is looked at."""
    classes = cosines.shape[1]
    if classes == 1:
        return cosines[:, 0]
    top = cosines.topk(min(classes, max(2, round(share * classes))), dim=1).values
    return top[:, 0] - top[:, 1:].mean(dim=1)
