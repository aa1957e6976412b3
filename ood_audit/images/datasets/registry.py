"""Which format a source has.

To add a format, write a module with `NAME`, `reads`, `inside`, `base` and `pictures`, and list it here.
"""

import os
from collections.abc import Iterator
from typing import Any

from ood_audit.errors import OodAuditError
from ood_audit.images.datasets import coco, hugging_face, image_folder, voc, yolo
from ood_audit.images.datasets.pictures import ImageRow, rows
from ood_audit.images.datasets.places import Listed, Local, of_folder, of_zip
from ood_audit.images.found import ScanNotes
from ood_audit.images.uri import file_uri, image_and_box, is_remote
from ood_audit.text import printable, storable

_FORMATS: tuple[Any, ...] = (coco, yolo, voc, image_folder)
SUFFIXES = (".json", ".yaml", ".yml")
_ZIP = ".zip"


def is_dataset(source: str, *, is_remote_folder: bool = False) -> bool:
    """Whether a file or folder, here or in an object store, is a dataset with labels in one of the formats.

    A zip file is one where it holds one; of a URI at https:// the name says it.

    Args:
        source: A path or a canonical URI.
        is_remote_folder: Whether it is the URI of a folder.

    Raises:
        OSError: It is remote, and that can't be told now.

    """
    plain = source.partition("?")[0] if is_remote(source) else source
    if plain.lower().endswith(_ZIP):
        return bool(_in_zip(source)) or hugging_face.reads(source)
    if is_remote(source):
        is_shard = plain.lower().endswith(".parquet") and not source.startswith("http")
        return plain.lower().endswith(SUFFIXES) or ((is_remote_folder or is_shard) and hugging_face.reads(source))
    return any(one.reads(Local(), source) for one in _FORMATS) or hugging_face.reads(source)


def listed(source: str, notes: ScanNotes, images: str | None = None) -> Iterator[ImageRow]:
    """The images of a dataset and the boxes in them, as rows of `found.COLUMNS`.

    Args:
        source: For which `is_dataset` is true.
        notes: Filled in along the way: the format, the classes, and what is wrong in the annotations.
        images: The folder of the images, where it is not beside the annotations.

    Raises:
        UsageError: The annotations can't be read at all.
        OodAuditError: The folder that a remote file is in can't be listed.

    """
    plain = source.partition("?")[0] if is_remote(source) else source
    if plain.lower().endswith(_ZIP) and (found := _in_zip(source)):
        yield from _of_zip(found, notes)
    elif is_remote(source) and plain.lower().endswith(SUFFIXES):
        yield from _remote(source, notes)
    elif hugging_face.reads(source):
        notes.format = hugging_face.NAME
        yield from hugging_face.rows(source, notes)
    else:
        local = Local()
        one = next(one for one in _FORMATS if one.reads(local, source))
        notes.format = one.NAME
        yield from rows(local, one.base(source), one.pictures(local, source, notes, images), notes)


def originals(source: str) -> list[coco.Original]:
    """The COCO files of a source, here, in a zip file or elsewhere; none where it can't be reached any more."""
    plain = source.partition("?")[0] if is_remote(source) else source
    if plain.lower().endswith(_ZIP):
        return [coco.Original(place, path) for one, place, path in _in_zip(source) if one is coco]
    if not is_remote(source):
        return [coco.Original(Local(), source)]
    try:
        place, path = _elsewhere(source, coco.base(plain))
    except OSError:
        return []
    return [coco.Original(place, path)]


def _of_zip(found: list[tuple[Any, Listed, str]], notes: ScanNotes) -> Iterator[ImageRow]:
    """The same of the datasets in a zip file. Other images in it, such as masks, are counted."""
    named: set[str] = set()
    for one, place, path in found:
        notes.format = one.NAME
        for row in rows(place, "/", one.pictures(place, path, notes, None), notes):
            named.add(image_and_box(row[0])[0])
            yield row
    for place in [place for _, place, _ in found[:1]]:
        for path in place.images("/", notes):
            if place.entry("/", path)[0] not in named:
                notes.add_problem(
                    "images in the zip file that no annotation names, left out", storable(path.lstrip("/"))
                )


def _remote(source: str, notes: ScanNotes) -> Iterator[ImageRow]:
    """The same of a file of annotations at a canonical URI; its images are below the same folder."""
    plain = source.partition("?")[0]
    one = coco if plain.lower().endswith(".json") else yolo
    notes.format = one.NAME
    above = one.base(plain)
    try:
        place, path = _elsewhere(source, above)
    except OSError as error:
        raise OodAuditError(
            f"cannot list {printable(above)}: {error.strerror}; the images in the store are unchanged"
        ) from error
    yield from rows(place, "/", one.pictures(place, path, notes, None), notes)


def _elsewhere(source: str, above: str) -> tuple[Listed, str]:
    """The folder that the file at a URI belongs to, as a place, and the path in it; OSError if it can't be listed."""
    plain, mark, query = source.partition("?")
    place = of_folder(above + ("" if source.startswith("http") else mark + query))
    return place, plain.removeprefix(above)


def _in_zip(source: str) -> list[tuple[Any, Listed, str]]:
    """The datasets in a zip file: the format of each, the zip file as a place, and the path in it."""
    uri = source if is_remote(source) else file_uri(source)
    name = storable(os.path.basename(source.partition("?")[0] if is_remote(source) else source))
    try:
        place = of_zip(uri, name)
    except OSError:  # it says so itself where it is listed
        return []
    for one in _FORMATS:
        if found := one.inside(place):
            return [(one, place, path) for path in found]
    return []
