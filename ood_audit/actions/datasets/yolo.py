"""YOLO: `data.yaml`, and in `images/SPLIT/` and `labels/SPLIT/` the images and a text file of boxes for each."""

from pathlib import Path

from ood_audit.actions.datasets.chosen import Chosen, Picture
from ood_audit.actions.datasets.files import Copies, new_folder
from ood_audit.errors import UsageError
from ood_audit.images.splits import NAMES
from ood_audit.text import printable

_OTHERWISE = "train"  # pictures of no split: YOLO has none without


def write(chosen: Chosen, out: Path, *, copy: bool) -> tuple[int, int]:
    """Write the pictures to a new folder, as links where they are files on this machine and are not to be copied.

    Returns:
        How many pictures and boxes were written.

    Raises:
        UsageError: The folder is there already, there are no boxes, or a split is none that YOLO has.

    """
    import yaml

    splits = chosen.splits
    if strange := sorted({split for split in splits if split is not None} - set(NAMES.values())):
        raise UsageError(f"YOLO has the splits train, val and test, not {printable(strange[0])}; write coco or parquet")
    numbers = {name: number for number, name in enumerate(chosen.classes())}
    pictures = boxes = 0
    with new_folder(out) as folder:
        names = ("train", "val", *(split for split in splits if split == "test"))  # YOLO asks for the former two
        copies = {name: Copies(folder / "images" / name, copy=copy) for name in names}
        for name in names:
            (folder / "labels" / name).mkdir(parents=True)
        for picture in chosen.pictures():
            name = picture.split or _OTHERWISE
            stem = copies[name].add(picture).rpartition(".")[0]
            lines = _lines(picture, numbers)
            (folder / "labels" / name / f"{stem}.txt").write_text("".join(lines), encoding="utf-8")
            pictures, boxes = pictures + 1, boxes + len(lines)
            chosen.left_out += len(picture.boxes) - len(lines)
        if not boxes:
            raise UsageError(
                "none of these images has a box of a class, and YOLO's labels are of such; write coco, parquet or csv"
            )
        values = {name: f"images/{name}" for name in names} | {"names": {n: name for name, n in numbers.items()}}
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        (folder / "data.yaml").write_text(text, encoding="utf-8")
    return pictures, boxes


def _lines(picture: Picture, numbers: dict[str, int]) -> list[str]:
    """The line of each box of a known class: its number, its centre and its size, as shares of the picture's."""
    lines = []
    for box, label in picture.boxes:
        if label in numbers:
            x, y = (box.x + box.width / 2) / picture.width, (box.y + box.height / 2) / picture.height
            place = (x, y, box.width / picture.width, box.height / picture.height)
            lines.append(f"{numbers[label]} {' '.join(f'{value:.9g}' for value in place)}\n")
    return lines
