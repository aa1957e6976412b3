"""Overlays that the pictures of a class share."""

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageFont

import ood_audit
from ood_audit.findings import overlays
from tests.conftest import EXAMPLES, run_cli


def noise(seed):
    """A picture of smooth noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12), np.uint8)
    return np.asarray(Image.fromarray(pixels).resize((96, 96), Image.Resampling.BICUBIC), np.float32)


def banner(picture):
    picture = picture.copy()
    picture[40:57] = 255
    picture[44:52, 6:90:6] = 0
    return picture


def watermark(picture):
    """Letters that shine through."""
    layer = Image.new("L", (96, 96))
    ImageDraw.Draw(layer).text((8, 40), "PHOTO", 255, ImageFont.load_default(size=24))
    return picture + 0.3 * (np.asarray(layer, np.float32) / 255) * (255 - picture)


def aligned(seed):
    """An object in the middle, a pixel or two aside, on plain ground."""
    x, y = np.random.default_rng(seed).integers(-4, 5, 2)
    picture = np.full((96, 96), 160, np.uint8)
    picture[30 + y : 66 + y, 24 + x : 72 + x] = 60
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(1)), np.float32) + noise(seed) / 4


def found(pictures, size=100):
    """The overlays among pictures by class."""
    rows = [
        {"image_id": f"{name}-{i:02}", "uri": f"file:///{name}/{i}", "size_bytes": 1, "given_label": name}
        | {"width": size, "height": 100}
        for name, some in pictures.items()
        for i in range(len(some))
    ]
    by_uri = {f"file:///{name}/{i}": picture for name, some in pictures.items() for i, picture in enumerate(some)}

    def read(uri):
        picture = by_uri[uri]
        return None if picture is None else Image.fromarray(picture.astype(np.uint8))

    return overlays.find(pa.Table.from_pylist(rows), read)


def test_the_banner_of_one_class_is_found_with_the_pictures_that_show_it():
    plain = {name: [noise(100 * k + i) for i in range(30)] for k, name in enumerate(("cat", "dog", "owl"))}
    marked = [banner(picture) for picture in plain["dog"]]
    marked[3], marked[28] = plain["dog"][3], plain["dog"][28]
    (one,) = found(plain | {"dog": marked})
    assert one.group == "dog"
    assert one.evidence == f"93% of dog {overlays.WORD}, against 0% of the other images"
    assert set(one.images) == {f"dog-{i:02}" for i in range(30)} - {"dog-03", "dog-28"}
    assert found(plain) == []


def test_a_watermark_that_shines_through_is_found_too():
    plain = {name: [noise(100 * k + i) for i in range(24)] for k, name in enumerate(("cat", "dog", "owl"))}
    marked = [watermark(picture) for picture in plain["dog"]]
    (one,) = found(plain | {"dog": marked})
    assert (one.group, len(one.images)) == ("dog", 24)
    assert found({name: [watermark(picture) for picture in own] for name, own in plain.items()}) == []


def test_what_all_classes_share_is_no_shortcut():
    assert found({name: [banner(noise(100 * k + i)) for i in range(14)] for k, name in enumerate("abc")}) == []


def test_where_most_classes_have_one_the_pictures_are_in_line():
    def own(k, i):
        picture = noise(100 * k + i)
        picture[15 * k : 15 * k + 12] = noise(k)[:12]
        return picture

    pictures = {name: [own(k, i) for i in range(14)] for k, name in enumerate("abc")}
    assert found(pictures) == []
    assert [one.group for one in found(pictures | {name: [noise(7000 + i) for i in range(14)] for name in "bc"})] == [
        "a"
    ]


def test_small_pictures_are_not_looked_at():
    pictures = {"a": [banner(noise(i)) for i in range(14)], "b": [noise(100 + i) for i in range(14)]}
    assert found(pictures, size=63) == []
    assert len(found(pictures, size=64)) == 1


def test_objects_in_line_are_no_overlay():
    assert found({"a": [aligned(i) for i in range(24)], "b": [noise(i) for i in range(24)]}) == []


def test_few_pictures_and_those_that_are_gone_tell_nothing():
    marked = [banner(noise(i)) for i in range(overlays.FEWEST)]
    others = [noise(100 + i) for i in range(20)]
    assert [one.group for one in found({"a": marked, "b": others})] == ["a"]
    assert found({"a": [*marked[1:], None], "b": others}) == []
    assert found({"a": marked[1:], "b": others}) == []


@pytest.fixture
def framed(tmp_path):
    """Chairs with a frame, beside cups without."""
    for name in ("chair", "cup", "dalmatian"):
        for path in sorted((EXAMPLES / "images" / name).glob("*.jpg")):
            if path.name == "img_9999.jpg":
                continue
            with Image.open(path) as image:
                picture = image.convert("RGB").resize((200, 160))
            if name == "chair":
                inside = picture.crop((12, 12, 188, 148))
                picture = Image.new("RGB", picture.size, "black")
                picture.paste(inside, (12, 12))
            (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
            picture.save(tmp_path / "images" / name / path.name)
    return tmp_path / "images"


def test_a_report_lists_them(framed, tmp_path):
    store = tmp_path / "store"
    assert run_cli("embed", framed, "--store", store).returncode == 0
    done = run_cli("report", "--store", store, "--top", 3)
    assert f"shortcut: 100% of chair {overlays.WORD}, against 0% of the other images" in done.stderr
    rows = ood_audit.open_store(store).query("SELECT DISTINCT path FROM findings WHERE kind = 'shortcut'").rows
    assert {path.partition("/")[0] for (path,) in rows} == {"chair"}
