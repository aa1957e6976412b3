"""The labels in an archive of WebDataset's: that of the image `0001.jpg` is in the member `0001.cls` or `0001.json`."""

import json
from typing import BinaryIO

from ood_audit.images.archives import Index
from ood_audit.images.content import UnreadableError
from ood_audit.images.found import ScanNotes
from ood_audit.text import storable

_SUFFIXES = (".cls", ".json")
_FIELDS = ("class_name", "label_name", "class", "label", "cls", "category")
_MOST_BYTES = 1 << 20  # a larger member is no label


def labels(index: Index, file: BinaryIO, path: str, notes: ScanNotes) -> dict[str, str] | None:
    """The labels by the key of their sample; None where the archive has no members with any.

    Args:
        index: What is in the archive.
        file: The archive, open for reading.
        path: What it is called, for notes.
        notes: Classes and problems are noted here.

    """
    names = [name for name, size in index.sizes.items() if name.endswith(_SUFFIXES) and size <= _MOST_BYTES]
    found: dict[str, str] = {}
    for name in names:
        try:
            data = index.read(file, name)
            label = _of_json(json.loads(data)) if name.endswith(".json") else data.decode().strip()
        except (UnreadableError, OSError, ValueError, RecursionError):
            notes.add_problem("damaged annotation files, left out", f"{path}/{storable(name)}")
            continue
        if label and (key(name) not in found or found[key(name)].isdecimal()):  # a name says more than a number
            found[key(name)] = label
    for label in sorted(set(found.values())):
        notes.add_label(label, path)
    if not found and not any(name.endswith(".cls") for name in names):
        return None
    notes.format = "WebDataset"
    return found


def key(name: str) -> str:
    """What the members of one sample have in common: all before the first dot of the last part of the name."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _of_json(value: object) -> str:
    if not isinstance(value, dict):
        return ""
    named = next((value[field] for field in _FIELDS if isinstance(value.get(field), (str, int))), "")
    return str(named).strip()
