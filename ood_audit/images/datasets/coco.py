"""COCO: one JSON file with `images`, `annotations` and `categories`."""

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator

from ood_audit.errors import UsageError
from ood_audit.images.datasets.pictures import Picture, location
from ood_audit.images.found import ScanNotes
from ood_audit.images.splits import of_file
from ood_audit.images.uri import Box
from ood_audit.text import printable
from ood_audit.values import JsonObject

NAME = "COCO"
_FIELDS = {  # what is kept of each; segmentations would fill the memory
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}
_SPACE = re.compile(r"[\s,:]*")
_LOOKED_AT = 50  # images that are looked for, to find the folder that they are in

_Id = str | int
Lists = dict[str, list[JsonObject]]


def reads(source: str) -> bool:
    """Whether a source is such a file, by its name."""
    return source.lower().endswith(".json") and os.path.isfile(source)


def base(source: str) -> str:
    """The folder that paths start from: that of the file, or the one above it where that is called `annotations`."""
    own = os.path.dirname(source)
    return os.path.dirname(own) if os.path.basename(own).lower() == "annotations" else own


def pictures(source: str, notes: ScanNotes, images: str | None) -> Iterator[Picture]:
    """The images of the file; see `pictures.Picture`.

    Raises:
        UsageError: The file can't be read, or has no images.

    """
    lists, whole = _lists(source)
    if not whole:
        notes.add_problem("damaged annotation files, read as far as they go", os.path.basename(source))
    if not lists["images"]:
        raise UsageError(
            f"{printable(source)} has no list `images`, as COCO's files have; give a COCO file, or a list of images as "
            ".txt or .csv"
        )
    names = {entry["id"]: str(entry["name"]) for entry in lists["categories"] if _has(entry, "id", "name")}
    for name in names.values():
        notes.add_class(name)
    boxes, labels = _annotations(lists["annotations"], names, notes)
    entries = [entry for entry in lists["images"] if _has(entry, "id", "file_name")]
    if len(entries) < len(lists["images"]):
        notes.add_problem("images without an id or a file name, left out", os.path.basename(source))
    folder = _folder(source, [str(entry["file_name"]) for entry in entries[:_LOOKED_AT]], images)
    split = of_file(source)
    known = set()
    for entry in entries:
        known.add(entry["id"])
        size = (entry["width"], entry["height"]) if _are_numbers(entry.get("width"), entry.get("height")) else None
        own = boxes.get(entry["id"], [])
        place = location(folder, str(entry["file_name"]))
        yield Picture(place, labels.get(entry["id"], []), split, own, size)
    for image_id in (boxes.keys() | labels.keys()) - known:
        notes.add_problem("images that are annotated and not listed", f"image id {image_id}")


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
        category = entry.get("category_id")
        label = names.get(category, "") if isinstance(category, (int, str)) else ""
        if not label:
            notes.add_problem("annotations whose class has no name", f"category id {category}")
        place = entry.get("bbox")
        if place is None:
            if label:
                labels[entry["image_id"]].append(label)
        elif isinstance(place, list) and len(place) == 4 and _are_numbers(*place):
            box = Box(str(entry.get("id", number)), *map(float, place))
            boxes[entry["image_id"]].append((box, label))
        else:
            notes.add_problem("boxes that are no four numbers, left out", f"annotation {entry.get('id', number)}")
    return boxes, labels


def _folder(source: str, names: list[str], images: str | None) -> str:
    """The folder of the images: the one given, or that of the usual ones in which most of them are."""
    if images is not None:
        return os.path.realpath(images)
    own = os.path.dirname(source)
    stem = os.path.splitext(os.path.basename(source))[0]
    above = os.path.dirname(own)
    below = ("", "images", *stem.split("_"), stem, *(f"images/{part}" for part in (*stem.split("_"), stem)))
    folders = dict.fromkeys(os.path.normpath(os.path.join(top, part)) for top in (own, above) for part in below)
    return max(folders, key=lambda folder: sum(os.path.exists(location(folder, name)) for name in names))


def _lists(source: str) -> tuple[Lists, bool]:
    """The lists of a file, without what is not needed, and whether the file is whole."""
    try:
        with open(source, encoding="utf-8-sig", errors="surrogateescape") as file:
            text = file.read()
    except OSError as error:
        raise UsageError(f"cannot read {printable(source)}: {error.strerror}") from error
    found: Lists = {name: [] for name in _FIELDS}
    try:
        _read(text, found)
    except (ValueError, IndexError, RecursionError):
        return found, False
    return found, True


def _read(text: str, found: Lists) -> None:
    """Read the lists of an object entry by entry, so that all entries before the damage are there when this fails."""
    scan = json.JSONDecoder().raw_decode
    at = _SPACE.match(text).end()  # type: ignore[union-attr]  # it matches anything
    if text[at] != "{":
        raise ValueError("no object")
    at = _next(text, at + 1)
    while text[at] != "}":
        name, at = scan(text, at)
        at = _next(text, at)
        if name not in found or text[at] != "[":
            _, at = scan(text, at)
        else:
            at = _next(text, at + 1)
            while text[at] != "]":
                entry, at = scan(text, at)
                if isinstance(entry, dict):
                    found[name].append({key: entry[key] for key in _FIELDS[name] if key in entry})
                at = _next(text, at)
            at += 1
        at = _next(text, at)


def _next(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]


def _has(entry: JsonObject, *names: str) -> bool:
    return all(isinstance(entry.get(name), (str, int)) for name in names)


def _are_numbers(*values: object) -> bool:
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
