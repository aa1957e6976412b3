"""k-NN: the similarity to the k-th nearest reference picture. Sun et al., ICML 2022, arXiv 2204.06507.

    −‖z − z_(k)‖                      higher is more in-distribution

z and the references z_i have length 1, z_(k) is the k-th nearest of them, whatever its class. `ood_score` is the
distance. The references are labelled or presumed in-distribution; those among the images under audit are not their own
neighbours, nor those of others of their fold.
"""

import torch
from torch import Tensor

_BLOCK = 1024


def knn(
    cosines: Tensor, *, images: Tensor, folds: Tensor, references: Tensor, reference_folds: Tensor, neighbours: int = 10
) -> Tensor:
    """(N, D) images and (M, D) references → (N,) raw values; with fewer neighbours the farthest counts, with none −2.

    Args:
        cosines: (N, K), not used: k-NN knows no classes.
        images: (N, D) of length 1.
        folds: (N,) int.
        references: (M, D) of length 1.
        reference_folds: (M,) int; −1 for references that are not under audit.
        neighbours: k.

    """
    found = []
    for rows, fold in zip(torch.split(images, _BLOCK), torch.split(folds, _BLOCK), strict=True):
        own = fold[:, None] == reference_folds[None, :]
        nearest = (rows @ references.T).masked_fill(own, -1.0).topk(min(neighbours, len(references)), dim=1).values
        last = ((~own).sum(dim=1).clamp(1, nearest.shape[1]) - 1)[:, None]
        found.append(-torch.sqrt((2 - 2 * nearest.gather(1, last)[:, 0]).clamp(min=0)))
    return torch.cat(found)
