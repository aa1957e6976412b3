"""Reading one image file: any format of `formats`, to upright 8-bit RGB.

Whatever is wrong with a file ends as `Decoded.error`, one clear sentence; nothing is raised.
"""

import io
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ood_audit.images import deep, exif
from ood_audit.images.access import read
from ood_audit.images.formats import formats, unreadable_compression, why_unknown
from ood_audit.images.quality import measure
from ood_audit.text import printable

Pixels = NDArray[np.uint8]
PIXEL_LIMIT = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # Pillow's own; half a gigabyte as RGB
_FEW_LEVELS = 8
_ON_ITS_SIDE = (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)
# Odd metadata, large pictures below the limit: what matters is whether the pixels decode. (Not `catch_warnings` around
# each image: it is not safe in threads.)
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True, slots=True)
class Decoded:
    """What was read of one file: facts, and either `pixels` or an `error`.

    `note` says what is odd about a picture that could be read: it has fewer than 8 grey levels.

    `width` and `height` are those of the upright picture (EXIF orientation applied); `content_hash` is 128 bits of
    BLAKE2b of the file's bytes, in hexadecimal.

    What follows `note` is there where the picture was inspected: see `quality.Quality` and `exif.facts`.
    """

    width: int | None = None
    height: int | None = None
    format: str | None = None
    size_bytes: int = 0
    mtime_ns: int = 0
    content_hash: str | None = None
    pixels: Pixels | None = None
    error: str | None = None
    note: str | None = None
    brightness: float | None = None
    shadows: float | None = None
    highlights: float | None = None
    sharpness: float | None = None
    entropy: float | None = None
    saturation: float | None = None
    picture_hash: str | None = None
    taken_at: str | None = None
    camera: str | None = None
    latitude: float | None = None
    longitude: float | None = None


def decode(uri: str, prepare: Callable[..., Pixels], *, at_least: int | None = None, inspect: bool = False) -> Decoded:
    """Read, decode and `prepare` one image.

    Args:
        uri: as `uri` names it.
        prepare: from an upright RGB image to the pixels that the model wants; (H, W, 3) uint8. Where the image was
            decoded at reduced scale, the size of the whole one follows as a second argument.
        at_least: None, or how many pixels of the shorter side are enough. A JPEG is then decoded at a half, a quarter
            or an eighth of its size, in a fraction of the time.
        inspect: also say what the picture looks like, and what its EXIF says.

    Returns:
        The facts with `pixels`, or with `error`. The size and time are those of the bytes that were read; width and
        height are those of the whole picture.

    """
    facts: dict[str, Any] = {}
    data, compression = b"", None
    try:
        content = read(uri)
        data = content.data
        facts.update(size_bytes=content.size_bytes, mtime_ns=content.mtime_ns)
        facts.update(content_hash=blake2b(data, digest_size=16).hexdigest())
        if not data:
            return Decoded(**facts, error="empty file")
        with Image.open(io.BytesIO(data), formats=formats()) as image:
            whole = image.size
            compression = unreadable_compression(image) if image.format == "TIFF" else None
            facts.update(format=image.format, width=image.width, height=image.height)
            if at_least is not None:
                image.draft(None, (at_least, at_least))
            reduced = image.size != whole
            upright = to_rgb(image)
            seen = exif.facts(image) if inspect else {}
            if not reduced:
                whole = upright.size
            elif _orientation(image) in _ON_ITS_SIDE:
                whole = whole[::-1]
        facts.update(width=whole[0], height=whole[1])
        pixels = prepare(upright, whole) if reduced else prepare(upright)
        if reduced and _nearly_clipped(pixels):
            return decode(uri, prepare, inspect=inspect)
        if inspect:
            seen |= asdict(measure(upright))
        return Decoded(**facts, **seen, pixels=pixels, note=_few_levels(upright))
    except Exception as error:  # Pillow's readers raise anything at all on hostile bytes
        return Decoded(**facts, error=compression or _explain(error, facts, data))


def _nearly_clipped(pixels: Pixels) -> bool:
    """Whether a tenth is all but white or black: paper, say, with grain.

    Decoding clips the grain, and a reduced scale averages before that. The difference is a fraction of a grey level,
    yet on empty areas it can move a feature.
    """
    near = ((pixels >= 250) & (pixels < 255)) | ((pixels > 0) & (pixels <= 5))
    return float(near.mean()) > 0.1


def thumbnail(uri: str, size: int, quality: int = 70) -> bytes | None:
    """A WebP picture of at most `size` × `size` pixels; None where the file can't be read any more."""
    try:
        with Image.open(io.BytesIO(read(uri).data), formats=formats()) as image:
            image.draft("RGB", (2 * size, 2 * size))
            picture = to_rgb(image)
        picture.thumbnail((size, size), Image.Resampling.BICUBIC)
        out = io.BytesIO()
        picture.save(out, "WEBP", quality=quality)
        return out.getvalue()
    except Exception:  # as in `decode`: a picture that is gone or broken must not stop a report
        return None


def to_rgb(image: Image.Image) -> Image.Image:
    """The first frame, upright, as 8-bit RGB: transparency over white, deeper than 8 bits scaled down."""
    loaded = deep.load(image)
    orientation = _orientation(image)
    image = loaded
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        image = white
    if image.mode != "RGB":  # else it would be copied
        image = image.convert("RGB")
    return image if orientation is None else image.transpose(orientation)


def _orientation(image: Image.Image) -> Image.Transpose | None:
    try:
        value = int(image.getexif().get(0x0112, 1))
    except Exception:  # broken EXIF does not make the picture unreadable
        return None
    return {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(value)


def _few_levels(image: Image.Image) -> str | None:
    """A note on a picture with fewer than 8 grey levels."""
    some = image.resize((64, 64), Image.Resampling.NEAREST)  # has no level that the picture does not have
    if min(image.size) > 64 and _levels(some) >= _FEW_LEVELS:
        return None
    levels = _levels(image)
    return None if levels >= _FEW_LEVELS else f"only {levels} grey level{'s' * (levels > 1)}"


def _levels(image: Image.Image) -> int:
    histogram = image.convert("L").histogram()
    return len(histogram) - histogram.count(0)


def _explain(error: Exception, facts: dict[str, Any], data: bytes) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file, or a link to nothing"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, UnidentifiedImageError):
        return why_unknown(data)
    if isinstance(error, deep.NoValuesError):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        return f"decompression bomb: more than {PIXEL_LIMIT:,} pixels"
    if isinstance(error, MemoryError):
        return f"too large to decode: {facts.get('width')} x {facts.get('height')} pixels"
    reason = printable(str(error) or type(error).__name__)
    return f"damaged {facts.get('format') or 'image'}: {reason}"
