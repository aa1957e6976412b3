"""Every kind of picture that Pillow reads, and every kind of broken file."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ood_audit.encoders.clip import AGREEMENT
from ood_audit.images.decode import decode, thumbnail, to_rgb
from ood_audit.images.sources import file_uri
from tests.conftest import EXAMPLES

PHOTO = EXAMPLES / "images" / "sunflower"


@pytest.fixture(scope="module")
def photo():
    return Image.open(sorted(PHOTO.iterdir())[0]).convert("RGB")


def feature(encoder, path):
    result = decode(file_uri(str(path)), encoder.prepare)
    assert result.error is None, result.error
    return encoder.encode_images([result.pixels])[0]


FORMATS: dict[str, dict[str, Any]] = {
    "png": {},
    "bmp": {},
    "gif": {},
    "tiff": {},
    "webp": {"quality": 90},
    "ppm": {},
    "tga": {},
    "jp2": {},
    "ico": {"sizes": [(256, 256)]},
    "pcx": {},
    "sgi": {},
    "qoi": {},
    "avif": {"quality": 90},
    "jpeg": {"quality": 90, "progressive": True},
}


@pytest.mark.parametrize("extension", FORMATS)
def test_formats_give_the_same_feature(tmp_path, photo, encoder, extension):
    photo = photo.resize((256, 256))
    photo.save(tmp_path / "plain.png")
    photo.save(tmp_path / f"x.{extension}", **FORMATS[extension])
    # GIF has 256 colours; the others lose next to nothing
    assert feature(encoder, tmp_path / "plain.png") @ feature(encoder, tmp_path / f"x.{extension}") > 0.97


@pytest.mark.parametrize("mode", ["CMYK", "P", "LAB", "YCbCr", "RGBA", "PA"])
def test_modes_give_the_same_feature(tmp_path, photo, encoder, mode):
    photo.save(tmp_path / "plain.png")
    converted = photo.convert("P").convert("PA") if mode == "PA" else photo.convert(mode) if mode != "LAB" else None
    if mode == "LAB":
        from PIL import ImageCms

        to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
        converted = ImageCms.applyTransform(photo, to_lab)
    assert converted is not None
    converted.save(tmp_path / "x.tiff")
    tolerance = 0.8 if mode == "LAB" else 0.95
    assert feature(encoder, tmp_path / "plain.png") @ feature(encoder, tmp_path / "x.tiff") > tolerance


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_deep_grey_is_scaled_not_clipped(tmp_path, photo, mode):
    grey = np.asarray(photo.convert("L"))
    deep = {
        "I;16": lambda: Image.fromarray(grey.astype(np.uint16) * 257),
        "I": lambda: Image.fromarray(grey.astype(np.int32) * 257),
        "F": lambda: Image.fromarray(grey.astype(np.float32) / 255),
    }[mode]()
    assert deep.mode == mode
    deep.save(tmp_path / "deep.tiff")
    with Image.open(tmp_path / "deep.tiff") as image:
        got = np.asarray(to_rgb(image))
    np.testing.assert_allclose(got[..., 0], grey, atol=1)


def test_transparent_is_over_white():
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    assert [to_rgb(image).getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (255, 255, 255)]
    out = io.BytesIO()
    Image.new("L", (1, 1), 7).save(out, "PNG", transparency=7)
    assert to_rgb(Image.open(out)).getpixel((0, 0)) == (255, 255, 255)


def test_bilevel_and_first_frame(tmp_path):
    assert to_rgb(Image.new("1", (3, 3), 1)).getpixel((1, 1)) == (255, 255, 255)
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "moving.gif") as image:
        assert to_rgb(image).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, photo, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo.save(tmp_path / "turned.png", exif=exif)
    result = decode(file_uri(str(tmp_path / "turned.png")), np.asarray)
    from PIL import ImageOps

    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "turned.png")))
    assert result.pixels is not None
    np.testing.assert_array_equal(result.pixels, expected)
    assert (result.height, result.width) == expected.shape[:2]


@pytest.mark.parametrize("size", [(1, 1), (4000, 3), (3, 4000), (20_000, 1), (2, 3)])
def test_odd_sizes_embed(tmp_path, encoder, size):
    Image.effect_noise(size, 80).convert("RGB").save(tmp_path / "odd.png")
    assert abs(np.linalg.norm(feature(encoder, tmp_path / "odd.png")) - 1) < 1e-5


def test_trimming_long_pictures_keeps_the_centre(encoder, photo):
    """The centre crop of an 9:1 picture sees the same pixels as of the 3:1 picture inside of it."""
    square = photo.resize((300, 300))
    long, short = Image.new("RGB", (2700, 300), "green"), Image.new("RGB", (900, 300), "green")
    long.paste(square, (1200, 0))
    short.paste(square, (300, 0))
    difference = encoder.prepare(long).astype(int) - encoder.prepare(short).astype(int)
    assert np.abs(difference).mean() < 2


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb() -> bytes:
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def broken_files() -> dict[str, tuple[bytes, str]]:
    """Name → content and the word that its error has to hold. Also embedded by the end-to-end test."""
    good = sorted(PHOTO.iterdir())[0].read_bytes()
    out = io.BytesIO()
    Image.open(io.BytesIO(good)).save(out, "PNG")
    png = out.getvalue()
    return {
        "empty.jpg": (b"", "empty"),
        "truncated.jpg": (good[: len(good) // 2], "truncated"),
        "header only.jpg": (good[:20], "image"),
        "fake.jpg": (b"this is no picture\n" * 40, "not an image"),
        "html.png": (b"<html><body>404</body></html>", "not an image"),
        "damaged.png": (png[:200] + b"\xff" * 300 + png[500:], "damaged"),
        "bomb.png": (png_bomb(), "decompression bomb"),
        "postscript.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        "zeros.gif": (bytes(500), "not an image"),
    }


@pytest.mark.parametrize("name", broken_files())
def test_broken_files_say_what_is_wrong(tmp_path, encoder, name):
    content, word = broken_files()[name]
    (tmp_path / name).write_bytes(content)
    result = decode(file_uri(str(tmp_path / name)), encoder.prepare)
    assert result.pixels is None
    assert result.error is not None
    assert word in result.error
    assert "\n" not in result.error
    assert "BytesIO" not in result.error
    assert result.size_bytes == len(content)
    assert thumbnail(file_uri(str(tmp_path / name)), 64) is None


def test_missing_files_and_folders(tmp_path, encoder):
    assert decode(file_uri(str(tmp_path / "gone.jpg")), encoder.prepare).error == "no such file, or a link to nothing"
    assert decode(file_uri(str(tmp_path)), encoder.prepare).error == "is a directory"


def test_broken_exif_does_not_matter(tmp_path, photo, encoder):
    photo.save(tmp_path / "x.jpg", exif=b"Exif\0\0" + b"\xff" * 40)
    assert decode(file_uri(str(tmp_path / "x.jpg")), encoder.prepare).error is None


def test_thumbnails_are_small_webp(tmp_path, photo):
    photo.resize((900, 300)).save(tmp_path / "x.jpg")
    with Image.open(io.BytesIO(thumbnail(file_uri(str(tmp_path / "x.jpg")), 160) or b"")) as small:
        assert (small.format, small.size) == ("WEBP", (160, 53))


# Reduced scale

GREY = np.full((2, 2, 3), 128, np.uint8)


def large_jpeg(path, photo, short, *, grain=0.0, **options):
    """A photo as a JPEG whose shorter side has `short` pixels, with grain, as of a camera."""
    scale = short / min(photo.size)
    image = photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.BICUBIC)
    if grain:
        noise = np.random.default_rng(0).normal(0, grain, (image.height, image.width, 1))
        image = Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))
    image.save(path, quality=92, **options)
    return file_uri(str(path)), image.size


@pytest.mark.parametrize(("short", "grain"), [(1347, 0.0), (1347, 3.0), (2691, 3.0)])
def test_reduced_jpegs_have_the_same_feature(tmp_path, encoder, short, grain):
    """Just large enough to be reduced, where the loss is greatest, and of sizes that don't divide."""
    whole: list[Any] = []
    reduced: list[Any] = []
    for folder in ("airplane", "sunflower", "butterfly"):
        photo = Image.open(sorted((EXAMPLES / "images" / folder).iterdir())[1]).convert("RGB")
        uri, size = large_jpeg(tmp_path / "x.jpg", photo, short, grain=grain)
        first, second = decode(uri, encoder.prepare), decode(uri, encoder.prepare, at_least=encoder.decode_size)
        assert (second.width, second.height) == (first.width, first.height) == size
        assert (second.error, second.content_hash) == (None, first.content_hash)
        whole.append(first.pixels)
        reduced.append(second.pixels)
    assert not all(np.array_equal(one, two) for one, two in zip(whole, reduced, strict=True))  # it was reduced
    cosines = (encoder.encode_images(whole) * encoder.encode_images(reduced)).sum(axis=1)
    assert cosines.min() >= AGREEMENT


