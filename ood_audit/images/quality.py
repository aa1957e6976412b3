"""What a picture looks like in a few numbers: how bright, sharp and colourful it is, and its perceptual hash.

All of it is taken while the picture is decoded, from as few of its pixels as tell the same. `benchmarks.quality`
has the time that it takes beside that of embedding.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HASH_BITS = 256
_ENOUGH = 224  # pixels of the shorter side; larger pictures are reduced first, by a whole number
_SAMPLED = 64  # and of the picture that grey levels and colours are counted in: every nth pixel of every nth row
_SMALL = 32  # and of the picture that colour is measured on: JPEG's noise averages out
_ROWS = 32  # at least so many rows tell how sharp a picture is
_SIDE, _TRIM = 70, 3  # the picture that is hashed is a square of so many pixels, so many of them trimmed
_HASH_SIDE = 16
_LEVELS = np.arange(256)


@dataclass(frozen=True, slots=True)
class Quality:
    """What a picture looks like.

    Attributes:
        brightness: The mean grey level, from 0 (black) to 1 (white).
        shadows: The grey level that 1% of the pixels are below, from 0 to 1.
        highlights: The grey level that 1% of the pixels are above, from 0 to 1.
        sharpness: The standard deviation of the Laplacian by that of the grey levels; None for pictures below 3 pixels
            and for those of one colour.
        entropy: Of the grey levels, from 0 to 8 bits.
        saturation: The difference between the strongest and the weakest channel, from 0 to 1, that 1% of the picture
            exceeds: 0 where all of it is grey.
        picture_hash: The perceptual hashes of the picture, whole and trimmed, in hexadecimal, see `hashes`.

    """

    brightness: float
    shadows: float
    highlights: float
    sharpness: float | None
    entropy: float
    saturation: float
    picture_hash: str


def measure(image: Image.Image) -> Quality:
    """Measure an upright RGB picture."""
    image = _reduced(image, _ENOUGH)
    grey = image.convert("L")
    share = np.array(_sampled(grey).histogram(), np.float64)
    share /= share.sum()
    mean = float(share @ _LEVELS)
    shadows, highlights = share.cumsum().searchsorted((0.01, 0.99))
    there = share[share > 0]
    return Quality(
        brightness=mean / 255,
        shadows=float(shadows) / 255,
        highlights=float(highlights) / 255,
        sharpness=_sharpness(np.asarray(grey), float(share @ (_LEVELS - mean) ** 2) ** 0.5),
        entropy=abs(float(there @ np.log2(there))),
        saturation=_saturation(np.asarray(_reduced(_sampled(image), _SMALL))),
        picture_hash=hashes(grey).tobytes().hex(),
    )


def hashes(grey: Image.Image) -> NDArray[np.uint8]:
    """pHash of a grey picture, whole and without 4% at each side: the signs of its lowest frequencies. (2, 32).

    A copy that was cropped meets the original cropped alike.
    """
    grey = _reduced(grey, _SIDE)
    pixels = np.asarray(grey.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR), np.float32)
    found = np.empty((2, HASH_BITS // 8), np.uint8)
    for row, some in zip(found, (pixels, pixels[_TRIM:-_TRIM, _TRIM:-_TRIM]), strict=True):
        waves = _waves(len(some))
        frequencies = waves @ some @ waves.T
        middle = np.partition(frequencies, HASH_BITS // 2, axis=None)[
            HASH_BITS // 2
        ]  # np.median takes 20 times as long
        row[:] = np.packbits(frequencies >= middle)
    return found


@cache
def _waves(count: int) -> NDArray[np.float32]:
    """The lowest frequencies of the discrete cosine transform of so many samples, (16, N)."""
    waves: NDArray[np.float32] = np.cos(
        np.pi / (2 * count) * np.outer(np.arange(_HASH_SIDE), 2 * np.arange(count) + 1)
    ).astype(np.float32)
    return waves


def _sharpness(grey: NDArray[np.uint8], deviation: float) -> float | None:
    if min(grey.shape) < 3 or not deviation:
        return None
    last = grey.shape[0] - 2
    step = max(3, last // _ROWS)
    up, middle, down = (grey[start : last + start : step].astype(np.int16) for start in range(3))
    laplacian = 4 * middle[:, 1:-1]
    for neighbour in (middle[:, :-2], middle[:, 2:], up[:, 1:-1], down[:, 1:-1]):
        laplacian -= neighbour
    flat = laplacian.ravel().astype(np.float32)
    mean = float(flat.sum()) / flat.size
    variance = float(flat @ flat) / flat.size - mean**2  # in half the time of `std`
    return float(max(0.0, variance) ** 0.5) / deviation


def _saturation(pixels: NDArray[np.uint8]) -> float:
    red, green, blue = (pixels[..., channel] for channel in range(3))
    colour = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    place = int(0.99 * (colour.size - 1))
    return float(np.partition(colour, place, axis=None)[place]) / 255


def _reduced(image: Image.Image, enough: int) -> Image.Image:
    factor = min(image.size) // enough
    return image.reduce(factor) if factor > 1 else image


def _sampled(image: Image.Image) -> Image.Image:
    step = min(image.size) // _SAMPLED
    size = image.width // max(1, step), image.height // max(1, step)
    return image.resize(size, Image.Resampling.NEAREST) if step > 1 else image
