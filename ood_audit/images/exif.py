"""What a camera wrote into a picture: when it was taken, by which camera, and where."""

from datetime import datetime

from PIL import Image

from ood_audit.text import storable
from ood_audit.values import Row

_EXIF, _GPS = 0x8769, 0x8825  # the tags of the directories of EXIF and GPS
_MAKE, _MODEL = 0x010F, 0x0110
_TAKEN = (0x9003, 0x9004)  # taken, digitized; the time in the first directory is that of the last change
_LONGEST = 100  # characters of a text that are kept


def facts(image: Image.Image) -> Row:
    """`taken_at` (local time, as `2024-05-01 12:00:00`), `camera`, `latitude` and `longitude` (degrees), where known.

    Args:
        image: An opened image, as nothing of the pixels is needed.

    """
    try:
        exif = image.getexif()
        if not exif:
            return {}
        details, place = exif.get_ifd(_EXIF), exif.get_ifd(_GPS)
        found = {
            "taken_at": next((time for tag in _TAKEN if (time := _time(details.get(tag)))), None),
            "camera": _camera(exif.get(_MAKE), exif.get(_MODEL)),
            "latitude": _degrees(place.get(2), place.get(1), "S", 90),
            "longitude": _degrees(place.get(4), place.get(3), "W", 180),
        }
    except Exception:  # broken EXIF does not make the picture unreadable
        return {}
    return {name: value for name, value in found.items() if value is not None}


def _text(value: object) -> str:
    return storable(" ".join(value.replace("\0", " ").split()))[:_LONGEST] if isinstance(value, str) else ""


def _time(value: object) -> str | None:
    try:
        return datetime.strptime(_text(value), "%Y:%m:%d %H:%M:%S").isoformat(sep=" ")
    except ValueError:
        return None


def _camera(make: object, model: object) -> str | None:
    maker, name = _text(make), _text(model)
    return (name if name.startswith(maker) else f"{maker} {name}".strip()) or None


def _degrees(value: object, side: object, negative: str, most: float) -> float | None:
    if not isinstance(value, tuple) or len(value) != 3:
        return None
    degrees = sum((float(part) / float(60**power) for power, part in enumerate(value)), 0.0)
    if not 0 <= degrees <= most:  # also what is not a number
        return None
    return -degrees if _text(side).upper() == negative else degrees
