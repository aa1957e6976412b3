"""CSV: a line for each picture and box, which `embed` reads."""

from collections.abc import Iterator
from pathlib import Path

from ood_audit.actions.datasets.chosen import Chosen
from ood_audit.errors import UsageError
from ood_audit.images.uri import box_uri, exact_location
from ood_audit.store.files import replacing
from ood_audit.text import storable, write_csv

COLUMNS = ("path", "label", "split", "uri")


def write(chosen: Chosen, out: Path, *, copy: bool) -> tuple[int, int]:
    """Write the pictures and boxes to a CSV file, with where they are, their labels and their splits.

    Returns:
        How many pictures and boxes were written.

    Raises:
        UsageError: Images are to be copied, for which the file has no place.

    """
    if copy:
        raise UsageError("`copy` is for coco and yolo; a list says where the images are")
    pictures = boxes = 0
    with replacing(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:

        def rows() -> Iterator[tuple[str, str, str, str]]:
            nonlocal pictures, boxes
            for picture in chosen.pictures():
                pictures, boxes = pictures + 1, boxes + len(picture.boxes)
                images = [
                    (picture.uri, picture.label),
                    *((box_uri(picture.uri, box), own) for box, own in picture.boxes),
                ]
                for uri, label in images:
                    yield storable(exact_location(uri)), label, picture.split or "", uri

        write_csv(file, COLUMNS, rows())
    return pictures, boxes
