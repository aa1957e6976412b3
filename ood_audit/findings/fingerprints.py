"""How alike two pictures look: perceptual hashes and small colour thumbnails, as arrays.

The hash is pHash (N. Krawetz, "Looks Like It"; J. Buchner's ImageHash): the signs of the lowest frequencies of the
grey picture. It stands recompression, scaling, and changes of brightness and contrast. It is blind to colour, and sees
little of pictures with few frequencies, such as plain shapes: for these there are the thumbnails.

Both are taken of the whole picture and of its trimmed ones, so that a copy that was cropped meets the original cropped
alike.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dct

HASH_BITS = 256
_HASH = 16  # bits on each side of the square
HASH_BYTES = HASH_BITS // 8
_SIDE = 64  # pixels on each side of the picture whose frequencies are taken
_TRIMS = (0.0, 0.02, 0.04, 0.06)  # the shares of each side that are cut off
_THUMBNAIL = 8  # pixels on each side
SHAPE = (len(_TRIMS), HASH_BYTES + 3 * _THUMBNAIL**2)
_LARGEST = 256  # pixels on each side; larger pictures are scaled down first
_FLAT = 2.0  # grey levels: the hash of a fainter picture is of its noise
_ODD = np.arange(_HASH, dtype=np.uint8) % 2
_WORD = 64  # bits
_CHANGED = ((0, 0, 0), (1, 0, 1), (0, 1, 1), (1, 1, 0))  # by turn: whether the bits of the last three `words` change
_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.uint8)

Fingerprints = NDArray[np.uint8]
Words = NDArray[np.uint64]


def fingerprint(image: Image.Image) -> Fingerprints:
    """Hash and thumbnail of an RGB picture at each trim: SHAPE, uint8."""
    if max(image.size) > _LARGEST:
        image = image.copy()
        image.thumbnail((_LARGEST, _LARGEST), Image.Resampling.BICUBIC)
    prints, grey = np.empty(SHAPE, np.uint8), image.convert("L")
    pixels = np.empty((len(_TRIMS), _SIDE, _SIDE), np.float64)
    for row, shrunk, trim in zip(prints, pixels, _TRIMS, strict=True):
        x, y = round(trim * image.width), round(trim * image.height)
        box = x, y, image.width - x, image.height - y
        shrunk[:] = np.asarray(grey.crop(box).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS))
        row[HASH_BYTES:] = np.asarray(image.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX, box)).ravel()
    lowest = dct(dct(pixels, axis=1)[:, :_HASH], axis=2)[..., :_HASH].reshape(len(_TRIMS), HASH_BITS)
    middle = np.sort(lowest, axis=1)[:, HASH_BITS // 2 - 1 : HASH_BITS // 2 + 1].mean(axis=1, keepdims=True)
    prints[:, :HASH_BYTES] = np.packbits(lowest > middle, axis=1)
    return prints


def turned(prints: Fingerprints, turn: int) -> Fingerprints:
    """Fingerprints, (N, *SHAPE), of the pictures in one of the eight orientations, see `turned_hashes`."""
    colours = prints[..., HASH_BYTES:].reshape(*prints.shape[:-1], _THUMBNAIL, _THUMBNAIL, 3)
    colours = colours[..., ::-1, :] if turn & 1 else colours
    colours = colours[..., ::-1, :, :] if turn & 2 else colours
    colours = colours.swapaxes(-2, -3) if turn & 4 else colours
    flat = colours.reshape(*prints.shape[:-1], 3 * _THUMBNAIL**2)
    return np.concatenate([turned_hashes(prints[..., :HASH_BYTES], turn), flat], axis=-1)


def turned_hashes(hashes: Fingerprints, turn: int) -> Fingerprints:
    """Hashes, (..., 32), of the pictures in one of the eight orientations.

    A mirrored picture has the same frequencies, half of them with the other sign; with rows taken as columns, they
    change places.

    Args:
        hashes: of the pictures as they are.
        turn: 0 … 7: the sum of 1 for mirrored, 2 for upside down, and then 4 for rows taken as columns.

    """
    bits = np.unpackbits(hashes, axis=-1).reshape(*hashes.shape[:-1], _HASH, _HASH)
    bits = bits ^ _ODD if turn & 1 else bits
    bits = bits ^ _ODD[:, None] if turn & 2 else bits
    bits = bits.swapaxes(-1, -2) if turn & 4 else bits
    return np.packbits(bits.reshape(*hashes.shape[:-1], HASH_BITS), axis=-1)


def words(hashes: Fingerprints) -> Words:
    """Hashes, (..., 32), as four words of 64 bits, (..., 4), by what a mirror and turning upside down do to the bits.

    The first, of the frequencies that are even in both directions, stays as it is. A mirror turns all bits of those
    that are odd along a row, the second and the last; upside down those that are odd along a column, the last two.
    """
    half = _HASH // 2
    bits = np.unpackbits(hashes, axis=-1).reshape(*hashes.shape[:-1], half, 2, half, 2)
    bits = np.moveaxis(bits, (-3, -1), (-4, -3))
    found: Words = np.packbits(bits.reshape(*hashes.shape[:-1], 4, _WORD), axis=-1).view(np.uint64)[..., 0]
    return found


def is_flat(prints: Fingerprints) -> NDArray[np.bool_]:
    """Which pictures, (N, *SHAPE), are of one colour, or nearly: these look alike to any comparison. (N,)."""
    thumbnails = prints[:, 0, HASH_BYTES:].reshape(len(prints), _THUMBNAIL**2, 3).astype(np.float32)
    flat: NDArray[np.bool_] = thumbnails.std(axis=1).max(axis=1) < _FLAT
    return flat


def hash_distances(a: Fingerprints, b: Fingerprints) -> NDArray[np.int64]:
    """Bits in which the hashes of pictures and others differ, (N, *SHAPE) each, at the best trim of either. (N,)."""
    x, y = a[..., :HASH_BYTES], b[..., :HASH_BYTES]
    distances: NDArray[np.int64] = np.minimum(_ones(x[:, :1] ^ y), _ones(x ^ y[:, :1])).min(axis=1)
    return distances


def word_distances(a: Words, b: Words, turns: Iterable[int]) -> NDArray[np.int16]:
    """Bits in which the hashes of pictures and others differ, at the best pair of hashes and of some turns. (N,).

    Counted once for all turns, as what a turn of a word changes in a count is known.

    Args:
        a: `words` of H hashes of each of the pictures, (H, 4, N).
        b: those of the others.
        turns: some of 0 … 3, see `turned_hashes`.

    """
    best = np.full(a.shape[-1], HASH_BITS, np.int16)
    for one in a:
        for other in b:
            still, *odd = _counts(one ^ other).astype(np.int16)
            for turn in turns:
                distances = still.copy()
                for count, changed in zip(odd, _CHANGED[turn], strict=True):
                    distances += _WORD - count if changed else count
                np.minimum(best, distances, out=best)
    return best


def _counts(words: Words) -> NDArray[np.uint8]:
    """How many bits of each word are set."""
    if hasattr(np, "bitwise_count"):
        return np.bitwise_count(words)
    ones: NDArray[np.uint8] = _ONES[words[..., None].view(np.uint8)].sum(axis=-1, dtype=np.uint8)  # before NumPy 2
    return ones


def _ones(hashes: Fingerprints) -> NDArray[np.int64]:
    """How many bits are set: (..., 32) → (...)."""
    counts = _counts(np.ascontiguousarray(hashes).view(np.uint64))
    found = np.zeros(counts.shape[:-1], np.int64)
    for place in range(counts.shape[-1]):  # a sum over so short an axis takes three times as long
        found += counts[..., place]
    return found


def correlations(a: Fingerprints, b: Fingerprints) -> NDArray[np.float32]:
    """Pearson's correlation over the pixels and channels of the thumbnails, at the best trim of either. (N,)."""
    x, y = _standardised(a), _standardised(b)
    correlation: NDArray[np.float32] = np.maximum((x[:, :1] * y).sum(axis=2), (x * y[:, :1]).sum(axis=2)).max(axis=1)
    return correlation


def _standardised(prints: Fingerprints) -> NDArray[np.float32]:
    values = prints[..., HASH_BYTES:].astype(np.float32)
    values -= values.mean(axis=-1, keepdims=True)
    values /= np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-6)
    return values
