"""Nearest neighbours on a GPU: exact, by comparing blocks of vectors with all of them."""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from ood_audit.encoders.device import is_out_of_memory, release_memory
from ood_audit.encoders.memory import free_bytes

_CHUNK = 131_072  # vectors that a block is compared with at a time: a quarter of a gigabyte of cosines
_SMALLEST_CHUNK = 4096
_ROOM = 2 << 30  # for these cosines, and what sorting them takes
MOST = 4_000_000  # images that a fast GPU compares with each other in some minutes; the time grows with their square

Floats = NDArray[np.float32]


class OnGpu:
    """Vectors of length 1 in float16 on a GPU, searched and read as a FAISS index is.

    Args:
        batches: gives the (N, D) float32 vectors.
        total: how many vectors there are.
        dimension: D.
        device: the GPU.

    """

    at_once = 1024  # rows to search for

    def __init__(self, batches: Iterable[Floats], total: int, dimension: int, device: torch.device) -> None:
        self._device = device
        self._chunk = _CHUNK
        self._vectors = torch.empty((total, dimension), dtype=torch.float16, device=device)
        start = 0
        for features in batches:
            self._vectors[start : start + len(features)] = self._half(features)
            start += len(features)

    def search(self, features: Floats, k: int) -> tuple[Floats, NDArray[np.int64]]:
        """(Q, D) → the (Q, k) cosines of the nearest vectors, nearest first, and their rows.

        Where memory runs out, fewer vectors are compared at a time, now and from then on.
        """
        while True:
            try:
                return self._search(self._half(features), k)
            except RuntimeError as error:
                if not is_out_of_memory(error) or self._chunk <= _SMALLEST_CHUNK:
                    raise
            # Outside of `except`: the error holds the frames, and they the memory.
            self._chunk //= 2
            release_memory(self._device)

    def reconstruct_n(self, start: int, count: int) -> Floats:
        """The vectors from a row on."""
        found: Floats = self._vectors[start : start + count].float().cpu().numpy()
        return found

    def reconstruct_batch(self, rows: NDArray[np.int64]) -> Floats:
        """The vectors of some rows."""
        found: Floats = self._vectors[torch.from_numpy(rows).to(self._device)].float().cpu().numpy()
        return found

    def _half(self, features: Floats) -> torch.Tensor:
        return torch.from_numpy(features.astype(np.float16)).to(self._device)

    def _search(self, asked: torch.Tensor, k: int) -> tuple[Floats, NDArray[np.int64]]:
        best = asked.new_empty((len(asked), 0))
        rows = torch.empty((len(asked), 0), dtype=torch.int64, device=self._device)
        for start in range(0, len(self._vectors), self._chunk):
            chunk = self._vectors[start : start + self._chunk]
            near, place = (asked @ chunk.T).topk(min(k, len(chunk)), dim=1)
            best, order = torch.cat([best, near], dim=1).topk(min(k, best.shape[1] + near.shape[1]), dim=1)
            rows = torch.cat([rows, place + start], dim=1).gather(1, order)
        # Products in float16 are exact to 0.001, which is good enough to choose neighbours, not to compare them.
        cosines = torch.einsum("qd,qkd->qk", asked.float(), self._vectors[rows].float())
        cosines, order = cosines.sort(dim=1, descending=True)
        return cosines.cpu().numpy(), rows.gather(1, order).cpu().numpy()


def most_on(device: torch.device, dimension: int) -> int:
    """How many images can be compared with each other on a device in some minutes; 0 where it is no GPU of CUDA's."""
    if device.type != "cuda":
        return 0
    return max(0, min(MOST, (free_bytes(device) - _ROOM) // (2 * dimension)))
