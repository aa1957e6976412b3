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
from ood_audit.images.datasets.places import Local
from ood_audit.images.uri import Box
from ood_audit.store import annotations
from ood_audit.store.files import replacing
from ood_audit.values import JsonObject

SUFFIX = ".json"
_SURROGATE = re.compile("[\ud800-\udfff]")


def write(chosen: Chosen, out: Path, *, copy: bool) -> tuple[int, int]:
    """Write the pictures to a file `….json`, or to a new folder with a file for each split.

    What is from COCO files keeps their numbers and all of their fields, segmentations among them, where all pictures
    are from one; with several, what belongs to one box or image is kept and numbered anew. Of a file in an archive or
    on a server only boxes and labels are known.

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
        self._source, self._original = "", Original(Local(), "")
        self._one = len(self._files) == 1 and len(chosen.sources) == 1 and set(chosen.sources) == self._files
        self._one = self._one and self._of(chosen.sources[0]).is_read
        known = self._of(chosen.sources[0]).categories if self._one else {}
        free = count(max(known.values(), default=0) + 1)
        self._numbers = {name: known[name] if name in known else next(free) for name in names}
        self._image = self._annotation = 0
        self._unnumbered = 1 << 40  # of boxes whose numbers are not known, beside those that are

    def write(self, file: TextIO, pictures: Iterator[Picture], name: Callable[[Picture], str]) -> tuple[int, int]:
        """Write a whole file; the annotations wait on disk for the images to be through."""
        images = boxes = entries = 0
        original = self._original.category if self._one else lambda name: {}
        categories = [_json(original(one) | {"id": number, "name": one}) for one, number in self._numbers.items()]
        file.write(f'{{"categories": [{", ".join(categories)}],\n"images": [')
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

    def _of(self, source: str) -> Original:
        if source != self._source:  # pictures come by source
            self._source, self._original = source, Original(Local(), source if source in self._files else "")
        return self._original

    def _entry(self, picture: Picture, name: str) -> tuple[JsonObject, list[JsonObject]]:
        original = self._of(picture.source)
        before = original.image(picture.path)
        self._image += 1
        number = before["id"] if self._one and "id" in before else self._image
        image = before | {"id": number, "file_name": name, "width": picture.width, "height": picture.height}
        if picture.split:
            image["split"] = picture.split
        known = before.get("id", "")
        own = [self._box(original.annotation(known, box.id), number, box, label) for box, label in picture.boxes]
        for crowd in original.crowds(known):
            label = original.label(crowd)
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


def _json(entry: JsonObject) -> str:
    """As JSON; escaped where it holds bytes of names that are not UTF-8."""
    text = json.dumps(entry, ensure_ascii=False)
    return json.dumps(entry) if _SURROGATE.search(text) else text
