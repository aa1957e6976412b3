"""Which format a source has.

To add a format, write a module with `NAME`, `reads`, `base` and `pictures`, and list it here.
"""

from collections.abc import Iterator

from ood_audit.images.datasets import coco, hugging_face, image_folder, voc, yolo
from ood_audit.images.datasets.pictures import ImageRow, rows
from ood_audit.images.found import ScanNotes

_FORMATS = (coco, yolo, voc, image_folder)
SUFFIXES = (".json", ".yaml", ".yml")


def is_dataset(source: str) -> bool:
    """Whether a file or folder on this machine is a dataset with labels in one of the formats."""
    return any(one.reads(source) for one in (*_FORMATS, hugging_face))


def listed(source: str, notes: ScanNotes, images: str | None = None) -> Iterator[ImageRow]:
    """The images of a dataset and the boxes in them, as rows of `found.COLUMNS`.

    Args:
        source: For which `is_dataset` is true.
        notes: Filled in along the way: the format, the classes, and what is wrong in the annotations.
        images: The folder of the images, where it is not beside the annotations.

    Raises:
        UsageError: The annotations can't be read at all.

    """
    if hugging_face.reads(source):
        notes.format = hugging_face.NAME
        yield from hugging_face.rows(source, notes)
        return
    one = next(one for one in _FORMATS if one.reads(source))
    notes.format = one.NAME
    yield from rows(one.base(source), one.pictures(source, notes, images), notes)
