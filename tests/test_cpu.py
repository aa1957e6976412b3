"""What is tuned for CPUs gives what the plain operation gives, and leaves its input as it was."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from ood_audit.encoders.cpu import largest, without


@given(
    arrays(
        np.float32, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=8), elements=st.floats(-1, 1, width=32)
    ),
    st.integers(1, 6),
)
def test_largest(values, count):
    tensor, count = torch.from_numpy(values.copy()), min(count, values.shape[1])
    top, where = largest(tensor, count)
    np.testing.assert_array_equal(tensor, values)
    np.testing.assert_array_equal(top, tensor.topk(count, dim=1).values)
    np.testing.assert_array_equal(np.take_along_axis(values, where.numpy(), axis=1), top)
    assert all(len(set(row)) == count for row in where.tolist())


def test_values_are_put_back_even_if_an_error_comes_between():
    values = torch.tensor([[0.1, 0.3, 0.2], [0.6, 0.4, 0.5]])
    before, where = values.clone(), torch.tensor([[1], [0]])
    with pytest.raises(KeyError), without(values, where, values.gather(1, where)):
        assert values.amax(dim=1).tolist() == pytest.approx([0.2, 0.5])
        raise KeyError
    torch.testing.assert_close(values, before, rtol=0, atol=0)
