"""Whether, and where, one set of images differs from another: the statistics of `compare`.

The two-sample test joins two statistics. One is the distance between the means of the sets. The other is of the
generalised edge-count test (Chen and Friedman, JASA 112, 2017, arXiv 1307.6294): each image is linked to its nearest
neighbours among all images, and the links within each set are counted. It sees a difference that only some of the
images have, which hardly moves the mean. Features are whitened by the covariance of all images, without regard to the
sets, so that what images show counts less, and brought to length 1.

The permutations exchange images between the sets. A statistic's p-value is the share of the permutations in which it is
as large, and Fisher's product of the two is compared with the same of each permutation (nonparametric combination;
Pesarin 2001). So the p-value is exact for images that are independent of each other. Frames of one recording are not:
see `sides.independent`.

How far the sets differ is said by the AUROC of a classifier, Fisher's linear discriminant, fitted on four of five folds
and tested on the fifth.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ood_audit.findings.calibration import p_values

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Floats = NDArray[np.float32]
PERMUTATIONS = 999
FEWEST = 10  # images on each side
_SHRINKAGE = 0.3  # of the covariance towards a sphere
_LINKS = 2.0  # of each image, times the root of the number of images
_MOST_LINKS = 100
_FOLDS = 5
_BLOCK = 64  # permutations at a time
_NEIGHBOURS = 5
_Z = 1.959964  # the normal quantile of a 95% interval


@dataclass(frozen=True)
class TwoSample:
    """The outcome of the two-sample test.

    Attributes:
        auroc: How well a classifier tells the two sets apart: 0.5 not at all, 1 without an error.
        p_value: The share of random divisions that differ as much, at least 1 / 1000.

    """

    auroc: float
    p_value: float


def two_sample(reference: Floats, other: Floats, seed: int = 0) -> TwoSample:
    """Test whether two sets of features, (N, D) and (M, D), come from one distribution."""
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(reference) + len(other))  # so that chance, not the set, decides between equal images
    features = _whitened(np.concatenate([reference, other]))[order]
    labels = np.repeat([0, 1], [len(reference), len(other)])[order]
    links = _links(features)
    distances, within = [], []
    for start in range(0, PERMUTATIONS + 1, _BLOCK):
        permuted = np.repeat(labels[:, None], min(_BLOCK, PERMUTATIONS + 1 - start), axis=1)
        first = 1 if start == 0 else 0  # the division as it is
        permuted[:, first:] = draw.permuted(permuted[:, first:], axis=0)
        distances.append(_distance(features, permuted.astype(np.float32)))
        within.append(_within(links, permuted.astype(np.float32)))
    edges = _edge_count(np.concatenate(within, axis=1), len(reference), len(other))
    product = _shares_as_large(np.concatenate(distances)) * _shares_as_large(edges)
    p_value = float(_shares_as_large(-np.log(product))[0])
    return TwoSample(_auroc(features, labels, _folds(labels, draw)), p_value)


def unlike(reference: Floats, other: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """How unlike the images of the reference each of the others is.

    The score is the cosine to the fifth nearest image of the reference. Each image of the reference is scored by the
    rest of it. These scores lie a little lower than those against all of it, so the p-value, the share of the
    reference that is at least as far from the rest, is never too small.

    Returns:
        (M,) p-values, (M,) cosines to the nearest image of the reference, and (M,) its row.

    """
    import faiss

    k = min(_NEIGHBOURS, len(reference) - 1)
    index = faiss.IndexFlatIP(reference.shape[1])
    index.add(np.ascontiguousarray(reference))
    own, _ = index.search(np.ascontiguousarray(reference), k + 1)  # the first is the image itself, or its duplicate
    cosines, rows = index.search(np.ascontiguousarray(other), k)
    p = p_values(-own[:, k].astype(np.float64), -cosines[:, k - 1].astype(np.float64))
    return p, cosines[:, 0].astype(np.float64), rows[:, 0]


def change_of_share(count: int, of: int, count_other: int, of_other: int) -> tuple[float, float, float, float]:
    """The change from the share `count / of` to `count_other / of_other`.

    Returns:
        The change, the ends of its 95% interval (Newcombe, Statistics in Medicine 17, 1998, method 10: from the score
        intervals of both shares), and the p-value of Fisher's exact test.

    """
    from scipy.stats import fisher_exact

    first, low, high = _wilson(count, of)
    second, low_other, high_other = _wilson(count_other, of_other)
    change = second - first
    below = float(np.hypot(second - low_other, high - first))
    above = float(np.hypot(high_other - second, first - low))
    p = fisher_exact([[count, of - count], [count_other, of_other - count_other]]).pvalue
    return change, change - below, change + above, float(p)


def adjusted(p: Sequence[float] | NDArray[np.floating]) -> NDArray[np.float64]:
    """p-values adjusted by Benjamini and Hochberg's rule: those up to q have a false discovery rate of q.

    SciPy has it too, in a module that takes longer to import than a report takes to find all shortcuts.
    """
    values = np.asarray(p, np.float64)
    falling = np.argsort(values)[::-1]
    found = np.empty(len(values))
    found[falling] = np.minimum.accumulate(values[falling] * len(values) / np.arange(len(values), 0, -1))
    return np.minimum(found, 1.0)


def _wilson(count: int, of: int) -> tuple[float, float, float]:
    """A share and the ends of Wilson's 95% score interval."""
    share = count / of
    centre = share + _Z**2 / (2 * of)
    spread = _Z * float(np.sqrt(share * (1 - share) / of + _Z**2 / (4 * of**2)))
    scale = 1 + _Z**2 / of
    return share, (centre - spread) / scale, (centre + spread) / scale


