"""Pictures with more than 8 bits a sample: 10, 12, 14 or 16 bits, 32-bit integers, and floats.

The 16 bits of a sample are rarely all in use. A camera's 12 bits, read as 16, would be a black picture. So the scale is
what the file states (PNG's sBIT; TIFF's BitsPerSample, SMinSampleValue, SMaxSampleValue and GDAL's no-data value; the
maximum of a PGM), or else what its samples need. Samples without a value are left out, and become black.

Pillow keeps one byte of each sample of a deep colour picture, and it is the wrong one here. Where it matters, the other
byte comes from a second pass with the opposite byte order. Colour in JPEG 2000, and pictures of SGI, have no such pass;
the bits in use of the byte that there is are spread over all 8.
"""

import math
import re
import sys
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

if TYPE_CHECKING:
    from PIL.ImageFile import _Tile

_HUGE = 1e38  # no measured value is beyond it, and libraries mark what is missing by the largest float
_FULL = 65535.0
_TYPE_LIMITS = (2.0**15 - 1, 2.0**16 - 1, 2.0**31 - 1, 2.0**32 - 1)
_SWAPPED = {
    "L": "B",
    "B": "L",
    "N": "B" if sys.byteorder == "little" else "L",
}  # the opposite byte order, by the last letter of Pillow's raw modes
_MIN_SAMPLE, _MAX_SAMPLE = (340, 280), (341, 281)  # SMinSampleValue, MinSampleValue, and so on
_GREY_AND_ALPHA = "LA;16B"
_OVERSHOOT = 1.05  # lossy compression takes white so far beyond the bits in use, at most
_FILL = (9999, 32767, 99999, 999999)
_HUGE = 1e9
_FEWEST_VALUES = 8  # a picture of fewer may well have its values far apart
_NO_DATA = 42113  # GDAL's tag, a text
_PHOTOMETRIC, _COLOUR_MAP, _SAMPLE_FORMAT = 262, 320, 339

Values = NDArray[Any]  # samples of any type


class NoValuesError(ValueError):
    """No pixel of a picture has a value."""

    def __init__(self) -> None:
        super().__init__("no pixel has a value: all are no-data or not finite")


@dataclass(frozen=True)
class _Stated:
    """What a file says of its samples.

    Attributes:
        bits: How many bits of a sample are in use.
        may_be_spread: By the standard, the samples of a PNG are spread over all 16 bits, and sBIT says how many of
            these mean anything. Many writers leave them small instead. Then their lower bits are in use.
        low: The smallest value.
        high: The largest value.
        no_data: The value that stands for a missing one.
        inverted: Whether 0 is white.
        unsigned: Whether Pillow's signed 32-bit integers are unsigned ones.

    """

    bits: int | None = None
    may_be_spread: bool = False
    low: float | None = None
    high: float | None = None
    no_data: float | None = None
    inverted: bool = False
    unsigned: bool = False


def load(image: Image.Image) -> Image.Image:
    """Load the first frame of an opened picture, and scale it to 8 bits where its samples have more.

    Raises:
        NoValuesError: No pixel has a value.
        Exception: What Pillow raises for a damaged file.

    """
    _mend_planes(image)
    _mend_palette(image)
    tiles = list(getattr(image, "tile", ()))
    raw = str(_raw_mode(tiles[0])) if tiles else ""
    if image.mode in ("RGB", "RGBA") and (";16" in raw or _is_deep_ppm(image, tiles)):
        return _load_colour(image, tiles)
    signed_bytes = image.mode == "L" and getattr(image, "tag_v2", {}).get(_SAMPLE_FORMAT) in (2, (2,))
    if image.mode not in ("I", "F") and not image.mode.startswith("I;") and not signed_bytes:
        return _load_bytes(image)
    stated = _stated(image, tiles)
    image.load()
    values = np.asarray(image)
    if signed_bytes:
        values = values.view(np.int8)
    if stated.unsigned:
        values = values.view(np.uint32)
    grey = _scaled(values, stated)
    return Image.fromarray(255 - grey if stated.inverted else grey)


