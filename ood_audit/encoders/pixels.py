"""What CLIP does to a picture before its tower sees it, by Pillow alone."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels: TypeAlias = "NDArray[np.uint8]"
REDUCED = 3  # how many times the model's input size a JPEG keeps at least, for features that count as the same


def shortest(image: Image.Image, size: int, whole: tuple[int, int] | None = None) -> Pixels:
    """An upright RGB image → (size, size, 3) uint8: the shorter side resized, bicubic, and the centre cut out.

    Pixel by pixel what torchvision's Resize and CenterCrop make of it.

    Args:
        image: decoded in full, or at reduced scale.
        size: of the model's input.
        whole: the size in full of an image that was decoded at reduced scale.

    """
    if whole is not None:
        image = resize_reduced(image, whole, size, Image.Resampling.BICUBIC)
    else:
        image = trim(image)
        image = image.resize(_sides(image.size, size), Image.Resampling.BICUBIC)
    left, top = (round((side - size) / 2.0) for side in image.size)
    return np.asarray(image.crop((left, top, left + size, top + size)), dtype=np.uint8)


def trim(image: Image.Image) -> Image.Image:
    """Cut the ends off very long pictures (over 8:1), which the centre crop drops anyway.

    Resizing the shorter side of 4000 × 3 pixels to 224 would make 300,000 × 224 of them first.
    """
    width, height = image.size
    keep = 8 * min(width, height)
    if max(width, height) <= keep:
        return image
    left, top = max(0, (width - keep) // 2), max(0, (height - keep) // 2)
    return image.crop((left, top, width - left, height - top))


def resize_reduced(
    image: Image.Image, whole: tuple[int, int], size: int | tuple[int, int], resampling: Image.Resampling
) -> Image.Image:
    """As the whole would be resized: its sizes, rounded, differ from those of the reduced one.

    A reduced picture that has been rounded up ends in a part of a pixel, at either side, as it has been turned.

    Args:
        image: the reduced one.
        whole: the width and height in full.
        size: what the shorter side becomes, or the width and height.
        resampling: how.

    """
    width, height = whole
    to = _sides(whole, size) if isinstance(size, int) else size
    scale = round(max(whole) / max(image.size))
    left, top = (image.width - width / scale) / 2, (image.height - height / scale) / 2
    box = (left, top, image.width - left, image.height - top)
    return image.resize(to, resampling, box=box)


def _sides(sides: tuple[int, int], short: int) -> tuple[int, int]:
    width, height = sides
    return int(short * width / min(sides)), int(short * height / min(sides))
