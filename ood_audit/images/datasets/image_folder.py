"""ImageFolder: a folder of images with `metadata.csv` or `metadata.jsonl`, at its top or in each split."""

import csv
import io
import json
import os
from collections.abc import Iterator

from ood_audit.images.datasets.pictures import Picture, location
from ood_audit.images.datasets.places import Place
from ood_audit.images.found import ScanNotes
from ood_audit.images.splits import NAMES, is_split, named
from ood_audit.images.uri import Box
from ood_audit.values import JsonObject

NAME = "ImageFolder"
_FILES = ("metadata.csv", "metadata.jsonl")
_IMAGES = ("file_name", "image", "path")
_LABELS = ("label", "class", "category", "labels")


def reads(place: Place, source: str) -> bool:
    """Whether a source is such a folder."""
    return bool(_files(place, source))


def inside(place: Place) -> list[str]:
    """The folders of this format among those of a place: the top, or the one folder in it."""
    tops = {path.split("/")[1] for path in place.files("/") if path.count("/") > 1}
    folders = ["/", *(f"/{top}" for top in tops if len(tops) == 1)]
    return [folder for folder in folders if reads(place, folder)][:1]


def base(source: str) -> str:
    """The folder that paths start from."""
    return source


def pictures(place: Place, source: str, notes: ScanNotes, images: str | None) -> Iterator[Picture]:
    """The images of the folder, annotated or not; see `pictures.Picture`."""
    described: dict[str, Picture] = {}
    classes: dict[str, None] = {}
    for path in _files(place, source):
        for picture in _described(place, path, images or os.path.dirname(path), notes):
            known = described.setdefault(picture.location, picture)
            if known is not picture:
                known.labels += picture.labels
            classes.update(dict.fromkeys([*picture.labels, *(label for _, label in picture.boxes if label)]))
    for name in sorted(classes):
        notes.add_label(name, os.path.basename(source))
    for path in place.images(source, notes):
        *folders, _ = os.path.relpath(path, source).split(os.sep)
        picture = described.pop(path) if path in described else Picture(path)
        if not classes and folders and not is_split(folders[-1]):  # the files say other things, the folders the classes
            picture.labels = [folders[-1]]
            notes.add_class(folders[-1])
        yield picture
    yield from described.values()


def _files(place: Place, source: str) -> list[str]:
    """The files of metadata at the top, or in the folders of the splits."""
    if not place.is_folder(source):
        return []
    paths = (os.path.join(source, folder, name) for folder in ("", *NAMES) for name in _FILES)
    return [path for path in paths if place.is_file(path)]


def _described(place: Place, path: str, folder: str, notes: ScanNotes) -> Iterator[Picture]:
    """The images that a file names."""
    where = os.path.basename(path)
    split = named(os.path.basename(os.path.dirname(path)))
    for number, row in _rows(place, path, notes):
        name = next((row[column] for column in _IMAGES if isinstance(row.get(column), str) and row[column]), None)
        if name is None:
            notes.add_problem("rows without a file name, left out", f"{where}, row {number}")
            continue
        value = next((row[column] for column in _LABELS if row.get(column) not in (None, "")), None)
        labels = [str(label) for label in (value if isinstance(value, list) else [value]) if label is not None]
        yield Picture(location(folder, name), labels, split, _boxes(row, f"{where}, row {number}", notes))


def _rows(place: Place, path: str, notes: ScanNotes) -> Iterator[tuple[int, JsonObject]]:
    """The rows of a file, as far as it can be read, each with its number."""
    where = os.path.basename(path)
    try:
        data = io.BytesIO(place.read(path))
        with io.TextIOWrapper(data, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            if path.endswith(".csv"):
                yield from enumerate(csv.DictReader(file), start=1)
                return
            for number, line in enumerate(file, start=1):
                try:
                    row = json.loads(line) if line.strip() else None
                except (ValueError, RecursionError):
                    row = "damaged"
                if isinstance(row, dict):
                    yield number, row
                elif row is not None:
                    notes.add_problem("lines that are no JSON object, left out", f"{where}, row {number}")
    except (OSError, csv.Error):
        notes.add_problem("damaged annotation files, read as far as they go", where)


def _boxes(row: JsonObject, where: str, notes: ScanNotes) -> list[tuple[Box, str]]:
    """The boxes of a row: lists of `bbox` (left, top, width, height) and of `categories` in its `objects`."""
    objects = row.get("objects")
    if not isinstance(objects, dict):
        return []
    places = objects.get("bbox") or []
    kinds = objects.get("categories") or objects.get("category") or [""] * len(places)
    boxes = []
    for number, (place, kind) in enumerate(zip(places, kinds, strict=False)):
        try:
            x, y, width, height = map(float, place)
        except (TypeError, ValueError):
            notes.add_problem("boxes that are no four numbers, left out", where)
            continue
        boxes.append((Box(str(number), x, y, width, height), str(kind)))
    return boxes
