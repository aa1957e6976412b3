"""Pascal VOC: a folder with JPEGImages, Annotations (an XML file for each image), and ImageSets (the splits)."""

import os
from collections.abc import Iterator
from xml.etree import ElementTree

from ood_audit.images.datasets.pictures import Picture
from ood_audit.images.folders import walk
from ood_audit.images.found import ScanNotes
from ood_audit.images.splits import named
from ood_audit.images.uri import Box, local_path

NAME = "Pascal VOC"


def reads(source: str) -> bool:
    """Whether a source is such a folder."""
    return all(os.path.isdir(os.path.join(source, name)) for name in ("JPEGImages", "Annotations"))


def base(source: str) -> str:
    """The folder that paths start from."""
    return source


def pictures(source: str, notes: ScanNotes, images: str | None) -> Iterator[Picture]:
    """The images of the folder, annotated or not; see `pictures.Picture`."""
    folder = os.path.realpath(images) if images is not None else os.path.join(source, "JPEGImages")
    annotated = _annotations(os.path.join(source, "Annotations"))
    splits = _splits(os.path.join(source, "ImageSets"), notes)
    classes: set[str] = set()
    for table in walk(folder, notes):
        for path in sorted(map(local_path, table["uri"].to_pylist())):
            stem = os.path.splitext(os.path.basename(path))[0]
            picture = Picture(path, split=splits.get(stem))
            if stem in annotated:
                _annotate(picture, annotated.pop(stem), notes)
            classes.update(label for _, label in picture.boxes if label)
            yield picture
    for stem, path in annotated.items():
        picture = Picture(os.path.join(folder, f"{stem}.jpg"), split=splits.get(stem))
        _annotate(picture, path, notes)
        yield picture
    for name in sorted(classes):
        notes.add_class(name)


def _annotations(folder: str) -> dict[str, str]:
    """The XML files by the names of their images, without the endings."""
    with os.scandir(folder) as entries:
        return {os.path.splitext(entry.name)[0]: entry.path for entry in entries if entry.name.lower().endswith(".xml")}


def _splits(folder: str, notes: ScanNotes) -> dict[str, str]:
    """The split of each image, by the files `train.txt`, `val.txt` and `test.txt` that list them."""
    found: dict[str, str] = {}
    for above, _, names in sorted(os.walk(folder)):
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix != ".txt" or (split := named(stem)) is None:
                continue
            with open(os.path.join(above, name), encoding="utf-8", errors="surrogateescape") as lines:
                for line in lines:
                    image = line.split()[0] if line.strip() else None
                    if image is not None and found.setdefault(image, split) != split:
                        notes.add_problem("pictures in two splits, kept in the first", image)
    return found


def _annotate(picture: Picture, path: str, notes: ScanNotes) -> None:
    """Give a picture the boxes of its XML file, as far as that can be read."""
    where = os.path.basename(path)
    try:
        objects = []
        for _, element in ElementTree.iterparse(path):  # noqa: S314  # expat itself refuses entities that grow
            if element.tag == "size":
                width, height = _number(element, "width"), _number(element, "height")
                picture.size = (width, height) if width and height else None
            elif element.tag == "object":
                objects.append(element)
    except (ElementTree.ParseError, OSError, ValueError, LookupError):
        notes.add_problem("damaged annotation files, read as far as they go", where)
    for number, element in enumerate(objects):
        label = (element.findtext("name") or "").strip()
        if not label:
            notes.add_problem("annotations whose class has no name", where)
        place = element.find("bndbox")
        edges = [] if place is None else [_number(place, name) for name in ("xmin", "ymin", "xmax", "ymax")]
        left, upper, right, lower = (edge for edge in (edges or [None] * 4))
        if left is None or upper is None or right is None or lower is None:
            notes.add_problem("boxes that are no four numbers, left out", where)
            continue
        # Pixels are counted from 1, and the last one belongs to the box.
        picture.boxes.append((Box(str(number), left - 1, upper - 1, right - left + 1, lower - upper + 1), label))


def _number(element: ElementTree.Element, name: str) -> float | None:
    try:
        return float(element.findtext(name) or "")
    except ValueError:
        return None
