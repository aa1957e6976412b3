"""The map of the embedding."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from ood_audit.findings import map as mapping
from ood_audit.findings.map import coordinates


@pytest.fixture
def only_pca(monkeypatch):
    monkeypatch.setattr(mapping, "_NEIGHBOURS", 10**9)  # too few images for UMAP, where that is installed


def groups(seed: int = 0, each: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Three groups of unit vectors in 32 dimensions, and which is which."""
    rng = np.random.default_rng(seed)
    centres = np.linalg.qr(rng.normal(size=(32, 3)))[0].T
    kinds = np.repeat([0, 1, 2], each)
    features = centres[kinds] + 0.05 * rng.normal(size=(3 * each, 32))
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32), kinds


def apart(places: np.ndarray, kinds: np.ndarray) -> bool:
    """Whether each image's nearest neighbour on the map is of its group."""
    distances = np.linalg.norm(places[:, None] - places, axis=2)
    np.fill_diagonal(distances, np.inf)
    return bool((kinds[distances.argmin(axis=1)] == kinds).all())


def test_like_images_lie_together(only_pca):
    features, kinds = groups()
    places = coordinates(features)
    assert places.shape == (180, 2) and places.dtype == np.float32
    assert places.min(axis=0) == pytest.approx(0) and places.max(axis=0) == pytest.approx(1)
    assert apart(places, kinds)


def test_same_features_same_map_and_order_does_not_matter(only_pca):
    features, _ = groups()
    order = np.random.default_rng(1).permutation(len(features))
    assert np.array_equal(coordinates(features), coordinates(features.copy()))
    assert coordinates(features[order]) == pytest.approx(coordinates(features)[order], abs=1e-4)


def test_signs_are_fixed(only_pca):
    """The mirror image of the features is mirrored, not turned to what the solver happens to give."""
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(101, 4)) * [5, 3, 0.1, 0.1]).astype(np.float32)
    places = coordinates(features)
    assert np.corrcoef(places[:, 0], features[:, 0])[0, 1] > 0.99
    assert np.corrcoef(places[:, 1], features[:, 1])[0, 1] > 0.99


def test_one_wild_image_moves_no_other(only_pca):
    features, kinds = groups()
    wild = np.append(features, np.full((1, 32), 1e4, np.float32), axis=0)
    places = coordinates(wild)
    assert ((places[-1] == 0) | (places[-1] == 1)).any()  # at the edge
    assert apart(places[:-1], kinds)
    assert np.ptp(places[:-1], axis=0).min() > 0.5  # the others still fill the map


@pytest.mark.parametrize(
    "features",
    [np.empty((0, 8)), np.ones((1, 8)), np.full((50, 8), 0.3), np.arange(5)[:, None], np.zeros((40, 2))],
)
def test_few_or_equal_images(only_pca, features):
    places = coordinates(features.astype(np.float32))
    assert places.shape == (len(features), 2)
    assert np.isfinite(places).all() and (places >= 0).all() and (places <= 1).all()


def test_equal_images_lie_in_the_middle(only_pca):
    assert coordinates(np.full((50, 8), 0.3, np.float32)) == pytest.approx(np.full((50, 2), 0.5))


@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=20), elements=st.floats(-1e6, 1e6, width=32)))
def test_any_features_fit_the_unit_square(features):
    places = coordinates(features)  # fewer than UMAP is for
    assert places.shape == (len(features), 2)
    assert (places >= 0).all() and (places <= 1).all()


@pytest.mark.parametrize("features", [np.zeros(3), np.array([[np.nan, 1.0]]), np.array([[np.inf, 1.0]])])
def test_what_is_no_table_of_numbers_is_refused(features):
    with pytest.raises(ValueError, match="finite"):
        coordinates(features.astype(np.float32))


def test_umap_where_it_is_installed():
    pytest.importorskip("umap")
    features, kinds = groups()
    places = coordinates(features)
    assert places.shape == (180, 2) and places.dtype == np.float32
    assert (places >= 0).all() and (places <= 1).all()
    assert apart(places, kinds)
    assert np.array_equal(places, coordinates(features))
