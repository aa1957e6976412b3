"""SimLabel: a class counts for more where the classes that are like it match too. After ShuZou-1/SimLabel.

    A_i = s_i + α · mean of s_d over the classes d most similar to i by text, i itself not among them
    SimLabel = max_i softmax(A/τ)_i   higher is more in-distribution

This is a text variant of the published score: τ = 1 and α = 1 are the authors', the rest is not. Their released code
finds the similar classes among in-distribution test *images*, weights each by how often it occurs with i, and counts i
itself. Here there are only the names: the 10 classes with the highest text–text cosine, each with the same weight.
`ood_score` is −SimLabel.
"""

import numpy as np

from ood_audit.arrays import Array, beside, largest, namespace
from ood_audit.scoring.scores.mcm import mcm


def simlabel(
    cosines: Array, *, classes: Array, temperature: float = 1.0, alpha: float = 1.0, similar: int = 10
) -> Array:
    """(N, K) cosines and the (K, D) text features of the classes → (N,) raw values, of NumPy arrays or torch tensors.

    >>> import numpy as np
    >>> simlabel(np.array([[0.1, 0.3]]), classes=np.eye(2)).tolist()
    [0.5]

    """
    xp = namespace(cosines)
    likeness = classes @ classes.T
    likeness[beside(np.eye(len(classes), dtype=bool), likeness)] = -2.0
    count = min(similar, len(classes) - 1)
    if count == 0:
        return mcm(cosines, temperature=temperature)
    _, nearest = largest(likeness, count)
    affinity = xp.asarray(cosines, copy=True)
    for turn in range(count):  # not cosines[:, nearest], which is `similar` times as large
        affinity += alpha / count * xp.take(cosines, nearest[:, turn], axis=1)
    return mcm(affinity, temperature=temperature)
