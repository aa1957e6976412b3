"""A map of the images: features in two dimensions, for people to look at."""

import importlib.util

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

_NEIGHBOURS = 15  # UMAP's; with fewer than twice as many images its picture says little
_TAIL = 0.02  # the share of the images on each side that does not set the scale
_MARGIN = 0.5  # images farther out than this share of the spread are drawn at the edge
_BLOCK = 65_536  # rows that are placed at a time

Features = NDArray[np.float32]


def coordinates(features: Features) -> Features:
    """Places on a map of which near ones show like images: UMAP where it is installed, else PCA.

    The same features give the same map. Its axes mean nothing and are scaled each for itself.

    Args:
        features: (N, D) float32, of a sample of some thousand images: the cost is O(N D² + D³) for PCA.

    Returns:
        (N, 2) float32 in 0 … 1; what is far from all others lies at the edge.

    Raises:
        ValueError: the features are no table, or not all are finite.

    """
    if features.ndim != 2 or not np.isfinite(features).all():
        raise ValueError("the features are to be (N, D), and finite")
    if len(features) >= 2 * _NEIGHBOURS and importlib.util.find_spec("umap"):
        return _to_unit_square(_umap(features))
    return _to_unit_square(_pca(features, features))


def coordinates_by_sample(features: NDArray[np.floating], sample: Features) -> Features:
    """The same for any number of images, always by PCA, whose axes are those of a sample.

    Args:
        features: (N, D) of all images.
        sample: (M, D) float32 of some of them.

    """
    return _to_unit_square(_pca(features, sample))


def _pca(features: NDArray[np.floating], sample: Features) -> NDArray[np.float64]:
    """Spherical PCA (Locantore et al., 1999): the directions come from the rows' directions, seen from the median.

    So no row, however far away, has more weight than another.
    """
    centred = np.asarray(sample, np.float64)
    middle = np.median(centred, axis=0) if len(centred) else np.zeros(centred.shape[1])
    centred = centred - middle
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    directions = np.divide(centred, lengths, out=np.zeros_like(centred), where=lengths > 0)
    moments = directions.T @ directions
    with threadpool_limits(1, "blas"):  # threads take ten times as long where another process has one of the cores
        _, axes = np.linalg.eigh(moments)  # ascending
    axes = axes[:, ::-1][:, :2]
    # An eigenvector's sign is arbitrary: its largest element shall be positive.
    axes = axes * np.sign(np.take_along_axis(axes, np.abs(axes).argmax(axis=0, keepdims=True), axis=0))
    places = np.zeros((len(features), 2))
    for start in range(0, len(features), _BLOCK):
        block = slice(start, start + _BLOCK)
        places[block, : axes.shape[1]] = (np.asarray(features[block], np.float64) - middle) @ axes
    return places


def _umap(features: Features) -> Features:
    import umap

    # With a seed it runs in one thread and is deterministic.
    model = umap.UMAP(n_neighbors=_NEIGHBOURS, metric="cosine", random_state=0, n_jobs=1)
    places: Features = model.fit_transform(features)
    return places


def _to_unit_square(places: NDArray[np.floating]) -> Features:
    """Each axis from the bulk of its values; what lies far outside of that is put at the edge."""
    if not len(places):
        return np.empty((0, 2), np.float32)
    low, high = np.quantile(places, [_TAIL, 1 - _TAIL], axis=0)
    spread = high - low
    places = np.clip(places, low - _MARGIN * spread, high + _MARGIN * spread)
    low, spread = places.min(axis=0), np.ptp(places, axis=0)
    # Rounding differences of equal rows are no spread.
    flat = spread <= 1e-9 * np.maximum(1.0, np.abs(places).max(axis=0))
    unit = np.where(flat, 0.5, (places - low) / np.where(flat, 1.0, spread))
    return np.clip(unit, 0.0, 1.0).astype(np.float32)
