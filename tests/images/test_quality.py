"""What pictures look like in numbers, and which are odd among the others."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

import ood_audit
from ood_audit.encoders.identity import EncoderIdentity
from ood_audit.findings import quality
from ood_audit.images.decode import Decoded, decode
from ood_audit.images.quality import hashes, measure
from ood_audit.images.sources import ImageRef
from ood_audit.store import create_store
from ood_audit.store.parts import PartWriter
from ood_audit.store.views import connect
from tests.conftest import EXAMPLES

PHOTOGRAPH = EXAMPLES / "images" / "butterfly" / "img_0008.jpg"


@pytest.fixture(scope="module")
def picture():
    with Image.open(PHOTOGRAPH) as image:
        return image.convert("RGB")


def test_each_fault_moves_its_measure_and_size_moves_none(picture):
    plain = measure(picture)
    assert 0 <= plain.shadows < plain.brightness < plain.highlights <= 1
    assert measure(picture.point(lambda v: v // 8)).highlights < 0.15
    assert measure(picture.point(lambda v: 255 - v // 8)).shadows > 0.85
    blurred = measure(picture.filter(ImageFilter.GaussianBlur(5)))
    assert blurred.sharpness is not None and plain.sharpness is not None
    assert blurred.sharpness < plain.sharpness / 4
    assert measure(picture.convert("L").convert("RGB")).saturation == 0 < plain.saturation
    large = measure(picture.resize((4 * picture.width, 4 * picture.height), Image.Resampling.BICUBIC))
    for name in ("brightness", "shadows", "highlights", "entropy", "saturation"):
        assert getattr(large, name) == pytest.approx(getattr(plain, name), rel=0.05), name


@pytest.mark.parametrize("size", [(1, 1), (2, 50), (50, 2), (3, 3), (5, 2000), (4000, 3)])
def test_pictures_of_any_shape_have_measures(size):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    found = measure(Image.fromarray(noise))
    assert (found.sharpness is None) == (min(size) < 3)
    assert len(found.picture_hash) == 128
    flat = measure(Image.new("RGB", size, "red"))
    assert (flat.entropy, flat.sharpness, flat.saturation) == (0, None, 1)


def test_a_cropped_copy_has_nearly_the_hash_of_the_trimmed_original(picture):
    x, y = round(3 / 70 * picture.width), round(3 / 70 * picture.height)
    cropped = picture.crop((x, y, picture.width - x, picture.height - y)).convert("L")
    whole, trimmed = hashes(picture.convert("L"))
    copy = hashes(cropped)[0]
    assert np.unpackbits(copy ^ trimmed).sum() < 16 < np.unpackbits(copy ^ whole).sum()


def test_exif_says_when_by_what_and_where(picture, tmp_path):
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Canon\0", "Canon EOS <5D>"
    exif.get_ifd(0x8769)[0x9003] = "2024:05:01 12:30:00"
    exif.get_ifd(0x8825).update({1: "S", 2: (33.0, 30.0, 0.0), 3: "E", 4: (151.0, 0.0, 36.0)})
    picture.save(tmp_path / "a.jpg", exif=exif)
    broken = Image.Exif()
    broken.get_ifd(0x8769)[0x9003] = "0000:00:00 00:00:00"
    broken.get_ifd(0x8825).update({1: "S", 2: (330.0, 30.0, 0.0)})
    picture.save(tmp_path / "b.jpg", exif=broken)
    found = decode((tmp_path / "a.jpg").as_uri(), np.asarray, inspect=True)
    assert (found.taken_at, found.camera) == ("2024-05-01 12:30:00", "Canon EOS <5D>")
    assert [found.latitude, found.longitude] == pytest.approx([-33.5, 151.01])
    odd = decode((tmp_path / "b.jpg").as_uri(), np.asarray, inspect=True)
    assert (odd.taken_at, odd.camera, odd.latitude, odd.error) == (None, None, None, None)
    assert decode((tmp_path / "a.jpg").as_uri(), np.asarray).camera is None


def test_places_are_kept_only_where_they_are_asked_for(picture, tmp_path):
    exif = Image.Exif()
    exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 0.0, 0.0), 3: "E", 4: (2.0, 0.0, 0.0)})
    (tmp_path / "images").mkdir()
    picture.save(tmp_path / "images" / "a.jpg", exif=exif)
    for gps, place in ((False, (None, None)), (True, (48.0, 2.0))):
        store = tmp_path / f"store {gps}"
        ood_audit.embed(tmp_path / "images", store=store, model="starter", device="cpu", gps=gps)
        columns = "latitude, longitude, brightness > 0.1, sharpness > 0, length(picture_hash), area, contrast > 0.1"
        rows = ood_audit.open_store(store).query(f"SELECT {columns} FROM images").rows
        assert rows == [(*place, True, True, 128, picture.width * picture.height, True)]


def store_with(root, images):
    """A store of images with these values in columns that are taken while decoding."""
    identity = EncoderIdentity("test", None, "test", "0", {}, "gelu", "fp32", 2)
    store = create_store(root, identity)
    plain = {"width": 100, "height": 80, "brightness": 0.5, "shadows": 0.1, "highlights": 0.9, "sharpness": 0.7}
    with PartWriter(store, "run") as writer:
        for number, values in enumerate(images):
            image = ImageRef(f"file:///{number}.jpg", "/", f"{number}.jpg", 1, 1)
            facts = plain | {"entropy": 7.0, "saturation": 0.4} | values
            writer.add(image, Decoded(**facts), np.ones(2, np.float32), supersedes=False)
    return store


ODD = {
    "dark": {"highlights": 0.0, "shadows": 0.0},
    "bright": {"shadows": 0.89},
    "low contrast": {"shadows": 0.5, "highlights": 0.52},
    "blurred": {"sharpness": 0.0},
    "little information": {"entropy": 0.0},
    "odd size": {"width": 10, "height": 8},
    "odd aspect ratio": {"width": 400, "height": 20},
    "grey": {"saturation": 0.0},
}


def reasons(store):
    with connect(store) as db:
        return {image_id: [reason for _, reason, _ in found] for image_id, found in quality.odd(db).items()}


@pytest.mark.parametrize("reason", ODD)
def test_one_odd_picture_among_like_ones_is_found_and_none_in_a_dataset_of_them(tmp_path, reason):
    few = store_with(tmp_path / "few", [ODD[reason], *[{}] * 40])
    found = reasons(few)
    assert list(found) == [row[0] for row in few.query("SELECT image_id FROM images WHERE path = '0.jpg'").rows]
    assert reason in next(iter(found.values()))
    assert reasons(store_with(tmp_path / "many", [*[ODD[reason]] * 20, *[{}] * 20])) == {}


def test_pictures_without_measures_are_not_judged_and_counted(tmp_path):
    unknown = dict.fromkeys(("brightness", "shadows", "highlights", "sharpness", "entropy", "saturation"))
    store = store_with(tmp_path / "store", [unknown | {"width": 1, "height": 1}, *[{}] * 40])
    assert reasons(store) == {}
    with connect(store) as db:
        assert quality.known(db) == (40, 41)
