# mypy: disable-error-code="arg-type"
"""The pictures of a page, within its size."""

import io

import numpy as np
import pytest
from PIL import Image

from ood_audit.images.sources import file_uri
from ood_audit.reports.thumbnails import sprites, thumbnails


@pytest.fixture
def uris(tmp_path):
    """Eight pictures of noise, which no format makes small."""
    rng = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(rng.integers(0, 256, (400, 600, 3), np.uint8)).save(tmp_path / f"{i}.png")
    return [file_uri(str(tmp_path / f"{i}.png")) for i in range(8)]


def sides(pictures):
    return {max(Image.open(io.BytesIO(picture)).size) for picture in pictures}


def test_few_pictures_are_large(uris):
    assert sides(thumbnails(uris)) == {480}


def test_they_shrink_until_they_fit(uris):
    budget = 250_000  # by the typical size 480 pixels would do, but this is noise
    pictures = thumbnails(uris, budget=budget)
    assert sum(map(len, pictures)) <= budget
    assert sides(pictures) < {320, 224, 160, 128}


def test_the_smallest_is_not_given_up(uris):
    assert sides(thumbnails(uris, budget=1)) == {96}


def test_what_is_gone_has_none(uris, tmp_path):
    (tmp_path / "3.png").unlink()
    assert [i for i, picture in enumerate(thumbnails(uris, budget=250_000)) if picture is None] == [3]
    assert thumbnails([]) == []


def test_sprites_have_the_pictures_in_order(tmp_path):
    colours = {"red": (255, 0, 0), "blue": (0, 0, 255), "lime": (0, 255, 0)}
    for name in colours:
        Image.new("RGB", (200, 200), name).save(tmp_path / f"{name}.png")
    names = ["red", "gone", "blue", "lime", "red"]
    made = sprites([file_uri(str(tmp_path / f"{name}.png")) for name in names])
    assert made is not None
    sheet = Image.open(io.BytesIO(made.picture)).convert("RGB")
    assert sheet.size == (3 * made.size, 2 * made.size) and made.columns == 3
    for i, name in enumerate(names):
        found = sheet.getpixel((i % 3 * made.size + 32, i // 3 * made.size + 32))
        assert found == pytest.approx(colours.get(name, (128, 128, 128)), abs=12), name
    assert sprites([]) is None