def _whitened(features: Floats) -> Floats:
    centred = features - features.mean(axis=0)
    covariance = (centred.T @ centred / len(centred)).astype(np.float64)
    size = max(float(np.trace(covariance)) / len(covariance), 1e-12)
    covariance = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * size * np.eye(len(covariance))
    white: Floats = (centred @ np.linalg.inv(np.linalg.cholesky(covariance)).T).astype(np.float32)
    white /= np.maximum(np.linalg.norm(white, axis=1, keepdims=True), 1e-12)
    return white


def _distance(features: Floats, labels: Floats) -> NDArray[np.float64]:
    """(P,): the squared distance between the means of the two sets, for (N, P) labels of 0 and 1."""
    ones = labels.sum(axis=0)
    of_one, every = features.T @ labels, features.sum(axis=0)[:, None]
    difference = of_one / ones - (every - of_one) / (len(labels) - ones)
    found: NDArray[np.float64] = (difference**2).sum(axis=0, dtype=np.float64)
    return found


def _shares_as_large(statistic: NDArray[np.float64]) -> NDArray[np.float64]:
    """(P,): the share of all that are as large as each, up to rounding."""
    from scipy.stats import rankdata

    rounded = np.round(statistic / max(float(np.abs(statistic).max()), 1e-300), 6)
    shares: NDArray[np.float64] = rankdata(-rounded, method="max") / len(statistic)
    return shares


def _links(features: Floats) -> "csr_array":
    """(N, N): 1 where the column's image is one of the nearest of the row's."""
    import faiss
    from scipy.sparse import csr_array

    count = len(features)
    k = min(round(_LINKS * count**0.5), _MOST_LINKS, count - 1)
    index = faiss.IndexFlatIP(features.shape[1])
    index.add(features)
    rows = index.search(features, k + 1)[1]
    is_itself = rows == np.arange(count)[:, None]
    is_itself[~is_itself.any(axis=1), -1] = True  # among more images like it than these
    near = rows[~is_itself]
    return csr_array((np.ones(len(near), np.float32), near, np.arange(0, len(near) + 1, k)), shape=(count, count))


def _within(links: "csr_array", labels: Floats) -> NDArray[np.float64]:
    """(2, P): the links within the images of label 0, and within those of label 1, for (N, P) labels."""
    to_one = links @ labels
    ones = (to_one * labels).sum(axis=0, dtype=np.float64)
    from_zero = links.sum() - np.asarray(links.sum(axis=1)) @ labels.astype(np.float64)
    return np.stack([from_zero - to_one.sum(axis=0, dtype=np.float64) + ones, ones])


def _edge_count(within: NDArray[np.float64], n: int, m: int) -> NDArray[np.float64]:
    """(P,): the statistic of each division, by how many links there are within its two sets of n and m images.

    The weighted sum of the two counts and their difference are uncorrelated (Chu and Chen, Annals of Statistics 47,
    2019). Of the sum only an excess counts.
    """
    total = ((m - 1) * within[0] + (n - 1) * within[1]) / (n + m - 2)
    z = [(x - x.mean()) / max(float(x.std()), 1e-12) for x in (total, within[1] - within[0])]
    found: NDArray[np.float64] = np.maximum(z[0], 0) ** 2 + z[1] ** 2
    return found


def _folds(labels: NDArray[np.int64], draw: np.random.Generator) -> NDArray[np.int64]:
    """(N,): the images of each side are dealt out at random."""
    folds = np.empty(len(labels), np.int64)
    for side in (0, 1):
        rows = draw.permutation(np.flatnonzero(labels == side))
        folds[rows] = np.arange(len(rows)) % _FOLDS
    return folds


def _auroc(features: Floats, labels: NDArray[np.int64], folds: NDArray[np.int64]) -> float:
    """By how well images are told apart by a classifier that has not seen them."""
    from scipy.stats import mannwhitneyu

    scores = np.empty(len(labels), np.float32)
    for fold in range(_FOLDS):
        known = folds != fold
        zero, one = (features[known & (labels == side)].mean(axis=0) for side in (0, 1))
        scores[~known] = (features[~known] - (one + zero) / 2) @ (one - zero)
    ones, zeros = scores[labels == 1], scores[labels == 0]
    return float(mannwhitneyu(ones, zeros).statistic) / (len(ones) * len(zeros))