def test_grain_on_white_is_decoded_in_full(tmp_path, encoder):
    """A drawing on paper: what is averaged before it is clipped moves the feature of an empty picture."""
    drawing = Image.new("RGB", (300, 300), "white")
    drawing.paste("black", (100, 140, 200, 150))
    uri, _ = large_jpeg(tmp_path / "x.jpg", drawing, 2688, grain=6.0)
    whole, reduced = decode(uri, encoder.prepare), decode(uri, encoder.prepare, at_least=encoder.decode_size)
    np.testing.assert_array_equal(whole.pixels, reduced.pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_reduced_and_turned(tmp_path, photo, orientation):
    """The size is that of the whole, upright; and the rectangle is the same, whichever side was rounded up."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    uri, size = large_jpeg(tmp_path / "x.jpg", photo, 301, exif=exif)
    seen = []

    def prepare(image, whole=None):
        seen.append((image.size, whole))
        return GREY

    result = decode(uri, prepare, at_least=100)
    upright = size if orientation <= 4 else size[::-1]
    assert (result.width, result.height) == upright
    assert seen == [((-(-upright[0] // 2), -(-upright[1] // 2)), upright)]
    whole = decode(uri, prepare)
    assert (whole.width, whole.height) == upright
    assert seen[1] == (upright, None)


def test_only_what_is_large_enough_is_reduced(tmp_path, photo):
    sizes = []

    def prepare(image, whole=None):
        sizes.append(min(image.size))
        return GREY

    for short in (99, 199, 200, 400, 399, 801):
        uri, _ = large_jpeg(tmp_path / "x.jpg", photo, short)
        decode(uri, prepare, at_least=100)
    assert sizes == [99, 199, 100, 100, 200, 101]


def test_a_truncated_large_jpeg_is_still_an_error(tmp_path, photo, encoder):
    uri, size = large_jpeg(tmp_path / "x.jpg", photo, 1400)
    content = (tmp_path / "x.jpg").read_bytes()
    (tmp_path / "x.jpg").write_bytes(content[: len(content) // 2])
    result = decode(uri, encoder.prepare, at_least=encoder.decode_size)
    assert result.error is not None and "truncated" in result.error
    assert (result.width, result.height) == size
