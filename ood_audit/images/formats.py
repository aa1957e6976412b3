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
    names = {*formats(), "MPO"}  # a JPEG with more behind it, which the JPEG reader opens
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in names)


def looks_like_image(path: str) -> bool:
    """Whether a file without an extension has an image's header; one short read, where it does not begin as one."""
    try:
        with Path(path).open("rb") as file:
            prefix = file.read(16)
            accepts = [Image.OPEN[name][1] for name in formats()]
            if not any(accept is not None and prefix and accept(prefix) is True for accept in accepts):
                return False
            with Image.open(file, formats=formats()):
                return True
    except Exception:  # Pillow's readers raise anything at all on hostile bytes
        return False
