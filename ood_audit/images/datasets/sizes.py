"""The size of an image by its header."""

from PIL import Image

from ood_audit.images.formats import formats

_ON_ITS_SIDE = (5, 6, 7, 8)  # orientations of EXIF


def upright_size(path: str) -> tuple[int, int] | None:
    """Width and height of an upright image file in pixels; None where it can't be read."""
    try:
        with Image.open(path, formats=formats()) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112) in _ON_ITS_SIDE
    except Exception:  # Pillow's readers raise anything at all on hostile bytes
        return None
    return (height, width) if turned else (width, height)
