"""Every kind of picture that Pillow reads, and every kind of broken file."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import PIL
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
    # Before 13, Pillow cannot read what it writes here without a compression.
    compression = "tiff_lzw" if mode == "YCbCr" and int(PIL.__version__.partition(".")[0]) < 13 else None
    converted.save(tmp_path / "x.tiff", compression=compression)
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


def test_thumbnails_are_small_jpegs(tmp_path, photo):
    photo.resize((900, 300)).save(tmp_path / "x.jpg")
    with Image.open(io.BytesIO(thumbnail(file_uri(str(tmp_path / "x.jpg")), 160) or b"")) as small:
        assert (small.format, small.size) == ("JPEG", (160, 53))


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


# Deep pictures


def tiff(values, *, tags=None, planar=False, deflate=False) -> bytes:
    """A TIFF of one strip (or one a plane) of any numbers, with some tags more: number → (type, values)."""
    values = values.astype(values.dtype.newbyteorder("<"))
    channels = 1 if values.ndim == 2 else values.shape[2]
    strips = list(np.moveaxis(values, 2, 0)) if planar else [values]
    data = [zlib.compress(strip.tobytes()) if deflate else strip.tobytes() for strip in strips]
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    entries: dict[int, tuple[str, Any]] = {
        256: ("I", [values.shape[1]]),
        257: ("I", [values.shape[0]]),
        258: ("H", [8 * values.itemsize] * channels),
        259: ("H", [8 if deflate else 1]),
        262: ("H", [2 if channels > 2 else 1]),
        273: ("I", [0] * len(data)),
        277: ("H", [channels]),
        278: ("I", [values.shape[0]]),
        279: ("I", [len(strip) for strip in data]),
        284: ("H", [2 if planar else 1]),
        339: ("H", [kind] * channels),
        **(tags or {}),
    }
    packed: dict[int, tuple[int, int, bytes]] = {}
    at = 8 + 2 + 12 * len(entries) + 4 + sum(1000 for _ in entries)
    for tag, (code, numbers) in sorted(entries.items()):
        if tag == 273:
            numbers = [at + sum(map(len, data[:i])) for i in range(len(data))]
        content = numbers if code == "s" else struct.pack(f"<{len(numbers)}{code}", *numbers)
        packed[tag] = ({"s": 2, "H": 3, "I": 4, "f": 11, "d": 12}[code], len(numbers), content)
    directory, more = struct.pack("<H", len(packed)), b""
    for tag, (number, count, content) in packed.items():
        place = (
            struct.pack("<I", 8 + 2 + 12 * len(packed) + 4 + len(more)) if len(content) > 4 else content.ljust(4, b"\0")
        )
        more += content if len(content) > 4 else b""
        directory += struct.pack("<HHI", tag, number, count) + place
    head = b"II*\0" + struct.pack("<I", 8) + directory + bytes(4) + more
    return head.ljust(at, b"\0") + b"".join(data)


def deep_png(values, *, sbit: int | None = None) -> bytes:
    channels = 1 if values.ndim == 2 else values.shape[2]
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    stated = chunk(b"sBIT", bytes([sbit] * channels)) if sbit else b""
    content = chunk(b"IHDR", header) + stated + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def pnm(values, most: int) -> bytes:
    kind = b"P6" if values.ndim == 3 else b"P5"
    content: bytes = values.astype(">u2").tobytes()
    return b"%s %d %d %d\n" % (kind, values.shape[1], values.shape[0], most) + content


def eight_bits(content: bytes):
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(to_rgb(image)).astype(int)


@pytest.fixture(scope="module")
def small(photo):
    return np.asarray(photo.resize((60, 40))).astype(float)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_fewer_bits_than_the_container_has_are_no_black_picture(small, bits):
    most = 2**bits - 1
    grey = small[..., 1]
    colour_of, grey_of = np.round(small / 255 * most).astype(np.uint16), np.round(grey / 255 * most).astype(np.uint16)
    opaque = np.full((*grey.shape, 1), most, np.uint16)
    greys = [
        tiff(grey_of),
        tiff(grey_of, deflate=True),
        deep_png(grey_of),
        deep_png(np.concatenate([grey_of[..., None], opaque], axis=2)),
        pnm(grey_of, 65535),
        pnm(grey_of, most),
    ]
    if bits < 16:
        greys += [deep_png(grey_of, sbit=bits), deep_png(grey_of << (16 - bits), sbit=bits)]
    for content in greys:
        assert np.abs(eight_bits(content) - grey[..., None]).max() <= 1
    for content in (
        tiff(colour_of),
        tiff(colour_of, deflate=True),
        tiff(colour_of, planar=True),
        deep_png(colour_of),
        deep_png(np.concatenate([colour_of, opaque], axis=2)),
        deep_png(np.concatenate([colour_of, opaque * 0 + 65535], axis=2)),
        pnm(colour_of, 65535),
    ):
        assert np.abs(eight_bits(content) - small).max() <= 1


def test_a_dim_picture_stays_dim_where_its_file_states_the_scale(small):
    dim = small[..., 1] / 4
    values = np.round(dim / 255 * 4095).astype(np.uint16)
    for content in (
        deep_png(values, sbit=12),
        pnm(values, 4095),
        tiff(values, tags={340: ("H", [0]), 341: ("H", [4095])}),
        tiff((dim / 255 * 7).astype(np.float32), tags={340: ("f", [0.0]), 341: ("f", [7.0])}),
    ):
        assert np.abs(eight_bits(content) - dim[..., None]).max() <= 1


@pytest.mark.parametrize("no_data", [-9999.0, -3.4028234663852886e38, 0.25])
def test_floats_without_what_is_not_finite_and_no_data(small, no_data):
    grey = small[..., 1]
    values = (grey / 255).astype(np.float32)
    values[:5], values[5:8], values[8:10], values[10:12] = np.inf, -np.inf, np.nan, no_data
    got = eight_bits(tiff(values, tags={42113: ("s", f"{no_data}\0".encode())}))
    assert (got[:12] == 0).all()
    assert np.abs(got[12:] - grey[12:, :, None]).max() <= 1
    metres = (grey * 10 - 300).astype(np.float32)  # neither 0 to 1 nor 0 to 255
    metres[:5], metres[7, 7] = no_data, 1e30
    got = eight_bits(tiff(metres, tags={42113: ("s", f"{no_data}\0".encode())}))
    expected = (grey - grey[5:].min()) * 255 / np.ptp(grey[5:])
    assert (got[:5] == 0).all()
    assert np.abs(np.delete(got[5:, :, 0] - expected[5:], 2 * 60 + 7)).max() <= 1


def test_no_data_of_integers(small):
    values = np.round(small / 255 * 1023).astype(np.uint16)
    values[:10] = 65535
    expected = small.copy()
    expected[:10] = 0
    tags = {42113: ("s", b"65535\0")}
    assert np.abs(eight_bits(tiff(values, tags=tags)) - expected).max() <= 1
    assert np.abs(eight_bits(tiff(values[..., 1], tags=tags)) - expected[..., 1:2]).max() <= 1
    signed = (small[..., 1] * 16 - 1024).astype(np.int16)
    assert (
        np.abs(
            eight_bits(tiff(signed))[..., 0] - (small[..., 1] - small[..., 1].min()) * 255 / np.ptp(small[..., 1])
        ).max()
        <= 1
    )


def test_associated_alpha_of_few_bits(small):
    """TIFF may have its colours multiplied by alpha, of which 12 bits in 16 are in use."""
    colours, alpha = np.round(small / 255 * 4095).astype(np.uint16), np.full((40, 60, 1), 4095, np.uint16)
    alpha[:, :30] = 2048
    shown = colours.copy()
    shown[:, :30] //= 2
    content = tiff(np.concatenate([shown, alpha], axis=2), tags={338: ("H", [1])})
    over_white = small.copy()
    over_white[:, :30] = (small[:, :30] + 255) / 2
    assert np.abs(eight_bits(content) - over_white).max() <= 2


def test_plain_pnm_of_few_bits(small):
    """The samples of P2 and P3 are numbers in text, with comments between them."""
    values = np.round(small / 255 * 4095).astype(int)
    for kind, samples, expected in ((b"P3", values, small), (b"P2", values[..., 1], small[..., 1:2])):
        lines = b"\n".join(b" ".join(b"%d" % one for one in row.reshape(-1)) + b" # a row" for row in samples)
        assert np.abs(eight_bits(kind + b"\n60 40\n65535\n" + lines + b"\n") - expected).max() <= 1


def test_signed_bytes(small):
    grey = small[..., 1]
    got = eight_bits(tiff((grey - 128).astype(np.int8)))
    assert np.abs(got - ((grey - grey.min()) * 255 / np.ptp(grey))[..., None]).max() <= 1


def test_a_palette_of_8_bits_where_16_belong(small):
    grey = small[..., 1].astype(np.uint8)
    for factor in (1, 257):
        colours = [factor * level for _ in range(3) for level in range(256)]
        assert (eight_bits(tiff(grey, tags={262: ("H", [3]), 320: ("H", colours)})) == grey[..., None]).all()


@pytest.mark.parametrize("fill", [-9999, -32768, -3.4e38, 1e20])
def test_fill_that_the_file_does_not_state(small, fill):
    """A number that comes often and is far from all others says where there is no value."""
    grey = small[..., 1]
    shares, metres = (grey / 255).astype(np.float32), (grey * 10 - 300).astype(np.float32)
    for values in (shares, metres, *([metres.astype(np.int16)] if -32769 < fill < 0 else [])):
        own = values.copy()
        own[:15] = fill
        got = eight_bits(tiff(own))[15:, :, 0]
        expected = grey[15:] if values is shares else (grey[15:] - grey[15:].min()) * 255 / np.ptp(grey[15:])
        assert np.abs(got - expected).max() <= 1
    room = np.linspace(0, 100, 2400, dtype=np.float32).reshape(40, 60)
    room[:8] = 1000  # a window: white is a value
    assert np.median(eight_bits(tiff(room))) < 32
    mask = np.where(grey > 100, 1, 0).astype(np.float32)  # two values far apart are no fill
    assert (eight_bits(tiff(mask))[..., 0] == mask * 255).all()


def test_lossy_compression_goes_beyond_the_bits_in_use(small):
    grey = small[..., 1]
    values = np.round(grey / 255 * 4095).astype(np.uint16)
    values[10, 10] = 4150
    assert np.abs(np.delete(eight_bits(tiff(values))[..., 0] - grey, 10 * 60 + 10)).max() <= 1


def test_few_bits_of_which_only_one_byte_can_be_read(small):
    """A picture of SGI with 12 bits in 16, of which Pillow has the upper 4 of the lower 12."""
    planes = np.moveaxis(np.round(small / 255 * 4095).astype(">u2"), 2, 0)[:, ::-1]
    head = struct.pack(">HBBHHHH", 474, 0, 2, 3, 60, 40, 3).ljust(512, b"\0")
    assert np.abs(eight_bits(head + planes.tobytes()) - small).max() <= 17


def test_bits_that_a_png_of_8_states(small):
    grey = small[..., 1]
    values = (grey / 16).astype(np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60, 40, 8, 0, 0, 0, 0)) + chunk(b"sBIT", b"\x04")
    content = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert np.abs(eight_bits(content) - values[..., None] * 17).max() == 0


@pytest.mark.filterwarnings("error")
def test_nans_of_any_kind_warn_of_nothing(small):
    values = small[..., 1].astype(np.float32)
    bits = values.view(np.uint32)
    bits[:4] = 0x7F800001  # a signalling NaN, as damage leaves it
    assert (eight_bits(tiff(values))[:4] == 0).all()


def test_0_may_be_white(small):
    values = np.round((255 - small[..., 1]) / 255 * 4095).astype(np.uint16)
    assert np.abs(eight_bits(tiff(values, tags={262: ("H", [0])})) - small[..., 1:2]).max() <= 1


@pytest.mark.parametrize("values", [np.full((9, 9), np.nan), np.full((9, 9), np.inf), np.full((9, 9), -9999.0)])
def test_a_picture_without_values_is_an_error(tmp_path, values):
    (tmp_path / "x.tif").write_bytes(tiff(values.astype(np.float32), tags={42113: ("s", b"-9999\0")}))
    result = decode(file_uri(str(tmp_path / "x.tif")), np.asarray)
    assert (result.pixels, result.error) == (None, "no pixel has a value: all are no-data or not finite")


def test_few_grey_levels_are_noted(tmp_path, photo):
    mask = np.zeros((300, 200), np.uint8)
    for level in range(7):
        mask[level * 3 : level * 3 + 3, :4] = level + 1
        Image.fromarray(mask).save(tmp_path / "mask.png")
        note = decode(file_uri(str(tmp_path / "mask.png")), np.asarray).note
        assert note == (f"only {level + 2} grey levels" if level + 2 < 8 else None)
    Image.new("RGB", (9, 9), "red").save(tmp_path / "flat.png")
    assert decode(file_uri(str(tmp_path / "flat.png")), np.asarray).note == "only 1 grey level"
    photo.save(tmp_path / "photo.png")
    assert decode(file_uri(str(tmp_path / "photo.png")), np.asarray).note is None


# What is no image, or none that Pillow reads


def _archive(make) -> bytes:
    out = io.BytesIO()
    make(out)
    return out.getvalue()


def _zip(out):
    import zipfile

    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(zipfile.ZipInfo("a"), "a")  # no time, as workers of pytest-xdist compare the names of tests


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            tiff(np.zeros((4, 4), np.uint16), tags={259: ("H", [34887])}),
            "cannot read (LERC): save it with LZW or Deflate",
        ),
        (tiff(np.zeros((4, 4), np.uint16), tags={259: ("H", [65123])}), "cannot read (number 65123)"),
        (tiff(np.zeros((4, 4, 5), np.uint16)), "(5 samples of 16 bits): convert it to 1 or 3 samples"),
        (tiff(np.zeros((4, 4))), "(1 sample of 64 floating-point bits)"),
        (b"II*\0\x08\0\0\0", "damaged TIFF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC, which Pillow cannot read by itself: pip install pillow-heif"),
        (b"\0\0\0\x18ftypisom\0\0\0\0mp42isom", "a video, not an image"),
        (_archive(_zip), "a zip archive, not an image: name it .zip"),
        (b"\x1f\x8b\x08\0", "a gzip file"),
        (b"%PDF-1.7", "a PDF, not an image"),
        (b"<?xml version='1.0'?><svg/>", "SVG: convert it to PNG"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1", "a camera's raw picture"),
        (b"\x1aE\xdf\xa3\x01", "a video, not an image"),
        (bytes(128) + b"DICM", "DICOM, which Pillow cannot read"),
        (b"\r\n<!doctype HTML><html>", "a web page, not an image: download the image again"),
        (b"version https://git-lfs.github.com/spec/v1\n", "run `git lfs pull`"),
        (
            b"\xff\xd8\xff\xc1\0\x11\x0c\0\x40\0\x40\3\1\x11\0\2\x11\1\3\x11\1" + bytes(64),
            "a JPEG of 12 bits a sample, which Pillow cannot read",
        ),
        (b"PF\n2 2\n-1.0\n" + bytes(48), "a PFM in colour"),
        (b"P7\nWIDTH 2\n", "a PAM, which Pillow cannot read"),
        (b"#?RADIANCE\n", "a Radiance HDR"),
        (b"v/1\x01\2\0\0\0", "OpenEXR"),
    ],
)
def test_what_can_not_be_read_is_named_with_a_remedy(tmp_path, content, words):
    (tmp_path / "x.jpg").write_bytes(content)
    result = decode(file_uri(str(tmp_path / "x.jpg")), np.asarray)
    assert result.error is not None and words in result.error, result.error


def test_a_compression_that_libtiff_lacks_is_named(tmp_path):
    from PIL import features

    from ood_audit.images.noise import libtiff

    library = libtiff()
    if library is None or not features.check("libtiff") or library.TIFFIsCODECConfigured(50001):
        return  # this Pillow reads it
    (tmp_path / "x.tif").write_bytes(tiff(np.zeros((4, 4), np.uint8), tags={259: ("H", [50001])}))
    result = decode(file_uri(str(tmp_path / "x.tif")), np.asarray)
    assert result.error is not None and "cannot read (WebP)" in result.error


@pytest.mark.parametrize(
    ("name", "kind"), [("IMG_1.HEIC", "JPEG"), ("a.jpg", "PNG"), ("b.png", "WEBP"), ("c.jxl", "GIF")]
)
def test_the_content_counts_and_not_the_name(tmp_path, photo, name, kind):
    from ood_audit.images.sources import ScanNotes, scan

    photo.resize((32, 32)).save(tmp_path / name, kind)
    (image,) = scan(str(tmp_path), ScanNotes())
    result = decode(image.uri, np.asarray)
    assert (result.error, result.format) == (None, kind)


def test_heic_is_read_where_its_package_is_installed(monkeypatch):
    import sys
    from types import SimpleNamespace

    from ood_audit.images.formats import formats

    called = []
    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=lambda: called.append(1)))
    formats.cache_clear()
    assert "JPEG" in formats()
    formats.cache_clear()
    assert called == [1]


# Nothing else than an error


def test_mutated_files_are_errors_and_nothing_else(tmp_path, small, capfd):
    """Bytes changed, cut out and put in, in files that take every path through the decoder."""
    from ood_audit.images.noise import quiet_libraries

    deep_colour = np.round(small / 255 * 1023).astype(np.uint16)
    picture = Image.fromarray(small.astype(np.uint8))
    seeds = [
        tiff(deep_colour, deflate=True),
        tiff(deep_colour, planar=True),
        tiff(deep_colour[..., 0], tags={340: ("H", [0]), 341: ("H", [4095]), 42113: ("s", b"65535\0")}),
        tiff(small[..., 0].astype(np.float32), tags={42113: ("s", b"-9999\0")}),
        deep_png(deep_colour, sbit=10),
        pnm(deep_colour, 65535),
        pnm(deep_colour[..., 0], 1023),
        tiff(np.concatenate([deep_colour, deep_colour[..., :1]], axis=2), tags={338: ("H", [1])}),
        b"P3\n2 2\n65535\n" + b"1 2 3 # 4\n" * 4,
        struct.pack(">HBBHHHH", 474, 0, 2, 3, 60, 40, 3).ljust(512, b"\0") + deep_colour.astype(">u2").tobytes(),
        *(_archive(lambda out, kind=kind: picture.save(out, kind)) for kind in ("GIF", "WEBP", "JPEG", "BMP")),
    ]
    rng = np.random.default_rng(0)
    with quiet_libraries():
        for turn in range(220):
            content = bytearray(seeds[turn % len(seeds)])
            for _ in range(rng.integers(1, 6)):
                at = int(rng.integers(len(content) if turn % 3 else min(400, len(content))))
                change = rng.integers(3)
                if change == 0:
                    content[at] = int(rng.integers(256))
                elif change == 1:
                    del content[at : at + int(rng.integers(1, 40))]
                else:
                    content[at:at] = rng.bytes(int(rng.integers(1, 8)))
            (tmp_path / "x").write_bytes(content)
            result = decode(file_uri(str(tmp_path / "x")), np.asarray)
            assert (result.pixels is None) == (result.error is not None)
            assert result.error is None or "\n" not in result.error
    assert capfd.readouterr().err == ""
