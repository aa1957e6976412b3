"""The text in pictures, by the real reader."""

import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from ood_audit.errors import UsageError
from ood_audit.images import ocr
from ood_audit.images.uri import file_uri
from tests.conftest import EXAMPLES

PICTURE = EXAMPLES / "images" / "airplane" / "img_0001.jpg"


@pytest.fixture(scope="module")
def read():
    pytest.importorskip("rapidocr", reason="needs the extra `text`")
    return ocr.TextReader()


def stamped(path, *lines, size=24, scale=1):
    with Image.open(PICTURE) as opened:
        picture = opened.convert("RGB").resize((320 * scale, 240 * scale))
    for row, line in enumerate(lines):
        font = ImageFont.load_default(size=size * scale)
        place = (10 * scale, (10 + 40 * row) * scale)
        ImageDraw.Draw(picture).text(place, line, "white", font, stroke_width=2, stroke_fill="black")
    picture.save(path, quality=90)
    return file_uri(str(path.resolve()))


@pytest.mark.parametrize("scale", [1, 6])
def test_text_is_read_from_the_top_to_the_bottom(read, tmp_path, scale):
    assert read(stamped(tmp_path / "a.jpg", "grand piano", "dog 2009", scale=scale))[:2] == ["grand piano", "dog 2009"]


def test_a_picture_without_text_has_none(read, tmp_path):
    assert read(stamped(tmp_path / "a.jpg")) == []


def test_odd_pictures_and_those_that_are_gone_stop_nothing(read, tmp_path):
    for name, shape in (("one.png", (1, 1, 3)), ("long.png", (3, 5000, 3)), ("noise.png", (64, 64, 3))):
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
        assert read(file_uri(str(tmp_path / name))) in ([], None)
    (tmp_path / "broken.jpg").write_bytes(PICTURE.read_bytes()[:300])
    assert read(file_uri(str(tmp_path / "broken.jpg"))) is None
    assert read(file_uri(str(tmp_path / "gone.jpg"))) is None


def test_nothing_is_logged(read, tmp_path, capfd):
    read(stamped(tmp_path / "a.jpg"))
    ocr.TextReader()(stamped(tmp_path / "b.jpg", "dog"))
    assert capfd.readouterr() == ("", "")


def test_without_the_package_the_remedy_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(UsageError, match=r"`read_text` needs RapidOCR .*: pip install 'ood-audit\[text\]'"):
        ocr.TextReader()
