"""What every reader gives, pictures with their labels, and what is wrong with them, found here for all formats."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from ood_audit.images.datasets.places import Place
from ood_audit.images.found import ScanNotes
from ood_audit.images.uri import Box, box_uri, is_remote
from ood_audit.text import storable

_TOGETHER = 1000  # pictures that are looked at side by side, where they are remote
ImageRow = tuple[str, str, int, int, str, str | None, dict[str, str | float] | None]


@dataclass
class Picture:
    """A picture as a dataset describes it.

    Attributes:
        location: Its absolute path.
        labels: The classes that the dataset gives the picture as a whole.
        split: The split, as the dataset calls it; None where it says nothing.
        boxes: Its objects, each with the class, or "" where that is unknown.
        size: Width and height in pixels, where they are known.

    """

    location: str
    labels: list[str] = field(default_factory=list)
    split: str | None = None
    boxes: list[tuple[Box, str]] = field(default_factory=list)
    size: tuple[float, float] | None = None


def rows(place: Place, base: str, pictures: Iterator[Picture], notes: ScanNotes) -> Iterator[ImageRow]:
    """Each picture as a row of `found.COLUMNS`, followed by a row for each of its boxes.

    Args:
        place: Where the dataset lies.
        base: The folder that paths start from.
        pictures: As a reader gives them.
        notes: Problems are counted here. None is an error: a missing picture is a row that says so.

    """
    many, split_of = 1, dict[int, str | None]()
    while some := list(islice(pictures, many)):
        for picture, found in zip(some, place.each(place.facts, [one.location for one in some]), strict=True):
            try:
                uri, path = place.entry(base, picture.location)
            except OSError:  # in an archive or a listing there is no URI of what is not there
                notes.add_problem("missing pictures", storable(picture.location.lstrip("/")))
                continue
            split = split_of.setdefault(hash(uri), picture.split)
            if split != picture.split:
                notes.add_problem("pictures in two splits, kept in the first", path)
                picture.split = split
            if found is None:
                notes.add_problem("missing pictures", path)
            yield from picture_rows(uri, path, found or (0, 0), picture, notes)
        many = _TOGETHER


def picture_rows(uri: str, path: str, facts: tuple[int, int], picture: Picture, notes: ScanNotes) -> Iterator[ImageRow]:
    """The same for one picture, wherever it lies."""
    boxes = list(_sound(picture, path, notes))
    labels = list(dict.fromkeys([*picture.labels, *(label for _, label in boxes)]))
    if len(labels) > 1:
        notes.add_problem("pictures with several classes, which have no label as a whole", path)
    if not labels:
        notes.add_problem("pictures without annotation", path)
    label = labels[0] if len(labels) == 1 else ""
    yield uri, path, *facts, storable(label), picture.split, None
    for box, own in boxes:
        yield box_uri(uri, box), f"{path}#box={storable(box.id)}", *facts, storable(own), picture.split, box.values()


def location(folder: str, name: str) -> str:
    """The absolute path of a picture that a file in a folder names, with either kind of slash; a URI as it is."""
    if is_remote(name):
        return name
    return os.path.normpath(os.path.join(folder, name.replace("\\", "/") if os.sep == "/" else name))


def _sound(picture: Picture, path: str, notes: ScanNotes) -> Iterator[tuple[Box, str]]:
    """The boxes that lie in the picture, at least in part; of two that are the same the first."""
    seen = set()
    for box, label in picture.boxes:
        if not box.is_finite:
            notes.add_problem("boxes that are no four numbers, left out", path)
            continue
        inside = box if picture.size is None else box.within(*picture.size)
        if inside.width <= 0 or inside.height <= 0:
            notes.add_problem("boxes that are empty or outside of their picture, left out", path)
            continue
        if inside.differs(box):
            notes.add_problem("boxes partly outside of their picture, cut off at its edge", path)
        key = (inside.x, inside.y, inside.width, inside.height)
        if key in seen:
            notes.add_problem("boxes given twice, left out", path)
            continue
        seen.add(key)
        yield inside, label
