"""COCO: one JSON file, or a folder with a file for each split, and with the images where they are copied."""

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import TextIO

from ood_audit.actions.datasets.chosen import Chosen, Picture
from ood_audit.actions.datasets.files import Copies, new_folder, reference, split_names
from ood_audit.errors import UsageError
from ood_audit.images.datasets.coco import Original
from ood_audit.images.datasets.registry import originals
from ood_audit.images.uri import Box
from ood_audit.store import annotations
from ood_audit.store.files import replacing
from ood_audit.values import JsonObject

SUFFIX = ".json"
_SURROGATE = re.compile("[\ud800-\udfff]")


def write(chosen: Chosen, out: Path, *, copy: bool) -> tuple[int, int]:
    """Write the pictures to a file `….json`, or to a new folder with a file for each split.

    What is from COCO files keeps all of its fields, segmentations among them, wherever they lie. Where all pictures are
    from one file, numbers are kept as well; with several, images and boxes are numbered anew, classes only if the files
    disagree, and of `info`, `licenses` and the like there is what all of them have.

    Returns:
        How many pictures and boxes were written.

    Raises:
        UsageError: The folder is there already, or images are to be copied beside a single file.

    """
    names = chosen.classes()
    if out.suffix.lower() == SUFFIX:
        if copy:
            raise UsageError("`copy` needs a folder for the images; name one in place of a .json file")
        entries = _Entries(chosen, names)
        with replacing(out) as temporary, temporary.open("w", encoding="utf-8") as file:
            return entries.write(file, chosen.pictures(), lambda picture: reference(picture, out.parent))
    pictures = boxes = 0
    with new_folder(out) as folder:
        (folder / "annotations").mkdir()
        copies = Copies(folder / "images", copy=True) if copy else None

        def name(picture: Picture) -> str:
            return reference(picture, out / "annotations") if copies is None else copies.add(picture)

        entries = _Entries(chosen, names)
        files = split_names([f"instances_{split}" if split else None for split in chosen.splits], "instances")
        for split, stem in zip(chosen.splits, files.values(), strict=True):
            target = folder / "annotations" / f"{stem}{SUFFIX}"
            with target.open("w", encoding="utf-8") as file:
                more = entries.write(file, chosen.pictures(split), name)
            pictures, boxes = pictures + more[0], boxes + more[1]
    return pictures, boxes


class _Entries:
    """Makes the entries of pictures and boxes, of those of the original files where there are any."""

    def __init__(self, chosen: Chosen, names: list[str]) -> None:
        described = annotations.described(chosen.store)
        self._files = {str(one["source"]) for one in described if one["format"] == "COCO"}
        self._source, self._originals = "", list[Original]()
        self._categories: dict[str, JsonObject] = {}
        known: dict[str, int] = {}
        others, files, clash = list[JsonObject](), 0, False
        for source in chosen.sources:
            originals = self._of(source)
            files += len(originals)
            others += [one.others for one in originals] or [{}]
            for one in originals:
                for name, number in one.categories.items():
                    clash |= known.setdefault(name, number) != number
                    self._categories[name] = one.category(name) | self._categories.get(name, {})
        self._one = files == len(chosen.sources) == 1
        self._others = {
            name: value for name, value in others[0].items() if all(other.get(name) == value for other in others)
        }
        if clash or len(set(known.values())) < len(known):  # the same class, or the same number, is not the same in all
            known = {}
        free = count(max(known.values(), default=0) + 1)
        self._numbers = {name: known[name] if name in known else next(free) for name in names}
        self._image = self._annotation = 0
        self._unnumbered = 1 << 40  # of boxes whose numbers are not known, beside those that are

    def write(self, file: TextIO, pictures: Iterator[Picture], name: Callable[[Picture], str]) -> tuple[int, int]:
        """Write a whole file; the annotations wait on disk for the images to be through."""
        images = boxes = entries = 0
        others = "".join(f"{_json(key)}: {_json(value)},\n" for key, value in self._others.items())
        categories = [
            _json(self._categories.get(one, {}) | {"id": number, "name": one}) for one, number in self._numbers.items()
        ]
        file.write(f'{{{others}"categories": [{", ".join(categories)}],\n"images": [')
        with tempfile.TemporaryFile("w+", encoding="utf-8") as waiting:
            for picture in pictures:
                image, own = self._entry(picture, name(picture))
                file.write((",\n" if images else "\n") + _json(image))
                for entry in own:
                    waiting.write((",\n" if entries else "\n") + _json(entry))
                    entries += 1
                    boxes += "bbox" in entry
                images += 1
            file.write('\n],\n"annotations": [')
            waiting.seek(0)
            shutil.copyfileobj(waiting, file)
            file.write("\n]}\n")
        return images, boxes

    def _of(self, source: str) -> list[Original]:
        if source != self._source:  # pictures come by source
            self._source = source
            self._originals = originals(source) if source in self._files else []
        return self._originals

    def _entry(self, picture: Picture, name: str) -> tuple[JsonObject, list[JsonObject]]:
        found = [(one, before) for one in self._of(picture.source) if (before := one.image(picture.path))]
        found.sort(key=lambda pair: pair[0].split != picture.split)  # in a zip file, two may have a picture of one name
        original, before = found[0] if found else (None, {})
        self._image += 1
        number = before["id"] if self._one and "id" in before else self._image
        image = before | {"id": number, "file_name": name, "width": picture.width, "height": picture.height}
        if picture.split:
            image["split"] = picture.split
        own = []
        for box, label in picture.boxes:
            entry = {} if original is None else original.annotation(before["id"], box.id)
            own.append(self._box(entry, number, box, label))
        for crowd, label in [] if original is None else original.crowds(before["id"]):
            own.append(crowd | {"id": self._next(crowd), "image_id": number, "category_id": self._numbers.get(label)})
        if picture.own_label:
            own.append({"id": self._next({}), "image_id": number, "category_id": self._numbers[picture.own_label]})
        return image, own

    def _box(self, before: JsonObject, image: int | str, box: Box, label: str) -> JsonObject:
        place = [round(value, 3) for value in (box.x, box.y, box.width, box.height)]
        entry: JsonObject = {"area": round(box.width * box.height, 3), "iscrowd": 0} | before
        entry |= {"id": self._next(before), "image_id": image, "bbox": place}
        entry.pop("category_id", None)
        if label:
            entry["category_id"] = self._numbers[label]
        return entry

    def _next(self, before: JsonObject) -> int | str:
        if self._one:
            if "id" in before:
                known: int | str = before["id"]
                return known
            self._unnumbered += 1
            return self._unnumbered
        self._annotation += 1
        return self._annotation


def _json(entry: object) -> str:
    """As JSON; escaped where it holds bytes of names that are not UTF-8."""
    text = json.dumps(entry, ensure_ascii=False)
    return json.dumps(entry) if _SURROGATE.search(text) else text
