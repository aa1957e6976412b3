"""Which files are images: the formats that Pillow decodes by itself, by extension or by first bytes."""

from functools import lru_cache
from pathlib import Path

from PIL import Image

# Pillow can name these but not decode them, or hands them to an outside program (EPS runs Ghostscript).
_NOT_DECODED = {"BUFR", "EPS", "FPX", "GRIB", "HDF5", "MIC", "MPEG", "WMF"}


@lru_cache(maxsize=1)
def formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read, e.g. `JPEG`."""
    Image.init()
    return tuple(name for name in Image.ID if name not in _NOT_DECODED)


@lru_cache(maxsize=1)
def extensions() -> frozenset[str]:
    """Lower-case file extensions of `formats`, with the dot."""
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats())


def looks_like_image(path: str) -> bool:
    """Whether a file without an extension starts as an image does. Costs one short read."""
    try:
        with Path(path).open("rb") as file:
            prefix = file.read(16)
    except OSError:
        return False
    return any(
        accept is not None and prefix and accept(prefix) is True
        for _, accept in (Image.OPEN[name] for name in formats())
    )
