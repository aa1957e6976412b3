"""The look of an image: what the image tower sees in it before it is brought beside text.

The last layers of a CLIP keep of an image what texts tell. Whether one image resembles another is told better by what
comes before them: the mean over the picture of the last convolution, here in its square root, so that a few channels do
not drown the others, and brought down from 1,280 to 192 numbers by random signs (Achlioptas, "Database-friendly random
projections", JCSS 2003). Cosines between such vectors are about those between the whole ones.
"""

import hashlib
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ood_audit.arrays import unit

DIMENSION = 192


@cache
def signs(width: int) -> NDArray[np.float32]:
    """(width, DIMENSION) of ±1, the same everywhere: the bits of SHA-256 of the numbers from 0 on."""
    count = width * DIMENSION
    blocks = (hashlib.sha256(number.to_bytes(4, "big")).digest() for number in range(-(-count // 256)))
    bits = np.unpackbits(np.frombuffer(b"".join(blocks), np.uint8))[:count]
    found: NDArray[np.float32] = 2 * bits.reshape(width, DIMENSION).astype(np.float32) - 1
    return found


def stored(look: NDArray[np.float32]) -> bytes:
    """(DIMENSION,) of length 1 as the store has it: float16, little-endian."""
    return look.astype("<f2").tobytes()


def read(values: list[bytes]) -> NDArray[np.float32]:
    """What `stored` has made → (N, DIMENSION) float32 of length 1."""
    return unit(np.frombuffer(b"".join(values), "<f2").reshape(-1, DIMENSION))
