"""YOLO: a `data.yaml` that names the classes and the splits, and a text file of boxes beside each image."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import islice

from ood_audit.errors import UsageError
from ood_audit.images.datasets.pictures import Picture, location
from ood_audit.images.datasets.places import Place
from ood_audit.images.found import ScanNotes
from ood_audit.images.splits import NAMES
from ood_audit.images.uri import Box
from ood_audit.text import printable
from ood_audit.values import JsonObject

NAME = "YOLO"
_TOGETHER = 1000  # images whose text files are read side by side, where they are remote


def reads(place: Place, source: str) -> bool:
    """Whether a source is such a file, by its name."""
    return source.lower().endswith((".yaml", ".yml")) and place.is_file(source)


def inside(place: Place) -> list[str]:
    """The files of this format among all files of a place: those that name classes and a split."""
    found = []
    for path in place.files("/"):
        if path.lower().endswith((".yaml", ".yml")):
            with suppress(UsageError):
                values = _read(place, path)
                if "names" in values and any(_listed(values.get(key)) for key in NAMES):
                    found.append(path)
    return found


def base(source: str) -> str:
    """The folder that paths start from."""
    return os.path.dirname(source)


def pictures(place: Place, source: str, notes: ScanNotes, images: str | None) -> Iterator[Picture]:
    """The images of all splits; see `pictures.Picture`.

    Raises:
        UsageError: The file can't be read, names no split, or nothing is where it says.

    """
    values = _read(place, source)
    names = _names(values.get("names"))
    for name in names.values():
        notes.add_class(name)
    splits = [(key, where) for key in NAMES for where in _listed(values.get(key))]
    if not splits:
        raise UsageError(f"{printable(source)} names no split; a YOLO file has at least `train: images/train`")
    keypoints = _keypoints(values.get("kpt_shape"))
    root = os.path.join(os.path.dirname(source), str(values.get("path") or ""))
    roots = [images] if images is not None else [root, os.path.dirname(source)]
    places = [_found(place, where, roots) for _, where in splits]
    if not any(places):
        raise UsageError(
            f"nothing is where {printable(source)} says: {printable(splits[0][1])}; correct the paths, each that of a "
            "folder or of a .txt that lists images (at https:// of a .txt, as folders can't be listed there)"
        )
    for (split, where), found in zip(splits, places, strict=True):
        if found is None:
            notes.add_problem("missing splits", f"{split}: {where}")
            continue
        every = _images(place, found, notes)
        many = 1
        while some := list(islice(every, many)):
            for image, lines, size in place.each(partial(_annotated, place), some):
                yield _picture(image, lines, size, NAMES[split], names, keypoints, notes)
            many = _TOGETHER


def _read(place: Place, source: str) -> JsonObject:
    import yaml

    try:
        values = yaml.safe_load(place.read(source))
    except OSError as error:
        raise UsageError(f"cannot read {printable(source)}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{printable(source)} is not YAML: {printable(' '.join(str(error).split()))[:200]}; correct the file"
        ) from error
    if not isinstance(values, dict):
        raise UsageError(f"{printable(source)} is no YOLO dataset; write `train:`, `val:` and `names:`")
    return values


def _names(names: object) -> dict[int, str]:
    pairs = names.items() if isinstance(names, dict) else enumerate(names) if isinstance(names, list) else ()
    plain = (str, int, float)
    return {
        int(n): str(name)
        for n, name in pairs
        if isinstance(n, plain) and str(n).isdecimal() and isinstance(name, plain)
    }


def _keypoints(shape: object) -> int:
    """How many numbers for keypoints follow each box, by `kpt_shape`."""
    return math.prod(shape) if isinstance(shape, list) and all(isinstance(side, int) for side in shape) else 0


def _listed(value: object) -> list[str]:
    return [place for place in (value if isinstance(value, list) else [value]) if isinstance(place, str)]


def _found(place: Place, where: str, roots: list[str]) -> str | None:
    """Where a split lies. The files that Roboflow writes say `../train/images` of a folder beside them."""
    spellings = [where, where.removeprefix("../")]
    paths = (location(root, spelling) for spelling in spellings for root in roots)
    return next((path for path in paths if place.is_folder(path) or (_is_list(path) and place.is_file(path))), None)


def _is_list(path: str) -> bool:
    return path.lower().endswith(".txt")


def _images(place: Place, where: str, notes: ScanNotes) -> Iterator[str]:
    """The images of a folder, or those that a text file lists."""
    if place.is_folder(where):
        yield from place.images(where, notes)
        return
    for line in place.read(where).decode("utf-8", "surrogateescape").splitlines():
        if line.strip():
            yield location(os.path.dirname(where), line.strip())


def _annotated(place: Place, image: str) -> tuple[str, list[list[str]] | None, tuple[int, int] | None]:
    """An image with the lines of its text file, None where there is none, and its size where there are lines."""
    try:
        text = place.read(_annotations(place, image)).decode("utf-8-sig", "replace")
    except OSError:
        return image, None, None
    lines = [line.split() for line in text.splitlines() if line.strip()]
    return image, lines, place.size(image) if lines else None


def _picture(
    image: str,
    lines: list[list[str]] | None,
    size: tuple[int, int] | None,
    split: str,
    names: dict[int, str],
    keypoints: int,
    notes: ScanNotes,
) -> Picture:
    if lines is None or size is None:  # the picture is missing or damaged, which its row says
        return Picture(image, split=split)
    boxes = []
    for number, values in enumerate(lines):
        where = f"{os.path.splitext(os.path.basename(image))[0]}.txt, line {number + 1}"
        if (box := _box(str(number), values, *size, keypoints)) is None:
            notes.add_problem("lines that are no box and no polygon, left out", where)
            continue
        label = names.get(int(float(values[0])), "")
        if not label:
            notes.add_problem("annotations whose class has no name", f"class {values[0]} in {where}")
        boxes.append((box, label))
    return Picture(image, split=split, boxes=boxes, size=size)


def _annotations(place: Place, image: str) -> str:
    """The text file of an image: with `labels` in place of the nearest folder `images` above it, or beside it."""
    stem = os.path.splitext(image)[0]
    parts = stem.split(os.sep)
    for at in reversed([at for at, part in enumerate(parts[:-1]) if part == "images"]):
        moved = os.sep.join([*parts[:at], "labels", *parts[at + 1 :]]) + ".txt"
        if place.is_file(moved):
            return moved
    return f"{stem}.txt"


def _box(number: str, values: list[str], width: int, height: int, keypoints: int) -> Box | None:
    """A line's box, or the box around its polygon, in pixels."""
    try:
        if not float(values[0]).is_integer():  # nor is what is no number
            return None
        place = [float(value) for value in values[1:]]
    except ValueError:
        return None
    if len(place) in (4, 5, 4 + keypoints):  # a fifth is a confidence
        x, y, w, h = place[:4]
        return Box(number, (x - w / 2) * width, (y - h / 2) * height, w * width, h * height)
    if len(place) < 6 or len(place) % 2:
        return None
    xs, ys = place[::2], place[1::2]
    left, upper = min(xs), min(ys)
    return Box(number, left * width, upper * height, (max(xs) - left) * width, (max(ys) - upper) * height)
