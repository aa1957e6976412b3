"""What the array API standard lacks: the same of NumPy arrays and of torch tensors, beside slow versions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.special import logsumexp

from ood_audit.arrays import float32, largest, log_add_exp, log_sum_exp, spanned, to_numpy, without

KINDS = [np.asarray, torch.from_numpy]
rows = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.floats(-1, 1, width=32))


@pytest.mark.parametrize("kind", KINDS)
@given(rows, st.floats(1e-4, 10), st.data())
def test_log_sum_exp(kind, values, temperature, data):
    gone = data.draw(arrays(bool, values.shape))
    values[gone] = -np.inf
    before = values.copy()
    found = to_numpy(log_sum_exp(kind(values), temperature))
    expected = logsumexp(values.astype(np.float64) / temperature, axis=1)
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    assert (np.isneginf(found) == gone.all(axis=1)).all()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(values, before)


def test_log_sum_exp_of_many_rows_and_of_none():
    values = np.random.default_rng(0).normal(size=(5000, 70)).astype(np.float32)
    np.testing.assert_allclose(log_sum_exp(values, 0.1), logsumexp(values / 0.1, axis=1), rtol=1e-5)
    assert log_sum_exp(values[:0]).shape == (0,)
    assert np.isneginf(log_sum_exp(values[:, :0])).all()


@pytest.mark.parametrize("kind", KINDS)
def test_log_add_exp(kind):
    values = np.random.default_rng(0).normal(0, 300, (4, 9)).astype(np.float32)
    values[0, :3] = -np.inf
    found = to_numpy(log_add_exp(*map(kind, values)))
    np.testing.assert_allclose(found, logsumexp(values.astype(np.float64), axis=0), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@given(rows, st.data())
def test_largest(kind, values, data):
    count = data.draw(st.integers(1, values.shape[1]))
    before = values.copy()
    top, where = map(to_numpy, largest(kind(values), count))
    np.testing.assert_array_equal(top, -np.sort(-values, axis=1)[:, :count])
    np.testing.assert_array_equal(np.take_along_axis(values, where, axis=1), top)
    assert all(len(set(row)) == count for row in where.tolist())
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_put_back_even_if_an_error_comes_between(kind):
    values = kind(np.array([[0.1, 0.3, 0.2], [0.6, 0.4, 0.5]]))
    before, where = to_numpy(values).copy(), kind(np.array([[1], [0]]))
    removed = kind(np.array([[0.3], [0.6]]))
    with pytest.raises(KeyError), without(values, where, removed):
        assert to_numpy(values).max(axis=1).tolist() == [0.2, 0.5]
        raise KeyError
    np.testing.assert_array_equal(values, before)


def in_few_directions(count=400, dimension=24, rank=7):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(count, rank)) @ rng.normal(size=(rank, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16), rng


def test_vectors_in_few_directions_are_kept_by_their_coordinates():
    vectors, rng = in_few_directions()
    found, others = spanned(vectors), rng.normal(size=(5, 24)).astype(np.float32)
    assert found.directions is not None and found.coordinates.shape == (400, 7)
    np.testing.assert_allclose(found.products(others), others @ vectors.astype(np.float32).T, atol=5e-3)
    np.testing.assert_allclose(found.products(others[0]), found.products(others)[0], atol=1e-6)


def test_a_vector_that_leaves_these_directions_keeps_all_as_they_are():
    vectors, rng = in_few_directions()
    vectors[3] = np.eye(24, dtype=np.float16)[0]  # the directions are those of every second vector
    found, others = spanned(vectors), rng.normal(size=(5, 24)).astype(np.float32)
    assert found.directions is None
    np.testing.assert_allclose(found.products(others), others @ vectors.astype(np.float32).T, atol=1e-5)


@pytest.mark.parametrize(("count", "rank"), [(400, 20), (150, 7), (0, 7)])
def test_vectors_in_many_directions_and_few_vectors_are_left_as_they_are(count, rank):
    vectors, _ = in_few_directions(max(count, 1), rank=rank)
    found = spanned(vectors[:count])
    assert found.directions is None
    assert (found.coordinates == vectors[:count]).all()


@pytest.mark.parametrize("columns", [300, 5000, 8193])
def test_the_largest_of_wide_rows(columns: int) -> None:
    """Those of wide rows are looked for by groups of columns, of which the last may be left over."""
    values = np.random.default_rng(0).permuted(np.tile(np.arange(columns, dtype=np.float32), (8, 1)), axis=1)
    values[0, -1] = columns  # in no group
    values[1] = -math.inf
    values[2, 20:] = 0  # ties
    top, where = largest(values, 40)
    assert (top == -np.sort(-values, axis=1)[:, :40]).all()
    assert (np.take_along_axis(values, where, axis=1) == top).all()
    assert all(len(set(row)) == 40 for row in where.tolist())


def test_float16_in_float32():
    """Every finite number that there is, in rows that do not follow each other in memory."""
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    values = every[np.isfinite(every)].reshape(-1, 16)
    for those in (values, values[::2], values[:, 3:9]):
        found = float32(those)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found.view(np.uint32), those.astype(np.float32).view(np.uint32))
    assert float32(values[:0]).shape == (0, 16)
    np.testing.assert_array_equal(float32(np.array([0.1, 2.0])), np.array([0.1, 2.0], np.float32))


@given(rows, st.floats(1e-4, 10))
def test_log_sum_exp_with_the_highest_known(values, temperature):
    values[0] = -np.inf
    known = log_sum_exp(values, temperature, values.max(axis=1))
    np.testing.assert_array_equal(known, log_sum_exp(values, temperature))
