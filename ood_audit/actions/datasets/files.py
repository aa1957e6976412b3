"""The files of a dataset that is written: where its images are, or the images themselves beside it."""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ood_audit.actions.datasets.chosen import Picture
from ood_audit.errors import OodAuditError, UsageError
from ood_audit.images.access import read
from ood_audit.images.uri import is_file, local_path, location
from ood_audit.store.files import replacing
from ood_audit.text import printable

_ODD = re.compile(r"[^\w.()+ -]")
_LONGEST = 200  # bytes of a name: file systems take 255, with a number and a suffix
_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write to, which gets its name once all is there; UsageError where something has that name."""
    taken = UsageError(f"`out` {printable(str(path))} is there already; name a new folder")
    is_empty = path.is_dir() and not any(path.iterdir()) and path != Path.cwd()
    if os.path.lexists(path) and not is_empty:
        raise taken
    with suppress(FileNotFoundError):
        path.rmdir()
    with replacing(path) as temporary:
        temporary.mkdir()
        yield temporary
        if os.path.lexists(path):  # it has come meanwhile
            raise taken


def split_names(splits: Iterable[str | None], otherwise: str) -> dict[str | None, str]:
    """What files of each split are called: its name as far as it can be part of one, and no two alike."""
    taken: set[str] = set()
    return {split: _unique(_ODD.sub("_", split).strip(".") if split else otherwise, taken) for split in splits}


def unreadable(picture: Picture, error: OSError) -> OodAuditError:
    """What is said of a picture whose file can't be read any more."""
    where, reason = printable(location(picture.uri)), (error.strerror or str(error)).lower()
    return OodAuditError(f"cannot read {where}: {reason}; run `ood-audit embed` again")


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
        """Put a picture there, and return its name; OodAuditError where it can't be read any more."""
        name = self._name(picture)
        target = self._folder / name
        try:
            if is_file(picture.uri) and not self._copy:
                os.stat(local_path(picture.uri))
                with suppress(OSError):  # Windows lets few people make links
                    os.symlink(local_path(picture.uri), target)
                    return name
            data = read(picture.uri).data
        except OSError as error:
            raise unreadable(picture, error) from error
        target.write_bytes(data)
        return name

    def _name(self, picture: Picture) -> str:
        """The last part of its path, with the suffix of its format where it has none."""
        last = _ODD.sub("_", picture.path.rpartition("/")[2]).lstrip(".") or "image"
        stem, suffix = os.path.splitext(last)
        suffix = suffix or _SUFFIXES.get(picture.format, f".{(picture.format or 'jpg').lower()}")
        return _unique(stem, self._taken) + suffix  # not the whole name: a file of labels has that of its image


def _unique(name: str, taken: set[str]) -> str:
    """A name that is not `taken` yet, whichever way it is written, and is from now on."""
    short = name.encode()[:_LONGEST].decode(errors="ignore") or "_"
    found, number = short, 1
    while found.lower() in taken:
        number += 1
        found = f"{short}-{number}"
    taken.add(found.lower())
    return found
