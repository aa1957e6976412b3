"""Reading one image file: any format of `formats`, to upright 8-bit RGB.

Whatever is wrong with a file ends as `Decoded.error`, one clear sentence; nothing is raised.
"""

import io
import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, UnidentifiedImageError

from ood_audit.images import deep, exif
from ood_audit.images.access import read
from ood_audit.images.content import box_hash, content_hash
from ood_audit.images.formats import formats, unreadable_compression, why_unknown
from ood_audit.images.notes import TOO_SMALL
from ood_audit.images.quality import measure
from ood_audit.images.uri import Box, image_and_box, shown_in_picture
from ood_audit.text import printable
from ood_audit.values import Row

Pixels = NDArray[np.uint8]
PIXEL_LIMIT = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # Pillow's own; half a gigabyte as RGB
_LEAST = 1 / 7  # the model sees nothing but blur in a box with a smaller share of its input's side (32 of 224 pixels)
_MARGIN = 0.1  # how much of a box's width and height is shown around it
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

    What follows `note` is there where the picture was inspected: see `quality.Quality` and `exif.facts`. `look` is what
    an encoder has made of the pixels, see `encoders.looks`.
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
    look: bytes | None = None


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
    image, box = image_and_box(uri)
    if box is not None:
        return load(image, inspect=inspect).part(box, prepare, inspect=inspect)
    facts: Row = {}
    data, compression = b"", None
    try:
        content = read(uri)
        data = content.data
        facts.update(size_bytes=content.size_bytes, mtime_ns=content.mtime_ns)
        facts.update(content_hash=content_hash(data))
        if not data:
            return Decoded(**facts, error="empty file")
        with Image.open(io.BytesIO(data), formats=formats()) as opened:
            whole = opened.size
            compression = unreadable_compression(opened) if opened.format == "TIFF" else None
            facts.update(format=opened.format, width=opened.width, height=opened.height)
            if at_least is not None:
                opened.draft(None, (at_least, at_least))
            reduced = opened.size != whole
            upright = to_rgb(opened)
            seen = exif.facts(opened) if inspect else {}
            if not reduced:
                whole = upright.size
            elif _orientation(opened) in _ON_ITS_SIDE:
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


@dataclass(frozen=True, slots=True)
class Loaded:
    """An image that was decoded once for all that is wanted of it: its facts, and upright pixels without an error."""

    facts: Decoded
    upright: Image.Image | None

    def part(self, box: Box | None, prepare: Callable[..., Pixels], *, inspect: bool = False) -> Decoded:
        """The image itself, or what is in a box with a margin of a tenth on each side, as `decode` gives it.

        The width and height of a box are its own, without the margin.
        """
        facts = self.facts if box is None else _facts_of(box, self.facts)
        if self.upright is None:
            return facts
        seen = self.upright if box is None else _crop(self.upright, box)
        if seen is None:
            size = f"{self.upright.width} × {self.upright.height}"
            return replace(facts, error=f"the box is outside of its image, which has {size} pixels")
        try:
            pixels = prepare(seen)
        except Exception as error:  # as in `decode`
            return replace(facts, error=_explain(error, {"format": facts.format}, b""))
        if inspect:
            facts = replace(facts, **asdict(measure(seen)))
        note = facts.note if box is None else _too_small(box, pixels.shape[0]) or _few_levels(seen)
        return replace(facts, pixels=pixels, note=note)


def load(uri: str, *, inspect: bool = False) -> Loaded:
    """Read and decode an image at its full size; see `decode`."""
    uprights: list[Image.Image] = []

    def keep(upright: Image.Image) -> Pixels:
        uprights.append(upright)
        return np.empty((0, 0, 3), np.uint8)

    facts = replace(decode(uri, keep, inspect=inspect), pixels=None)
    return Loaded(facts, None if facts.error is not None else uprights[0])


def _facts_of(box: Box, image: Decoded) -> Decoded:
    known = image.content_hash and box_hash(image.content_hash, box)
    size = max(1, round(box.width)), max(1, round(box.height))
    return replace(image, width=size[0], height=size[1], content_hash=known, note=None)


def _too_small(box: Box, input_size: int) -> str | None:
    """A note on a box of few pixels, for a model that sees so many a side."""
    if np.sqrt(box.width * box.height) >= _LEAST * input_size:
        return None
    return f"{TOO_SMALL}: {max(1, round(box.width))} × {max(1, round(box.height))} pixels"


