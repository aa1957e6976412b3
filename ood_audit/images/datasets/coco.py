"""COCO: one JSON file with `images`, `annotations` and `categories`."""

import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress

from ood_audit.errors import UsageError
from ood_audit.images.datasets.pictures import Picture, location
from ood_audit.images.datasets.places import Place
from ood_audit.images.found import ScanNotes
from ood_audit.images.splits import canonical, named, of_file
from ood_audit.images.uri import Box
from ood_audit.text import printable
from ood_audit.values import JsonObject

NAME = "COCO"
_FIELDS = {  # what is kept of each; segmentations would fill the memory
    "images": ("id", "file_name", "width", "height", "split"),
    "annotations": ("id", "image_id", "category_id", "bbox", "iscrowd"),
    "categories": ("id", "name"),
}
_SPACE = re.compile(r"[\s,:]*")

_MOST_FILES = 100  # of JSON in a zip file that are looked into

_Id = str | int
Lists = dict[str, list[JsonObject]]


def reads(place: Place, source: str) -> bool:
    """Whether a source is such a file, by its name."""
    return source.lower().endswith(".json") and place.is_file(source)


def inside(place: Place) -> list[str]:
    """The files of this format among all files of a place: those with lists of images and of annotations."""
    files = place.files("/")
    stems = {os.path.splitext(path)[0] for path in files if not path.lower().endswith(".json")}
    own = [path for path in files if path.lower().endswith(".json") and os.path.splitext(path)[0] not in stems]
    found = []
    for path in own if len(own) <= _MOST_FILES else ():  # more are files of one image each
        with suppress(OSError):
            data = place.read(path)
            if all(re.search(rb'"%s"\s*:\s*\[' % name, data) for name in (b"images", b"annotations")):
                found.append(path)
    return found


def base(source: str) -> str:
    """The folder that paths start from: that of the file, or the one above it where that is called `annotations`."""
    own = os.path.dirname(source)
    return os.path.dirname(own) if os.path.basename(own).lower() == "annotations" else own


def pictures(place: Place, source: str, notes: ScanNotes, images: str | None) -> Iterator[Picture]:
    """The images of the file; see `pictures.Picture`.

    Raises:
        UsageError: The file can't be read, or has no images.

    """
    lists, whole = _lists(place, source)
    if not whole:
        notes.add_problem("damaged annotation files, read as far as they go", os.path.basename(source))
    if not lists["images"]:
        raise UsageError(
            f"{printable(source)} has no list `images`, as COCO's files have; give a COCO file, or a list of images as "
            ".txt or .csv"
        )
    names: dict[_Id, str] = {}
    for entry in lists["categories"]:
        if _has(entry, "id", "name") and names.setdefault(_id(entry["id"]), str(entry["name"])) != str(entry["name"]):
            notes.add_problem("classes with the id of another, left out", str(entry["name"]))
    for name in names.values():
        notes.add_class(name)
    boxes, labels = _annotations(lists["annotations"], names, notes)
    entries = [entry for entry in lists["images"] if _has(entry, "id", "file_name")]
    if len(entries) < len(lists["images"]):
        notes.add_problem("images without an id or a file name, left out", os.path.basename(source))
    folder = _folder(place, source, [str(entry["file_name"]) for entry in entries[: place.looked_at]], images)
    split = split_of(source)
    known = set()
    for entry in entries:
        own_id = _id(entry["id"])
        if own_id in known:
            notes.add_problem("images with the id of another, whose annotations are taken for both", entry["file_name"])
        known.add(own_id)
        size = (entry["width"], entry["height"]) if _are_numbers(entry.get("width"), entry.get("height")) else None
        own = boxes.get(own_id, [])
        where = _location(place, folder, str(entry["file_name"]))
        part = entry.get("split")
        part = canonical(part) if isinstance(part, str) and part else split
        yield Picture(where, labels.get(own_id, []), part, own, size)
    for image_id in (boxes.keys() | labels.keys()) - known:
        notes.add_problem("images that are annotated and not listed", f"image id {image_id}")


def split_of(source: str) -> str | None:
    """The split of a file, by its name or that of its folder."""
    return of_file(source) or named(os.path.basename(os.path.dirname(source)))


