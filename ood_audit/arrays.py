"""One code for NumPy arrays on a CPU and torch tensors on a GPU: the array API standard, and what it lacks.

The standard's functions are those of `namespace(array)`. torch is not imported for NumPy arrays.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

Array: TypeAlias = Any  # a NumPy array or a torch tensor: no type that both have knows their operators
_CELLS = 262_144  # numbers at a time: float32 in the second cache of a processor, or a little more
_GROUPS, _GROUP = 2, 8  # groups for each of the largest that are asked for, and columns that a group has at least
_FEW = 16  # as many passes over the values take less time than a partition of them
_ROWS = 4096  # vectors at a time
_NOTHING = 1e-7  # of the largest eigenvalue: what float16 leaves of directions that are not there
_LOST = 1e-5  # the most of a vector's squared length that may be outside of the directions


def namespace(array: Array) -> ModuleType:
    """The functions of the array API standard for a NumPy array or a torch tensor."""
    found: ModuleType = array_namespace(array)
    return found


def beside(array: Array, other: Array) -> Array:
    """A NumPy array as what `other` is: itself, or a tensor on the same device."""
    if isinstance(other, np.ndarray):
        return array
    import torch

    return torch.from_numpy(array).to(other.device)


def to_numpy(array: Array) -> Array:
    """A NumPy array as it is, a tensor copied from its device."""
    return array if isinstance(array, np.ndarray) else array.cpu().numpy()


@dataclass(frozen=True, eq=False)
class Spanned:
    """Vectors by their coordinates in the directions that they span: cosines to them take fewer products.

    Attributes:
        coordinates: (M, R) float32 or float16.
        directions: (D, R) float32, of length 1 and orthogonal; None where the coordinates are the vectors themselves.

    """

    coordinates: Array
    directions: Array | None = None

    def __len__(self) -> int:
        return len(self.coordinates)

    def take(self, rows: Array) -> "Spanned":
        """Some of the vectors, by a mask or by their numbers, in float32."""
        return Spanned(self.coordinates[rows].astype(np.float32), self.directions)

    def vectors(self) -> Array:
        """The (M, D) vectors themselves, in float32."""
        own = self.coordinates.astype(np.float32)
        return own if self.directions is None else own @ self.directions.T

    def beside(self, others: Array) -> Array:
        """The coordinates of other vectors: (N, D) → (N, R), whose products with the coordinates are the same."""
        return others if self.directions is None else others @ self.directions

    def products(self, others: Array) -> Array:
        """(N, M), of (N, D) other vectors with these; (M,) of one."""
        return self.beside(others) @ self.coordinates.T


def float32(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """Finite numbers in float32; those in float16 by their bits.

    NumPy converts float16 one number after the other, which takes five times as long. The sign stays the first bit, the
    others move to the end of the exponent and the beginning of the fraction, and the exponents differ by 112.
    """
    if values.dtype != np.float16:
        return values.astype(np.float32)
    bits = values.view(np.int16).astype(np.int32)
    bits <<= 13
    bits &= np.int32(-0x70000001)  # the sign has spread over the three bits beside it
    found = bits.view(np.float32)
    found *= np.float32(2.0**112)
    return found


def unit(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """(N, D) vectors → float32 of length 1, such as those that float16 has rounded."""
    found = float32(vectors)
    found /= np.sqrt(np.einsum("ij,ij->i", found, found))[:, None]
    return found


def spanned(vectors: NDArray[np.floating]) -> Spanned:
    """(M, D) vectors by the directions that they span, where those are few, as those of the starter's names are.

    The directions are those of some of the vectors; if any other has a part outside of them, all are left as they are.
    """
    count, dimension = vectors.shape
    if count > 8 * dimension:
        some = vectors[:: count // (8 * dimension)].astype(np.float64)
        sizes, directions = np.linalg.eigh(some.T @ some)
        directions = directions[:, sizes > _NOTHING * sizes[-1]].astype(np.float32)
        if directions.shape[1] <= dimension // 2:
            coordinates, lost = np.empty((count, directions.shape[1]), np.float32), 0.0
            for start in range(0, count, _ROWS):
                block = vectors[start : start + _ROWS].astype(np.float32)
                own = coordinates[start : start + _ROWS] = block @ directions
                lost = max(lost, float(((block**2).sum(axis=1) - (own**2).sum(axis=1)).max()))
            if lost < _LOST:
                return Spanned(coordinates, directions)
    return Spanned(vectors)


def largest(values: Array, count: int) -> tuple[Array, Array]:
    """The `count` largest values of each row, the largest first, and their columns: (N, count) each, of (N, K)."""
    if not isinstance(values, np.ndarray):
        top, where = values.topk(count, dim=1)
        return top, where
    if count > _FEW:
        where = _some_largest(values, count)
        order = np.argsort(-np.take_along_axis(values, where, axis=1), axis=1, kind="stable")
        where = np.take_along_axis(where, order, axis=1)
    else:
        where = np.concatenate([_by_turns(values[some], count) for some in _blocks(values)])
    return np.take_along_axis(values, where, axis=1), where


def _some_largest(values: Array, count: int) -> Array:
    """The columns of the `count` largest of each row, in any order.

    Each row is taken as groups of columns. As many of these as are asked for have a value from some bound on, so that
    all the largest do, and only those few are partitioned: a fifth of the time.
    """
    rows, columns = values.shape
    groups = _GROUPS * count
    if columns < _GROUP * groups:
        return np.argpartition(values, -count, axis=1)[:, -count:]
    tops = values[:, : columns // groups * groups].reshape(rows, -1, groups).max(axis=1)
    bound = np.partition(tops, -count, axis=1)[:, -count]
    row, column = np.divmod(np.flatnonzero(values >= bound[:, None]), columns)
    counts = np.bincount(row, minlength=rows)
    place = np.arange(len(row)) - np.repeat(counts.cumsum() - counts, counts)
    left = np.full((rows, counts.max(initial=count)), -math.inf, values.dtype)
    where = np.zeros(left.shape, np.int64)
    left[row, place], where[row, place] = values[row, column], column
    return np.take_along_axis(where, np.argpartition(left, -count, axis=1)[:, -count:], axis=1)


def _by_turns(values: Array, count: int) -> Array:
    left = values.copy() if count > 1 else values
    where = np.empty((len(values), count), np.int64)
    for turn in range(count):
        where[:, turn] = left.argmax(axis=1)
        if turn + 1 < count:
            left[np.arange(len(left)), where[:, turn]] = -math.inf
    return where


def _blocks(values: Array) -> list[slice]:
    """The rows of an (N, K) array in blocks that stay in a cache, one at least."""
    size = max(1, _CELLS // max(1, values.shape[1]))
    return [slice(start, start + size) for start in range(0, max(1, len(values)), size)]


def log_sum_exp(values: Array, temperature: float = 1.0, highest: Array | None = None) -> Array:
    """(N, K) → (N,), log Σ exp(values/temperature) of each row; −inf where all of them are.

    Args:
        values: (N, K).
        temperature: positive.
        highest: (N,) the largest value of each row, where it is known: a sixth of the time less.

    """
    if not isinstance(values, np.ndarray):
        return (values / temperature).logsumexp(dim=1)
    found = np.empty(len(values), values.dtype)
    blocks = _blocks(values)
    powers = np.empty((min(len(values), blocks[0].stop), values.shape[1]), values.dtype)
    for some in blocks:
        top = values[some].max(axis=1, initial=-math.inf) if highest is None else highest[some].copy()
        top[np.isneginf(top)] = 0
        own = np.subtract(values[some], top[:, None], out=powers[: len(top)])
        own /= temperature
        with np.errstate(divide="ignore", under="ignore"):
            found[some] = np.log(np.einsum("ij->i", np.exp(own, out=own))) + top / temperature
    return found


def log_add_exp(*values: Array) -> Array:
    """(N,) each → (N,), log Σ exp of the values, of which one is finite in every place."""
    xp = namespace(values[0])
    stacked = xp.stack(values)
    top = xp.max(stacked, axis=0)
    return xp.log(xp.sum(xp.exp(stacked - top), axis=0)) + top


def put(values: Array, where: Array, new: Array | float) -> None:
    """Set the values of an (N, K) array at the columns `where`, (N, c), in place."""
    if isinstance(values, np.ndarray):
        np.put_along_axis(values, where, new, axis=1)
    else:
        values.scatter_(1, where, new)


@contextmanager
def without(values: Array, where: Array, removed: Array) -> Iterator[None]:
    """Set some values of each row of an (N, K) array to −inf, and put them back at the end.

    A copy would take as long as all else that ΔEnergy does with the similarities.

    Args:
        values: (N, K), changed in place.
        where: (N, c) int64, columns in each row.
        removed: (N, c), the values that are there.

    """
    try:
        put(values, where, -math.inf)
        yield
    finally:
        put(values, where, removed)
