"""Pascal VOC: a folder with JPEGImages, Annotations (an XML file for each image), and ImageSets (the splits)."""

import io
import os
from collections.abc import Iterator
from xml.etree import ElementTree

from ood_audit.images.datasets.pictures import Picture
from ood_audit.images.datasets.places import Place
from ood_audit.images.found import ScanNotes
from ood_audit.images.splits import named
from ood_audit.images.uri import Box

NAME = "Pascal VOC"


def reads(place: Place, source: str) -> bool:
    """Whether a source is such a folder."""
    return all(place.is_folder(os.path.join(source, name)) for name in ("JPEGImages", "Annotations"))


def inside(place: Place) -> list[str]:
    """The folders of this format among those of a place."""
    folders = {os.path.dirname(os.path.dirname(path)) for path in place.files("/") if "/JPEGImages/" in path}
    return sorted(folder for folder in folders if reads(place, folder))


def base(source: str) -> str:
    """The folder that paths start from."""
    return source


def pictures(place: Place, source: str, notes: ScanNotes, images: str | None) -> Iterator[Picture]:
    """The images of the folder, annotated or not; see `pictures.Picture`."""
    folder = os.path.realpath(images) if images is not None else os.path.join(source, "JPEGImages")
    annotated = _annotations(place, os.path.join(source, "Annotations"))
    splits = _splits(place, os.path.join(source, "ImageSets"), notes)
    classes: set[str] = set()
    for path in place.images(folder, notes):
        stems = [os.path.splitext(name)[0] for name in (os.path.relpath(path, folder), os.path.basename(path))]
        stem = next((stem for stem in stems if stem in annotated), stems[0])
        picture = Picture(path, split=next((splits[stem] for stem in stems if stem in splits), None))
        if stem in annotated:
            _annotate(place, picture, annotated.pop(stem), notes)
        classes.update(label for _, label in picture.boxes if label)
        yield picture
    for stem, path in annotated.items():
        picture = Picture(os.path.join(folder, f"{stem}.jpg"), split=splits.get(stem))
        _annotate(place, picture, path, notes)
        yield picture
    for name in sorted(classes):
        notes.add_class(name)


def _annotations(place: Place, folder: str) -> dict[str, str]:
    """The XML files by the paths of their images in the folder of these, without the endings."""
    paths = (path for path in place.files(folder) if path.lower().endswith(".xml"))
    return {os.path.splitext(os.path.relpath(path, folder))[0]: path for path in paths}


def _splits(place: Place, folder: str, notes: ScanNotes) -> dict[str, str]:
    """The split of each image, by the files `train.txt`, `val.txt` and `test.txt` that list them."""
    found: dict[str, str] = {}
    for path in place.files(folder):
        stem, suffix = os.path.splitext(os.path.basename(path))
        if suffix != ".txt" or (split := named(stem)) is None:
            continue
        for line in place.read(path).decode("utf-8", "surrogateescape").splitlines():
            image = line.split()[0] if line.strip() else None
            if image is not None and found.setdefault(image, split) != split:
                notes.add_problem("pictures in two splits, kept in the first", image)
    return found


def _annotate(place: Place, picture: Picture, path: str, notes: ScanNotes) -> None:
    """Give a picture the boxes of its XML file, as far as that can be read."""
    where = os.path.basename(path)
    try:
        objects = []
        for _, element in ElementTree.iterparse(io.BytesIO(place.read(path))):  # noqa: S314  # expat itself refuses entities that grow
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
        bounds = element.find("bndbox")
        edges = [] if bounds is None else [_number(bounds, name) for name in ("xmin", "ymin", "xmax", "ymax")]
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