def _load_colour(image: Image.Image, tiles: list["_Tile"]) -> Image.Image:
    stated = _stated(image, tiles)
    premultiplied = str(_raw_mode(tiles[0])).startswith("RGBa")
    if _is_deep_ppm(image, tiles):
        values = _ppm_values(image, tiles[0])
    else:
        loaded = _both_bytes(image, tiles, stated)
        if loaded is None:
            return image
        values = loaded
    colour, alpha = values[..., :3], values[..., 3:]
    most = 2.0 ** (stated.bits or _bits(colour)) - 1
    if alpha.size and alpha.max() > most:
        most = _FULL
    if premultiplied:  # by alpha, as a share of what is opaque
        colour = np.round(colour * (most / np.maximum(alpha, 1))).clip(0, _FULL).astype(np.uint16)
    pixels = _scaled(colour, stated)
    if not alpha.size:
        return Image.fromarray(pixels)
    return Image.fromarray(np.concatenate([pixels, _to_bytes(alpha, 0.0, most)], axis=2))


def _load_bytes(image: Image.Image) -> Image.Image:
    """Load a picture of which Pillow gives 8 bits; spread them where the file says that fewer are in use."""
    bits = _bits_in_bytes(image)
    image.load()
    if bits is None:
        return image
    values = np.asarray(image)
    channels = values.shape[2] if values.ndim == 3 else 1
    colour = values[..., :-1] if channels in (2, 4) else values
    if not 0 < colour.max() < 2**bits:
        return image
    if image.format != "PNG":  # which says how many; elsewhere it is what nearly all samples need, as some overshoot
        bits = max(1, int(np.quantile(colour, 0.99)).bit_length())
    pixels = _to_bytes(colour, 0.0, 2.0**bits - 1)
    if channels in (2, 4):
        pixels = np.concatenate([pixels, values[..., -1:]], axis=2)
    return Image.fromarray(pixels, image.mode)


def _bits_in_bytes(image: Image.Image) -> int | None:
    """Of how many bits the samples are at most if not all 8 are in use; None where they are as they should be."""
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        return None
    file: IO[bytes] | None = getattr(image, "fp", None)
    if image.format == "PNG":
        bits = _significant_bits(image)
        return bits if bits is not None and bits < 8 else None
    if image.format not in ("JPEG2000", "SGI") or file is None:
        return None
    before = file.tell()
    file.seek(0)
    head = file.read(4096)
    file.seek(before)
    if image.format == "SGI":
        return 7 if head[3:4] == b"\2" else None  # bytes a sample
    size = head.find(b"\xff\x4f\xff\x51")  # the start of the codestream, whose first marker has the depth
    return 7 if size >= 0 and head[size + 42 : size + 43] > b"\7" else None


def _both_bytes(image: Image.Image, tiles: list["_Tile"], stated: _Stated) -> Values | None:
    """The 16-bit samples, (H, W, channels); None where the high bytes, which `image` then has, are the picture."""
    raw_modes = [str(_raw_mode(tile)).replace("RGBa", "RGBA") for tile in tiles]
    file, kind = getattr(image, "fp", None), image.format
    others = [_opposite(raw) for raw in raw_modes]
    if all(others):
        image.tile = [_with_raw_mode(tile, raw) for tile, raw in zip(tiles, raw_modes, strict=True)]  # type: ignore[attr-defined]
    image.load()
    if file is None or not all(others):
        return None
    high = np.asarray(image)
    premultiplied = str(_raw_mode(tiles[0])).startswith("RGBa")
    if stated.no_data is None and not premultiplied and high[..., :3].max() >= 128:  # all of the bits are in use
        return None
    file.seek(0)
    again = Image.open(file, formats=[kind] if kind else None)
    again.tile = [_with_raw_mode(tile, other) for tile, other in zip(again.tile, others, strict=True)]
    again.load()
    low = np.asarray(again).astype(np.uint16)
    if raw_modes[0] == _GREY_AND_ALPHA:
        grey, alpha = low[..., 0] << 8 | low[..., 1], low[..., 2] << 8 | low[..., 3]
        return np.stack([grey, grey, grey, alpha], axis=2)
    return high.astype(np.uint16) << 8 | low


def _opposite(raw: str) -> str | None:
    """The raw mode that gives the other byte of each sample."""
    if raw == _GREY_AND_ALPHA:  # four bytes in a row, as those of an 8-bit RGBA pixel
        return "RGBA"
    base, _, order = raw.partition(";16")
    if base not in ("RGB", "RGBX", "RGBA", "R", "G", "B") or order not in _SWAPPED:
        return None
    return f"{base};16{_SWAPPED[order]}"


def _is_deep_ppm(image: Image.Image, tiles: list["_Tile"]) -> bool:
    return image.format == "PPM" and image.mode == "RGB" and bool(tiles) and tiles[0][3] == ("RGB", 65535)


