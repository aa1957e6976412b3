"""The spelling of a path where a file system ignores case, as those of Windows and macOS do.

`Cat/1.JPG` in a list and `cat/1.jpg` in the folder are one file there, and must have one URI. Nothing changes where a
file system tells them apart.
"""

import os
import unicodedata
from functools import lru_cache


class Spelling:
    """Gives paths as the folders spell them; one for each run, as it remembers folders."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}

    def __call__(self, path: str) -> str:
        """An absolute path in the case in which its folders list it; as it is where nothing is there."""
        folder, name = os.path.split(path)
        if not name:  # the root
            return path
        if folder not in self._folders:
            self._folders[folder] = self(folder)
        folder = self._folders[folder]
        return os.path.join(folder, _entry(folder, name))


def _entry(folder: str, name: str) -> str:
    """A name as its folder lists it."""
    other = name.swapcase()
    if other == name:
        return name
    try:
        there = os.lstat(os.path.join(folder, other))  # missing in most places where case counts: one call is enough
        if not os.path.samestat(there, os.lstat(os.path.join(folder, name))):
            return name
        alike = _names(folder, os.stat(folder).st_mtime_ns).get(_key(name), [])
    except (OSError, ValueError):
        return name
    return name if name in alike or not alike else alike[0]


@lru_cache(maxsize=16)
def _names(folder: str, mtime_ns: int) -> dict[str, list[str]]:
    """What a folder lists, by what its file system takes for the same; until the folder changes."""
    names: dict[str, list[str]] = {}
    for name in os.listdir(folder):
        names.setdefault(_key(name), []).append(name)
    return names


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
