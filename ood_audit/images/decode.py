"""Reading one image file: any format of `formats`, to upright 8-bit RGB.

Whatever is wrong with a file ends as `Decoded.error`, one clear sentence; nothing is raised.
"""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ood_audit.images.formats import formats
from ood_audit.images.storage import read
from ood_audit.text import printable

Pixels = NDArray[np.uint8]
PIXEL_LIMIT = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # Pillow's own; half a gigabyte as RGB
# Odd metadata, large pictures below the limit: what matters is whether the pixels decode. (Not `catch_warnings` around
# each image: it is not safe in threads.)
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True, slots=True)
class Decoded:
    """What was read of one file: facts, and either `pixels` or an `error`.

    `width` and `height` are those of the upright picture (EXIF orientation applied); `content_hash` is 128 bits of
    BLAKE2b of the file's bytes, in hexadecimal.
    """

    width: int | None = None
    height: int | None = None
    format: str | None = None
    size_bytes: int = 0
    mtime_ns: int = 0
    content_hash: str | None = None
    pixels: Pixels | None = None
    error: str | None = None


def decode(uri: str, prepare: Callable[[Image.Image], Pixels]) -> Decoded:
    """Read, decode and `prepare` one image.

    Args:
        uri: as `storage` names it.
        prepare: from an upright RGB image to the pixels that the model wants; (H, W, 3) uint8.

    Returns:
        The facts with `pixels`, or with `error`. The size and time are those of the bytes that were read.

    """
    facts: dict[str, Any] = {}
    try:
        content = read(uri)
        data = content.data
        facts.update(size_bytes=content.size_bytes, mtime_ns=content.mtime_ns)
        facts.update(content_hash=blake2b(data, digest_size=16).hexdigest())
        if not data:
            return Decoded(**facts, error="empty file")
        with Image.open(io.BytesIO(data), formats=formats()) as image:
            facts.update(format=image.format, width=image.width, height=image.height)
            upright = to_rgb(image)
        facts.update(width=upright.width, height=upright.height)
        return Decoded(**facts, pixels=prepare(upright))
    except Exception as error:  # Pillow's readers raise anything at all on hostile bytes
        return Decoded(**facts, error=_explain(error, facts))


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
    image.load()
    orientation = _orientation(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        image = _eight_bits(image)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        image = white
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


def _eight_bits(image: Image.Image) -> Image.Image:
    """Integers are taken as 16 bits deep (8, where none is over 255), floats as [0, 1] or [0, 255]; else min to max."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I;16"):
        low, high = 0.0, 65535.0
    elif low >= 0.0:
        integers = image.mode != "F"
        steps = (255.0, 65535.0) if integers else (1.0, 255.0)
        low, high = 0.0, next((step for step in steps if high <= step), high)
    scaled = (values - low) * (255.0 / max(high - low, 1e-12))
    return Image.fromarray(np.round(scaled).astype(np.uint8), "L")


def _explain(error: Exception, facts: dict[str, Any]) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file, or a link to nothing"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, UnidentifiedImageError):
        return "not an image: its bytes are of no known format"
    if isinstance(error, Image.DecompressionBombError):
        return f"decompression bomb: more than {PIXEL_LIMIT:,} pixels"
    if isinstance(error, MemoryError):
        return f"too large to decode: {facts.get('width')} x {facts.get('height')} pixels"
    reason = printable(str(error) or type(error).__name__)
    return f"damaged {facts.get('format') or 'image'}: {reason}"
