"""k-NN: the similarity to the k-th nearest reference picture. Sun et al., ICML 2022, arXiv 2204.06507.

    −‖z − z_(k)‖                      higher is more in-distribution

z and the references z_i have length 1, z_(k) is the k-th nearest of them, whatever its class. `ood_score` is the
distance. The references are labelled or presumed in-distribution; those among the images under audit are not their own
neighbours, nor those of others of their fold.
"""

from ood_audit.arrays import Array, largest, namespace

_BLOCK = 1024


def knn(
    cosines: Array, *, images: Array, folds: Array, references: Array, reference_folds: Array, neighbours: int = 10
) -> Array:
    """(N, D) images and (M, D) references → (N,) raw values; with fewer neighbours the farthest counts, with none −2.

    All are NumPy arrays, or torch tensors on one device.

    Args:
        cosines: (N, K), not used: k-NN knows no classes.
        images: (N, D) of length 1.
        folds: (N,) int.
        references: (M, D) of length 1.
        reference_folds: (M,) int; −1 for references that are not under audit.
        neighbours: k.

    Example:
        >>> import numpy as np
        >>> images, references = np.array([[1.0, 0.0], [0.6, 0.8]]), np.array([[1.0, 0.0]])
        >>> folds, elsewhere = np.array([0, 1]), np.array([-1])
        >>> knn(images, images=images, folds=folds, references=references, reference_folds=elsewhere).round(3).tolist()
        [-0.0, -0.894]

    """
    xp = namespace(images)
    found = []
    for start in range(0, len(images), _BLOCK):
        some = slice(start, start + _BLOCK)
        cosines = images[some] @ references.T
        own = folds[some][:, None] == reference_folds[None, :]
        cosines[own] = -1.0
        nearest, _ = largest(cosines, min(neighbours, len(references)))
        others = xp.sum(~own, axis=1)
        last = xp.where(others < nearest.shape[1], others, nearest.shape[1]) - 1
        last = xp.where(last > 0, last, 0)[:, None]
        squared = 2 - 2 * xp.take_along_axis(nearest, last, axis=1)[:, 0]
        found.append(-xp.sqrt(xp.where(squared > 0, squared, 0)))
    return xp.concat(found)
