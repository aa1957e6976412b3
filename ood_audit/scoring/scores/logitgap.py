"""LogitGap: how far the largest similarity stands out. NeurIPS 2025; GIT-LJc/LogitGap.

    s_(1) − mean(s_(2) … s_(n + 1))   higher is more in-distribution

n, the number of runners-up, is 20% of the classes, but at least 5, as far as there are so many: the released scripts
take 5 of 10 classes, 10 of 20, 20 of 100 and 88 of 1,000, and give no rule. `ood_score` is minus the value. With one
class there is nothing to stand out from: the value is s_(1).
"""

from ood_audit.arrays import Array, largest, namespace

_FEWEST = 5  # the least number of runners-up, where there are so many


def logitgap(cosines: Array, *, share: float = 0.2) -> Array:
    """(N, K) cosines → (N,) raw values, of a NumPy array or a torch tensor.

    `share` is that of the classes among which the runners-up are averaged.

    >>> import numpy as np
    >>> logitgap(np.array([[0.1, 0.3, 0.2]])).round(6).tolist()
    [0.15]

    """
    classes = cosines.shape[1]
    if classes == 1:
        return cosines[:, 0]
    runners_up = min(classes - 1, max(_FEWEST, round(share * classes)))
    top, _ = largest(cosines, runners_up + 1)
    return top[:, 0] - namespace(top).mean(top[:, 1:], axis=1)