class Original:
    """A COCO file whose entries are found again, each read when it is asked for: segmentations would fill the memory.

    Args:
        place: Where it lies.
        source: The file. Where it can't be read any more, nothing is found in it.

    Attributes:
        split: The split that its name says.
        categories: The numbers of its classes by name.
        others: What it has beside images, annotations and categories: `info` and `licenses`, as a rule.

    """

    def __init__(self, place: Place, source: str) -> None:
        self._text = ""
        self._images: dict[str, tuple[int, int]] = {}
        self._annotations: dict[tuple[_Id, str], tuple[int, int]] = {}
        self._crowds: dict[_Id, list[tuple[int, int]]] = defaultdict(list)
        self._categories: dict[str, tuple[int, int]] = {}
        self.split = split_of(source)
        self.categories: dict[str, int] = {}
        self.others: JsonObject = {}
        with suppress(OSError, ValueError, IndexError, RecursionError):
            self._text = _text(place, source)
            _read(self._text, self._note, self.others)

    def _note(self, name: str, number: int, entry: JsonObject, start: int, end: int) -> None:
        if name == "images" and _has(entry, "id", "file_name"):
            self._images[_parts(str(entry["file_name"]))] = start, end
        elif name == "annotations" and _has(entry, "image_id"):
            image_id = _id(entry["image_id"])
            if entry.get("iscrowd") == 1:
                self._crowds[image_id].append((start, end))
            self._annotations[image_id, str(entry.get("id", number))] = start, end
        elif name == "categories" and _has(entry, "id", "name") and isinstance(known := _id(entry["id"]), int):
            self.categories.setdefault(str(entry["name"]), known)
            self._categories.setdefault(str(entry["name"]), (start, end))

    def category(self, name: str) -> JsonObject:
        """The entry of a class; empty where there is none."""
        return self._entry(self._categories.get(name))

    def image(self, path: str) -> JsonObject:
        """The entry of the image with a path, of which its file name is the end; empty where there is none."""
        parts = _parts(path).split("/")
        ends = ("/".join(parts[start:]) for start in range(len(parts)))
        return self._entry(next((self._images[end] for end in ends if end in self._images), None))

    def annotation(self, image_id: _Id, box_id: str) -> JsonObject:
        """The entry of a box of an image; empty where there is none."""
        return self._entry(self._annotations.get((_id(image_id), box_id)))

    def crowds(self, image_id: _Id) -> list[tuple[JsonObject, str]]:
        """The entries of the boxes around a crowd in an image, which are no image of their own, and their classes."""
        entries = [self._entry(span) for span in self._crowds.get(_id(image_id), [])]
        names: dict[_Id, str] = {number: name for name, number in self.categories.items()}
        return [(entry, names.get(_id(entry.get("category_id") or 0), "")) for entry in entries]

    def _entry(self, span: tuple[int, int] | None) -> JsonObject:
        entry: JsonObject = {} if span is None else json.loads(self._text[slice(*span)])
        return entry


def _parts(name: str) -> str:
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", ".", ".."))


def _annotations(
    entries: list[JsonObject], names: dict[_Id, str], notes: ScanNotes
) -> tuple[dict[_Id, list[tuple[Box, str]]], dict[_Id, list[str]]]:
    """By image its boxes, and the labels that have no box."""
    boxes: dict[_Id, list[tuple[Box, str]]] = defaultdict(list)
    labels: dict[_Id, list[str]] = defaultdict(list)
    for number, entry in enumerate(entries):
        if not _has(entry, "image_id"):
            notes.add_problem("annotations without an image, left out", f"annotation {number}")
            continue
        category, image_id = entry.get("category_id"), _id(entry["image_id"])
        label = names.get(_id(category), "") if isinstance(category, (int, str, float)) else ""
        if not label:
            notes.add_problem("annotations whose class has no name", f"category id {category}")
        place = entry.get("bbox")
        if entry.get("iscrowd") == 1 and place is not None:
            notes.add_problem(
                "boxes around a crowd, which are no single object, left out", f"annotation {entry.get('id', number)}"
            )
            if label:
                labels[image_id].append(label)
        elif place is None:
            if label:
                labels[image_id].append(label)
        elif numbers := _four_numbers(place):
            boxes[image_id].append((Box(str(entry.get("id", number)), *numbers), label))
        else:
            notes.add_problem("boxes that are no four numbers, left out", f"annotation {entry.get('id', number)}")
    return boxes, labels


