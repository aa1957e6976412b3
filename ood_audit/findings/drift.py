"""Whether, and where, one set of images differs from another: the statistics of `compare`.

The two-sample test is a classifier test (Lopez-Paz and Oquab, ICLR 2017, arXiv 1610.06545). The classifier is Fisher's
linear discriminant: with features whitened by the covariance of all images, whose labels it does not use, its direction
is the difference of the two means, so that a thousand permutations are a few matrix products. It is fitted on four of
five folds and scores the fifth; the statistic is the AUROC of these scores. The permutations exchange images within
the folds, which keeps every fold's sizes. The p-value is exact for images that are independent of each other. Frames of
one recording are not: two recordings differ, whatever they show.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ood_audit.findings.calibration import p_values

Floats = NDArray[np.float32]
PERMUTATIONS = 999
FEWEST = 10  # images on each side
_FOLDS = 5
_BLOCK = 64  # permutations at a time
_NEIGHBOURS = 5
_Z = 1.959964  # the normal quantile of a 95% interval


@dataclass(frozen=True)
class TwoSample:
    """The outcome of the two-sample test.

    Attributes:
        auroc: How well a classifier tells the two sets apart: 0.5 not at all, 1 without an error.
        p_value: The share of random divisions that it tells apart as well, at least 1 / 1000.

    """

    auroc: float
    p_value: float


def two_sample(reference: Floats, other: Floats, seed: int = 0) -> TwoSample:
    """Test whether two sets of features, (N, D) and (M, D), come from one distribution."""
    draw = np.random.default_rng(seed)
    features = _whitened(np.concatenate([reference, other]))
    labels = np.repeat([0, 1], [len(reference), len(other)])
    folds = _folds(labels, draw)
    observed = _aurocs(features, labels[:, None], folds)[0]
    at_least = 1
    for start in range(0, PERMUTATIONS, _BLOCK):
        permuted = np.empty((len(labels), min(_BLOCK, PERMUTATIONS - start)), labels.dtype)
        for fold in range(_FOLDS):
            rows = np.flatnonzero(folds == fold)
            permuted[rows] = draw.permuted(np.repeat(labels[rows, None], permuted.shape[1], axis=1), axis=0)
        at_least += int((_aurocs(features, permuted, folds) >= observed - 1e-9).sum())
    return TwoSample(float(observed), at_least / (PERMUTATIONS + 1))


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
    """p-values adjusted by Benjamini and Hochberg's rule: those up to q have a false discovery rate of q."""
    from scipy.stats import false_discovery_control

    values: NDArray[np.float64] = false_discovery_control(np.asarray(p, np.float64)) if len(p) else np.empty(0)
    return values


def _wilson(count: int, of: int) -> tuple[float, float, float]:
    """A share and the ends of Wilson's 95% score interval."""
    share = count / of
    centre = share + _Z**2 / (2 * of)
    spread = _Z * float(np.sqrt(share * (1 - share) / of + _Z**2 / (4 * of**2)))
    scale = 1 + _Z**2 / of
    return share, (centre - spread) / scale, (centre + spread) / scale


def _whitened(features: Floats) -> Floats:
    from sklearn.covariance import ledoit_wolf_shrinkage

    centred = features - features.mean(axis=0)
    covariance = (centred.T @ centred / len(centred)).astype(np.float64)
    shrinkage = max(float(ledoit_wolf_shrinkage(centred, assume_centered=True)), 1e-3)
    size = max(float(np.trace(covariance)) / len(covariance), 1e-12)
    covariance = (1 - shrinkage) * covariance + shrinkage * size * np.eye(len(covariance))
    white: Floats = (centred @ np.linalg.inv(np.linalg.cholesky(covariance)).T).astype(np.float32)
    return white


def _folds(labels: NDArray[np.int64], draw: np.random.Generator) -> NDArray[np.int64]:
    """(N,): the images of each side are dealt out at random."""
    folds = np.empty(len(labels), np.int64)
    for side in (0, 1):
        rows = draw.permutation(np.flatnonzero(labels == side))
        folds[rows] = np.arange(len(rows)) % _FOLDS
    return folds


def _aurocs(features: Floats, labels: NDArray[np.int64], folds: NDArray[np.int64]) -> NDArray[np.float64]:
    """(P,): by how well images are told apart by a classifier that has not seen them, for (N, P) labels."""
    from scipy.stats import rankdata

    ones = labels.astype(np.float32)
    parts = [np.flatnonzero(folds == fold) for fold in range(_FOLDS)]
    sums = [features[rows].T @ ones[rows] for rows in parts]  # (D, P) of the images with label 1
    counts = [ones[rows].sum(axis=0) for rows in parts]
    total, every = sum(sums), features.sum(axis=0)
    n_one, n = ones.sum(axis=0), len(ones)
    scores = np.empty(labels.shape, np.float32)
    for rows, own, count in zip(parts, sums, counts, strict=True):
        one = (total - own) / (n_one - count)
        rest = (every - features[rows].sum(axis=0))[:, None] - (total - own)
        zero = rest / ((n - len(rows)) - (n_one - count))
        scores[rows] = features[rows] @ (one - zero) - ((one + zero) * (one - zero)).sum(axis=0) / 2
    ranks = rankdata(scores, axis=0)
    found: NDArray[np.float64] = ((ranks * ones).sum(axis=0) - n_one * (n_one + 1) / 2) / (n_one * (n - n_one))
    return found
