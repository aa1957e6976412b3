"""SimLabel: a class counts for more where the classes that are like it match too. After ShuZou-1/SimLabel.

    A_i = s_i + α · mean of s_d over the classes d most similar to i by text, i itself not among them
    SimLabel = max_i softmax(A/τ)_i   higher is more in-distribution

This is a text variant of the published score: τ = 1 and α = 1 are the authors', the rest is not. Their released code
finds the similar classes among in-distribution test *images*, weights each by how often it occurs with i, and counts i
itself. Here there are only the names: the 10 classes with the highest text–text cosine, each with the same weight.
`ood_score` is −SimLabel.
"""

from torch import Tensor

from ood_audit.scoring.scores.mcm import mcm


def simlabel(
    cosines: Tensor, *, classes: Tensor, temperature: float = 1.0, alpha: float = 1.0, similar: int = 10
) -> Tensor:
    """(N, K) cosines and the (K, D) text features of the classes → (N,) raw values."""
    likeness = classes @ classes.T
    likeness.fill_diagonal_(-2.0)
    count = min(similar, len(classes) - 1)
    if count == 0:
        return mcm(cosines, temperature=temperature)
    nearest = likeness.topk(count, dim=1).indices
    affinity = cosines.clone()
    for column in nearest.unbind(1):  # not cosines[:, nearest], which is `similar` times as large
        affinity += alpha / count * cosines[:, column]
    return mcm(affinity, temperature=temperature)