def _crop(image: Image.Image, box: Box) -> Image.Image | None:
    """What is in a box, with its margin; None where that is outside of the image."""
    dx, dy = _MARGIN * box.width, _MARGIN * box.height
    wide = Box(box.id, box.x - dx, box.y - dy, box.width + 2 * dx, box.height + 2 * dy).within(*image.size)
    own = box.within(*image.size)
    if own.width <= 0 or own.height <= 0:
        return None
    left, upper = int(wide.x), int(wide.y)
    right, lower = int(np.ceil(wide.x + wide.width)), int(np.ceil(wide.y + wide.height))
    return image.crop((left, upper, right, lower))


def _nearly_clipped(pixels: Pixels) -> bool:
    """Whether a tenth is all but white or black: paper, say, with grain.

    Decoding clips the grain, and a reduced scale averages before that. The difference is a fraction of a grey level,
    yet on empty areas it can move a feature.
    """
    near = ((pixels >= 250) & (pixels < 255)) | ((pixels > 0) & (pixels <= 5))
    return int(np.count_nonzero(near)) > 0.1 * near.size


def thumbnail(uri: str, size: int, quality: int = 70) -> bytes | None:
    """A JPEG of at most `size` × `size` pixels; None where the file can't be read any more.

    Args:
        uri: of an image, or of a box in one; by `uri.in_picture` that of a whole picture with a box drawn in it.
        size: pixels of the longer side.
        quality: of the JPEG.

    """
    picture = reduced(uri, size)
    return None if picture is None else to_jpeg(picture, quality)


def reduced(uri: str, size: int, resampling: Image.Resampling = Image.Resampling.BICUBIC) -> Image.Image | None:
    """A picture of at most `size` × `size` pixels; None where the file can't be read any more."""
    uri, is_whole = shown_in_picture(uri)
    image, box = image_and_box(uri)
    try:
        with Image.open(io.BytesIO(read(image).data), formats=formats()) as opened:
            if box is None:
                # JPEG's own reduction to a picture that is just large enough: twice as large takes twice as long.
                share = size / max(opened.size)
                opened.draft("RGB", (math.ceil(share * opened.width), math.ceil(share * opened.height)))
            picture: Image.Image | None = to_rgb(opened)
        if picture is not None and box is not None and not is_whole:
            picture = _crop(picture, box)
        if picture is None:
            return None
        whole = picture.size
        picture.thumbnail((size, size), resampling)
        if box is not None and is_whole:
            _draw(picture, box, picture.width / whole[0])
        return picture
    except Exception:  # as in `decode`: a picture that is gone or broken must not stop a report
        return None


def to_jpeg(picture: Image.Image, quality: int) -> bytes:
    """A picture as JPEG: a third more bytes than WebP, in a tenth of the time."""
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality)
    return out.getvalue()


def grey(uri: str, side: int) -> Image.Image | None:
    """A picture in grey with so many pixels of the shorter side; None where it can't be read any more.

    Args:
        uri: of an image, not of a box.
        side: pixels.

    """
    try:
        with Image.open(io.BytesIO(read(uri).data), formats=formats()) as opened:
            opened.draft("L", (2 * side, 2 * side))
            upright = to_rgb(opened).convert("L")
        scale = side / min(upright.size)
        size = tuple(max(side, round(scale * length)) for length in upright.size)
        return upright.resize((size[0], size[1]), Image.Resampling.BOX)
    except Exception:  # as in `decode`
        return None


def _draw(picture: Image.Image, box: Box, scale: float) -> None:
    """Draw a box in a picture of another scale: a light line in a dark one, to be seen on any ground."""
    left, upper = scale * box.x, scale * box.y
    right, lower = scale * (box.x + box.width), scale * (box.y + box.height)
    draw = ImageDraw.Draw(picture)
    for more, colour in ((2, "black"), (1, "yellow"), (0, "yellow"), (-1, "black")):
        if right - left + 2 * more > 0 and lower - upper + 2 * more > 0:
            draw.rectangle((left - more, upper - more, right + more, lower + more), outline=colour)


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


def _explain(error: Exception, facts: Row, data: bytes) -> str:
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