def _ppm_values(image: Image.Image, tile: "_Tile") -> Values:
    file: IO[bytes] = image.fp  # type: ignore[attr-defined]
    size = image.width * image.height * 3
    file.seek(tile.offset)
    if tile.codec_name == "ppm_plain":
        numbers = re.sub(rb"#[^\r\n]*", b"", file.read()).split()[:size]
        samples = np.array(numbers, np.int64)
        if samples.size < size or samples.min() < 0 or samples.max() > _FULL:
            raise OSError("image file is truncated, or has samples out of range")
    else:
        data = file.read(2 * size)
        if len(data) < 2 * size:
            raise OSError("image file is truncated")
        samples = np.frombuffer(data, ">u2")
    return samples.astype(np.uint16).reshape(image.height, image.width, 3)


def _mend_planes(image: Image.Image) -> None:
    """Pillow reads the uncompressed planes of a 16-bit TIFF as if they had 8 bits; take the high bytes of those."""
    tags = getattr(image, "tag_v2", None)
    if tags is None or tags.get(284, 1) != 2 or set(tags.get(258, ())) != {16} or image.mode != "RGB":
        return
    order = "L" if tags.prefix == b"II" else "B"
    tiles = image.tile  # type: ignore[attr-defined]
    if all(tile[0] == "raw" and _raw_mode(tile) in ("R", "G", "B") for tile in tiles):
        image.tile = [_with_raw_mode(tile, f"{_raw_mode(tile)};16{order}") for tile in tiles]  # type: ignore[attr-defined]


def _mend_palette(image: Image.Image) -> None:
    """Take the colours of a TIFF's palette as they are where its writer left them at 8 bits instead of 16."""
    colours = getattr(image, "tag_v2", {}).get(_COLOUR_MAP)
    if image.mode == "P" and colours and 0 < max(colours) < 256:
        count = len(colours) // 3
        image.putpalette(bytes(np.reshape(colours[: 3 * count], (3, count)).T.reshape(-1).tolist()))


def _raw_mode(tile: "_Tile") -> object:
    return tile[3][0] if isinstance(tile[3], tuple) and tile[3] else tile[3]


def _with_raw_mode(tile: "_Tile", mode: str | None) -> "_Tile":
    arguments = (mode, *tile[3][1:]) if isinstance(tile[3], tuple) else mode
    return tile._replace(args=arguments)


def _stated(image: Image.Image, tiles: list["_Tile"]) -> _Stated:
    """What the file states; to be called before the picture is loaded."""
    if image.format == "PNG":
        return _Stated(bits=_significant_bits(image), may_be_spread=True)
    if image.format == "PPM" and tiles and isinstance(tiles[0][3], tuple) and tiles[0][3][-1] != 65535:
        # Pillow has scaled the samples by the maximum in the header.
        return _Stated(bits=16 if image.mode == "I" else None)
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return _Stated()
    bits = max(_numbers(tags.get(258)), default=16.0)
    return _Stated(
        bits=int(bits) if bits < 16 else None,
        low=min(_first(tags, _MIN_SAMPLE), default=None),
        high=max(_first(tags, _MAX_SAMPLE), default=None),
        no_data=min(_numbers(tags.get(_NO_DATA)), default=None),
        inverted=tags.get(_PHOTOMETRIC) == 0,
        unsigned=bits == 32 and image.mode == "I" and tags.get(_SAMPLE_FORMAT, (1,)) in (1, (1,)),
    )


def _significant_bits(image: Image.Image) -> int | None:
    """The largest number in the chunk sBIT of a PNG."""
    file: IO[bytes] = image.fp  # type: ignore[attr-defined]
    before = file.tell()
    try:
        file.seek(8)
        while len(head := file.read(8)) == 8 and head[4:] not in (b"IDAT", b"IEND"):
            length = int.from_bytes(head[:4], "big")
            if head[4:] == b"sBIT" and length <= 4:
                bits = max(file.read(length)[:3], default=0)
                return bits if 0 < bits < 16 else None
            file.seek(length + 4, 1)
        return None
    finally:
        file.seek(before)


def _first(tags: TiffImagePlugin.ImageFileDirectory_v2, names: tuple[int, ...]) -> list[float]:
    return next((numbers for name in names if (numbers := _numbers(tags.get(name)))), [])


def _numbers(value: Any) -> list[float]:
    """The finite numbers of a TIFF tag, whatever its type."""
    values = value if isinstance(value, (tuple, list)) else [value]
    numbers = []
    for one in values:
        try:
            number = float(one.strip("\0 ") if isinstance(one, str) else one)
        except (TypeError, ValueError, ZeroDivisionError):  # text, bytes, or a ratio of zeros
            continue
        if math.isfinite(number):
            numbers.append(number)
    return numbers


