# mypy: disable-error-code="arg-type"
"""The pictures of a page, within its size."""

import io

import numpy as np
import pytest
from PIL import Image

from ood_audit.images.sources import file_uri
from ood_audit.reports.thumbnails import thumbnails


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
