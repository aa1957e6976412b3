"""The files of a dataset that is written: where its images are, or the images themselves beside it."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ood_audit.actions.datasets.chosen import Picture
from ood_audit.errors import UsageError
from ood_audit.images.access import read
from ood_audit.images.uri import is_file, local_path, location
from ood_audit.store.files import replacing
from ood_audit.text import printable

_ODD = re.compile(r"[^\w.()+ -]")
_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write to, which gets its name once all is there; UsageError where something has that name."""
    if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
        raise UsageError(f"`out` {printable(str(path))} is there already; name a new folder")
    with suppress(FileNotFoundError):
        path.rmdir()
    with replacing(path) as temporary:
        temporary.mkdir()
        yield temporary


def reference(picture: Picture, folder: Path) -> str:
    """What a file in a folder calls a picture: relative to it where the picture is in that folder or beside it."""
    if not is_file(picture.uri):
        return location(picture.uri)
    path = local_path(picture.uri)
    near = os.path.relpath(path, os.path.realpath(folder))
    return path if near.startswith(os.path.join(os.pardir, os.pardir)) else near.replace(os.sep, "/")


class Copies:
    """Images that are linked or copied into a folder, each with a name of its own.

    Args:
        folder: Where they go.
        copy: Whether they are copied. Else there are links to files; members of archives and what is remote is copied.

    """

    def __init__(self, folder: Path, *, copy: bool) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._copy = copy
        self._taken: set[str] = set()

    def add(self, picture: Picture) -> str:
        """Put a picture there, and return its name; OSError where it can't be read."""
        name = self._name(picture)
        target = self._folder / name
        if is_file(picture.uri) and not self._copy:
            with suppress(OSError):  # Windows lets few people make links
                os.symlink(local_path(picture.uri), target)
                return name
        target.write_bytes(read(picture.uri).data)
        return name

    def _name(self, picture: Picture) -> str:
        """The last part of its path, with the suffix of its format where it has none."""
        last = _ODD.sub("_", picture.path.rpartition("/")[2]).lstrip(".") or "image"
        stem, suffix = os.path.splitext(last)
        suffix = suffix or _SUFFIXES.get(picture.format, f".{(picture.format or 'jpg').lower()}")
        name, number = stem + suffix, 1
        while stem.lower() in self._taken:
            number += 1
            stem = f"{os.path.splitext(last)[0]}-{number}"
            name = stem + suffix
        self._taken.add(stem.lower())  # not the whole name: a file of labels has that of its image
        return name