def _folder(place: Place, source: str, names: list[str], images: str | None) -> str:
    """The folder of the images: the one given, or that of the usual ones in which most of them are."""
    if images is not None:
        return os.path.realpath(images)
    own = os.path.dirname(source)
    stem = os.path.splitext(os.path.basename(source))[0]
    above = os.path.dirname(own)
    below = ("", "images", *stem.split("_"), stem, *(f"images/{part}" for part in (*stem.split("_"), stem)))
    folders = dict.fromkeys(os.path.normpath(os.path.join(top, part)) for top in (own, above) for part in below)
    return max(folders, key=lambda folder: sum(place.is_file(_location(place, folder, name)) for name in names))


def _location(place: Place, folder: str, name: str) -> str:
    """The absolute path of an image. A backslash is a slash, unless there is a file that has it in its name."""
    as_it_is = os.path.join(folder, name)
    return as_it_is if "\\" in name and place.is_file(as_it_is) else location(folder, name)


def _lists(place: Place, source: str) -> tuple[Lists, bool]:
    """The lists of a file, without what is not needed, and whether the file is whole."""
    try:
        text = _text(place, source)
    except OSError as error:
        raise UsageError(f"cannot read {printable(source)}: {error.strerror}") from error
    found: Lists = {name: [] for name in _FIELDS}

    def keep(name: str, number: int, entry: JsonObject, start: int, end: int) -> None:
        if name == "annotations" and entry.get("bbox") is None and (box := _around(entry.get("segmentation"))):
            entry["bbox"] = box
        found[name].append({key: entry[key] for key in _FIELDS[name] if key in entry})

    try:
        _read(text, keep)
    except (ValueError, IndexError, RecursionError):
        return found, False
    return found, True


def _text(place: Place, source: str) -> str:
    return place.read(source).decode("utf-8-sig", "surrogateescape")


def _read(text: str, keep: Callable[[str, int, JsonObject, int, int], None], others: JsonObject | None = None) -> None:
    """Read the lists of an object entry by entry, so that all entries before the damage are there when this fails.

    Args:
        text: The file.
        keep: Called with the name of a list, and of each entry that is an object its number, itself, its start and end.
        others: Gets what is beside these lists.

    """
    scan = json.JSONDecoder().raw_decode
    at = _SPACE.match(text).end()  # type: ignore[union-attr]  # it matches anything
    if text[at] != "{":
        raise ValueError("no object")
    at = _next(text, at + 1)
    while text[at] != "}":
        name, at = scan(text, at)
        at = _next(text, at)
        if name not in _FIELDS or text[at] != "[":
            value, at = scan(text, at)
            if others is not None:
                others[name] = value
        else:
            at, number = _next(text, at + 1), 0
            while text[at] != "]":
                entry, end = scan(text, at)
                if isinstance(entry, dict):
                    keep(name, number, entry, at, end)
                    number += 1
                at = _next(text, end)
            at += 1
        at = _next(text, at)


def _next(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]


def _has(entry: JsonObject, *names: str) -> bool:
    return all(isinstance(entry.get(name), (str, int, float)) for name in names)


def _id(value: _Id | float) -> _Id:
    """One spelling of an id: 7, 7.0 and "7" are the same."""
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdecimal() and str(int(value)) == value else value
    return int(value) if math.isfinite(value) else str(value)


def _four_numbers(place: object) -> list[float]:
    """The numbers of a box, which may be written as text; none where there are not four."""
    if not isinstance(place, list) or len(place) != 4 or any(isinstance(value, bool) for value in place):
        return []
    try:
        return [float(value) for value in place]
    except (TypeError, ValueError):
        return []


def _around(polygons: object) -> list[float]:
    """The box around polygons, where an annotation has no other."""
    if not isinstance(polygons, list) or not all(isinstance(one, list) and _are_numbers(*one) for one in polygons):
        return []
    xs, ys = ([value for one in polygons for value in one[start::2]] for start in (0, 1))
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)] if xs and ys else []


def _are_numbers(*values: object) -> bool:
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
