"""The pictures of a page: the more there are, the smaller, so that the page stays one file of less than 25 MB."""

import io
import math
from collections.abc import Sequence

from PIL import Image

from ood_audit.images.access import by_few, readers
from ood_audit.reports.model import Sprites

BUDGET = 11_600_000  # bytes for all pictures of a page, which as base64 take a third more

# Pixels of the longer side, JPEG quality, and the bytes that a photograph takes: the mean over 150 of Caltech-101 and
# PACS (which are themselves about 300 pixels wide: the first is an estimate).
_STEPS = ((480, 75, 33_000), (320, 70, 10_900), (224, 65, 7_200), (160, 60, 4_100), (128, 50, 2_800), (96, 45, 1_900))
_SPRITE = 64  # pixels of each square of a sprite sheet: 3,000 of them take 2 MB
MOST = BUDGET // _STEPS[-1][2]  # pictures; the budget has no room for more


def thumbnails(uris: Sequence[str], *, budget: int = BUDGET) -> list[bytes | None]:
    """JPEGs that together take no more than `budget` bytes; None where a file can't be read any more.

    Args:
        uris: `file:///…` of the images.
        budget: how many bytes they may take. It is exceeded only if they do even at 96 pixels.

    """
    from ood_audit.images.decode import thumbnail

    steps = [step for step in _STEPS if step[2] * len(uris) <= budget] or [_STEPS[-1]]
    size, quality, _ = steps[0]
    with readers(uris) as pool:
        pictures = list(by_few(pool, lambda uri: thumbnail(uri, size, quality), uris))
        for size, quality, _ in steps[1:]:
            if sum(len(picture or b"") for picture in pictures) <= budget:
                break
            pictures = list(by_few(pool, lambda picture: picture and _smaller(picture, size, quality), pictures))  # noqa: B023
    return pictures


def sprites(uris: Sequence[str]) -> Sprites | None:
    """One picture of all images, each in a square of its own, which stays grey where a file can't be read any more.

    Args:
        uris: `file:///…` of at most some thousand images; None is returned where there are none.

    """
    from ood_audit.images.decode import reduced, to_jpeg

    if not uris:
        return None
    columns = math.ceil(math.sqrt(len(uris)))
    rows = math.ceil(len(uris) / columns)
    sheet = Image.new("RGB", (columns * _SPRITE, rows * _SPRITE), "grey")
    with readers(uris) as pool:
        for i, picture in enumerate(by_few(pool, lambda uri: reduced(uri, _SPRITE, Image.Resampling.BOX), uris)):
            if picture is not None:
                left, top = i % columns * _SPRITE, i // columns * _SPRITE
                sheet.paste(picture, (left + (_SPRITE - picture.width) // 2, top + (_SPRITE - picture.height) // 2))
    return Sprites(to_jpeg(sheet, 50), _SPRITE, columns, list(uris))


def _smaller(picture: bytes, size: int, quality: int) -> bytes:
    from ood_audit.images.decode import to_jpeg

    with Image.open(io.BytesIO(picture), formats=["JPEG"]) as image:
        image.thumbnail((size, size), Image.Resampling.BICUBIC)
        return to_jpeg(image, quality)
