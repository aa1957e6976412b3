"""Splits: which folders divide a dataset into training, validation and test data."""

import os
import re
from collections.abc import Iterable

from ood_audit.names import key

# What the folders of a split may be called, and what the split is called in the store.
NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
EVALUATION = ("val", "test")  # the splits that a model is judged on
_KIND = r"( ?set| ?\d+| (images?|imgs?|data|split))?"
_NAMED = re.compile(rf"((images?|imgs?|data) )?({'|'.join(NAMES)}){_KIND}")
_OTHER = re.compile(rf"(trainval|eval|evaluation|holdout|unlabell?ed){_KIND}|(fold|split|part|shard|batch) ?\d+")
_WHOLE = ("images", "image", "imgs", "img", "jpeg", "jpegs", "jpg", "png", "jpegimages", "data", "dataset", "all")


def named(name: str) -> str | None:
    """The split that a name stands for, as it is called in the store; None for other names.

    Example:
        >>> named("Validation"), named("train2017"), named("cat")
        ('val', 'train', None)

    """
    found = _NAMED.fullmatch(key(name))
    return NAMES[found[3]] if found else None


def canonical(name: str) -> str:
    """What a split is called in the store: `val` for `valid`; a name that is not in `NAMES` as it is."""
    return NAMES.get(key(name), name)


def of_file(name: str) -> str | None:
    """The split that the name of a file says: `instances_val2017.json` and `val-00000-of-00002.parquet` hold val."""
    stem = os.path.splitext(os.path.basename(name))[0]
    return next((split for part in re.split(r"[\W_]+", stem) if (split := named(part))), None)


def is_split(folder: str) -> bool:
    """Whether a folder's name says that it holds a part of a dataset, or all of it, and is not a class."""
    return key(folder) in _WHOLE or _is_part(folder)


def divides(folder: str, siblings: Iterable[str]) -> bool:
    """Whether a folder is a split: so are all beside it, or one more (a train beside a car and a bus is a train)."""
    others = list(siblings)
    return is_split(folder) and (sum(map(_is_part, others)) > 1 or all(map(is_split, others)))


def children(folders: Iterable[str]) -> dict[str, set[str]]:
    """The names of the folders in each folder, of paths with `/`."""
    found: dict[str, set[str]] = {}
    for folder in folders:
        above = ""
        for part in folder.split("/"):
            found.setdefault(above, set()).add(part)
            above = f"{above}/{part}" if above else part
    return found


def of_folders(folders: Iterable[str], source: str) -> dict[str, str]:
    """The splits of the images in the folders of a source: those that the outermost folder says.

    Args:
        folders: of all images of the source, relative to it.
        source: the name of the source itself, which counts where no folder in it says anything.

    Returns:
        By folder the split; folders that say nothing are left out.

    """
    folders = set(folders)
    below = children(folders - {""})
    whole = named(source)
    found = {}
    for folder in folders:
        above, split = "", None
        for part in folder.split("/") if folder else ():
            if (split := named(part)) and divides(part, below[above]):
                break
            split = None
            above = f"{above}/{part}" if above else part
        if split := split or whole:
            found[folder] = split
    return found


def _is_part(folder: str) -> bool:
    return bool(_NAMED.fullmatch(key(folder)) or _OTHER.fullmatch(key(folder)))