def _scaled(values: Values, stated: _Stated) -> NDArray[np.uint8]:
    """Numbers → 0 to 255; those that stand for no value are 0."""
    valid = _valid(values, stated.no_data)
    own = values if valid is None else values[valid]
    if not own.size:
        raise NoValuesError
    scaled = _to_bytes(values, *_limits(own.reshape(-1), stated))
    if valid is not None:
        scaled[~valid] = 0
    return scaled


def _valid(values: Values, no_data: float | None) -> NDArray[np.bool_] | None:
    """Which pixels, (H, W), have a value; None for all."""
    valid: NDArray[np.bool_] | None = None
    if values.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            valid = np.abs(values) < _HUGE  # false for NaN as well
    if no_data is not None:
        is_missing: NDArray[np.bool_] = np.isclose(values, no_data, rtol=2e-6, atol=0)  # as text, it has been rounded
        if values.ndim == 3:
            is_missing = np.all(is_missing, axis=2)
        valid = ~is_missing if valid is None else valid & ~is_missing
    return valid


def _limits(values: Values, stated: _Stated) -> tuple[float, float]:
    """Which values are black and white."""
    smallest, largest = float(values.min()), float(values.max())
    integers = values.dtype.kind != "f"
    if (given := _given_limits(values, stated)) is not None:
        return given
    if not integers or smallest < 0:
        return _usual_limits(values)
    if stated.bits is None:
        return 0.0, 2.0 ** _bits(values) - 1
    spread = stated.may_be_spread and largest and not (values & ((1 << (16 - stated.bits)) - 1)).any()
    return 0.0, _FULL if spread or largest >= 2**stated.bits else 2.0**stated.bits - 1


def _given_limits(values: Values, stated: _Stated) -> tuple[float, float] | None:
    """What the file states, unless that is all that its type can hold, or most samples are beyond it."""
    low, high = stated.low or 0.0, stated.high
    if high is None or not -_HUGE < low < high < _HUGE:
        return None
    if values.dtype.kind != "f" and low <= 0 and high in _TYPE_LIMITS:
        return None
    inside = (values >= low) & (values <= high)
    return (low, high) if inside.mean() >= 0.5 else None


def _usual_limits(values: Values) -> tuple[float, float]:
    """The range of floats or signed integers without outliers; 0 to 1 or to 255 where that is what they seem to be."""
    values = _without_fill(values)
    some = values[:: max(1, values.size // 1_000_000)].astype(np.float64)
    first, last = np.quantile(some, [0.01, 0.99])
    width = last - first
    inside = values[(values >= first - width) & (values <= last + width)] if width else values
    low, high = float(inside.min()), float(inside.max())
    if low >= 0 and values.dtype.kind == "f":
        if 0.25 < high <= 1:
            return 0.0, 1.0
        if 64 < high <= 255:
            return 0.0, 255.0
    return low, high


def _without_fill(values: Values) -> Values:
    """The values but for a number at either end that seems to stand for none, such as −9999 among shares of 1.

    That is one below zero, or of the usual large ones, which comes several times, and is farther from all others than
    these are from each other. What is clipped at white, or black, is no such number.
    """
    for _ in range(4):  # at each end, and perhaps two kinds of them
        low, high = values.min(), values.max()
        for end in (low, high):
            others = values[values != end]
            if (
                (end < 0 or end in _FILL or end >= _HUGE)
                and 1 < others.size < values.size - 1
                and min(abs(float(others.min()) - float(end)), abs(float(others.max()) - float(end)))
                > float(others.max()) - float(others.min())
                and np.unique(others[:: max(1, others.size // 10_000)]).size >= _FEWEST_VALUES
            ):
                values = others
                break
        else:
            return values
    return values


def _bits(values: Values) -> int:
    """How many bits are in use; what is but a little beyond some bits came of lossy compression."""
    largest = int(values.max())
    bits = max(1, largest.bit_length())
    return bits - 1 if bits > 8 and largest < _OVERSHOOT * 2 ** (bits - 1) else bits


def _to_bytes(values: Values, low: float, high: float) -> NDArray[np.uint8]:
    with np.errstate(all="ignore"):  # damaged files hold NaNs of all kinds, of which some warn where they are cast
        wide = values.astype(np.float64 if values.dtype.itemsize > 2 else np.float32)
        scaled = (wide - low) * (255.0 / max(high - low, 1e-30))
        return np.nan_to_num(np.clip(np.round(scaled), 0, 255)).astype(np.uint8)
