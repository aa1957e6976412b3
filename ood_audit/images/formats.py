"""Which files are images: the formats that Pillow decodes by itself, by extension or by first bytes.

And what a file is that is none of them.
"""

import importlib
import io
import re
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from PIL import Image, TiffImagePlugin

# Pillow can name these but not decode them, or hands them to an outside program (EPS runs Ghostscript).
_NOT_DECODED = {"BUFR", "EPS", "FPX", "GRIB", "HDF5", "MIC", "MPEG", "WMF"}
# Files of these names are pictures as well. Many are JPEGs by their content; others get a row that says what to do.
_MORE_EXTENSIONS = (".heic", ".heif", ".hif", ".jxl")
_HEIF = "HEIC, which Pillow cannot read by itself: pip install pillow-heif, or convert it to JPEG"
_VIDEO = "a video, not an image: extract its frames"
_UNKNOWN = "not an image: its bytes are of no known format"
_WEB_PAGE = "a web page, not an image: download the image again"
_OTHERS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"PK\x03\x04", "a zip archive, not an image: name it .zip, and it is read as a source"),
    (0, b"Rar!", "a RAR archive, not an image: unpack it, and embed the folder"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive, not an image: unpack it, and embed the folder"),
    (0, b"\x1f\x8b", "a gzip file, not an image: unpack it first"),
    (257, b"ustar", "a tar file, not an image: name it .tar, and it is read as a source"),
    (0, b"%PDF", "a PDF, not an image: convert its pages to PNG or JPEG"),
    (0, b"%!PS", "not an image of pixels but PostScript: convert it to PNG"),
    (128, b"DICM", "DICOM, which Pillow cannot read: convert it to PNG or TIFF"),
    (4, b"ftypcrx ", "a camera's raw picture, not an image: develop it to JPEG or TIFF"),
    (0, b"\x1aE\xdf\xa3", _VIDEO),
    (0, b"\xff\x0a", "JPEG XL, which Pillow cannot read: convert it to JPEG or PNG"),
    (4, b"JXL ", "JPEG XL, which Pillow cannot read: convert it to JPEG or PNG"),
    (0, b"PF\n", "a PFM in colour, which Pillow cannot read: convert it to PNG, or to a TIFF of 16 bits"),
    (0, b"P7\n", "a PAM, which Pillow cannot read: convert it to PNG or TIFF"),
    (0, b"#?R", "a Radiance HDR, which Pillow cannot read: convert it to PNG, or to a TIFF of 16 bits"),
    (0, b"v/1\x01", "OpenEXR, which Pillow cannot read: convert it to PNG, or to a TIFF of 16 bits"),
    (0, b"version https://git-lfs", "not an image but a pointer of Git LFS: run `git lfs pull`"),
)
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_COMPRESSIONS = {
    6: "old-style JPEG",
    34661: "JBIG",
    34712: "JPEG 2000",
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    34887: "LERC",
    34892: "lossy JPEG",
    34925: "LZMA",
    34933: "PNG",
    34934: "JPEG XR",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}


@lru_cache(maxsize=1)
def formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read, the most frequent first, which is also tried first."""
    Image.init()
    with suppress(ImportError):  # an optional package, which reads HEIC
        importlib.import_module("pillow_heif").register_heif_opener()
    return ("JPEG", *(name for name in Image.ID if name not in {*_NOT_DECODED, "JPEG"}))


@lru_cache(maxsize=1)
def extensions() -> frozenset[str]:
    """Lower-case file extensions of `formats`, with the dot."""
    names = {*formats(), "MPO"}  # a JPEG with more behind it, which the JPEG reader opens
    registered = (suffix for suffix, name in Image.registered_extensions().items() if name in names)
    return frozenset((*registered, *_MORE_EXTENSIONS))


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


def why_unknown(data: bytes) -> str:
    """What the bytes of a file are that no format accepts, and what can be done about it."""
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS:
        return _HEIF
    for at, magic, words in _OTHERS:
        if data[at : at + len(magic)] == magic:
            return words
    if data[4:8] == b"ftyp" and data[8:12] not in (b"avif", b"avis"):
        return _VIDEO
    if data[:3] == b"\xff\xd8\xff":
        return _unknown_jpeg(data)
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _unknown_tiff(data)
    if b"<svg" in data[:1000]:
        return "not an image of pixels but SVG: convert it to PNG"
    if data[:1000].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return _WEB_PAGE
    return _UNKNOWN


def unreadable_compression(image: Image.Image) -> str | None:
    """For a TIFF whose compression the installed libtiff lacks: words that say so."""
    number = getattr(image, "tag_v2", {}).get(259)
    from ood_audit.images.noise import libtiff

    library = libtiff()
    if number not in _COMPRESSIONS or library is None or library.TIFFIsCODECConfigured(number):
        return None
    return _compressed(number)


def _compressed(number: int) -> str:
    name = _COMPRESSIONS.get(number, f"number {number}")
    return f"a TIFF with a compression that Pillow cannot read ({name}): save it with LZW or Deflate compression"


def _unknown_jpeg(data: bytes) -> str:
    frame = re.search(rb"\xff[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf]\0.(.)", data, re.DOTALL)
    bits = frame[1][0] if frame else 8
    if bits == 8:
        return _UNKNOWN
    return f"a JPEG of {bits} bits a sample, which Pillow cannot read: convert it to one of 8 bits, or to PNG"


def _unknown_tiff(data: bytes) -> str:
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[:16] if data[2:3] == b"+" or data[3:4] == b"+" else data[:8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        compression, bits, samples = tags.get(259, 1), tags.get(258, (1,)), tags.get(277, 1)
        if compression not in TiffImagePlugin.COMPRESSION_INFO:
            return _compressed(compression)
        if not (tags.get(256) and tags.get(257)):
            raise ValueError
        kind = {2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}.get(tags.get(339, (1,))[0], "")
        pixels = f"{samples} sample{'s' * (samples != 1)} of {max(bits)} {kind} bits".replace("  ", " ")
        return (
            f"a TIFF with pixels that Pillow cannot read ({pixels}): convert it to 1 or 3 samples of 8 or 16 bits, or "
            "to 1 of 32-bit floats"
        )
    except Exception:  # the directory of a damaged file
        return "damaged TIFF: its directory makes no sense"
