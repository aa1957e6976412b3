"""Finding the images of a folder.

A million files that have not changed must cost little more than their stat calls: so there is no object, no path and no
hash for each of them here, but columns of names, sizes and times, and what depends on the folder once for each folder.
"""

import os
import re
import stat
from collections.abc import Iterator
from itertools import islice
from urllib.parse import quote_from_bytes

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ood_audit.images.formats import extensions, looks_like_image
from ood_audit.images.found import BATCH, ScanNotes, tables, with_nulls
from ood_audit.images.members import members
from ood_audit.images.uri import ARCHIVES, file_uri
from ood_audit.text import storable

_CHUNK = 16_384  # entries of a folder that are looked at together
_PLAIN = re.compile(r"[A-Za-z0-9_.~/-]*")  # what a URI shows as it is


def walk(root: str, notes: ScanNotes, exclude: str | None = None) -> Iterator[pa.Table]:
    """The images below a folder, with the columns `found.COLUMNS`; the first ones as soon as they are found.

    Nothing here keeps a list of all files: a flat folder of ten million images is one pass of `os.scandir`.

    Args:
        root: the folder, an absolute path.
        notes: filled in along the way.
        exclude: a folder that is never entered (the store).

    """
    seen: set[tuple[int, int]] = set()  # real folders, so that links that loop or meet are entered once
    pending = [root]
    rows = _Rows(root)
    chunk, most = 1, 1
    while pending:
        folder = pending.pop()
        try:
            key = _key(folder)
            if key in seen or (exclude is not None and _is(exclude, key)):
                continue
            seen.add(key)
            with os.scandir(folder) as entries:
                while some := list(islice(entries, chunk)):
                    chunk = min(2 * chunk, _CHUNK)
                    folders, shards = rows.add(folder, some, notes)
                    pending += folders
                    for shard in shards:
                        path = storable(os.path.relpath(shard, root).replace(os.sep, "/"))
                        yield from tables(members(file_uri(shard), path, notes))
                    if rows.count >= most:
                        yield rows.take()
                        most = BATCH
        except OSError as error:
            notes.unreadable[folder] = error.strerror or str(error)
    if rows.count:
        yield rows.take()


class _Rows:
    """Collects images, folder by folder."""

    def __init__(self, root: str) -> None:
        self._below = len(root.rstrip(os.sep)) + 1
        self.take()

    def take(self) -> pa.Table:
        """What has been collected, and start anew."""
        table = None
        if getattr(self, "count", 0):
            at = pa.array(np.repeat(np.arange(len(self._counts)), self._counts))
            uris = pc.binary_join_element_wise(pa.array(self._uri_of).take(at), pa.array(self._uris), "")
            paths = pc.binary_join_element_wise(pa.array(self._path_of).take(at), pa.array(self._paths), "")
            columns = [uris, paths, pa.array(self._sizes, pa.int64()), pa.array(self._times, pa.int64())]
            table = with_nulls(columns)
        self.count = 0
        self._uri_of: list[str] = []  # by folder
        self._path_of: list[str] = []
        self._counts: list[int] = []  # images in each folder
        self._uris: list[str] = []
        self._paths: list[str] = []
        self._sizes: list[int] = []
        self._times: list[int] = []
        return table

    def add(self, folder: str, entries: list[os.DirEntry[str]], notes: ScanNotes) -> tuple[list[str], list[str]]:
        """Take up the images among some entries of a folder; returns the folders and the archives among them."""
        names, infos, folders, shards = _plain(entries) or _one_by_one(entries, notes)
        self._sizes += [info.st_size if info else 0 for info in infos]
        self._times += [info.st_mtime_ns if info else 0 for info in infos]
        if names:
            self._add_names(folder, names)
        return folders, shards

    def _add_names(self, folder: str, names: list[str]) -> None:
        self.count += len(names)
        self._counts.append(len(names))
        self._uri_of.append(file_uri(folder).rstrip("/") + "/")
        path = folder[self._below :]
        self._path_of.append(storable(path.replace(os.sep, "/")) + "/" if path else "")
        if _PLAIN.fullmatch("/".join(names)):
            self._uris += names
            self._paths += names
        else:
            self._uris += [quote_from_bytes(os.fsencode(name)) for name in names]
            self._paths += [storable(name) for name in names]


_Found = tuple[list[str], "list[os.stat_result] | list[os.stat_result | None]", list[str], list[str]]


def _plain(entries: list[os.DirEntry[str]]) -> _Found | None:
    """The names and facts of the entries, if all of them are files that are named as images: the quick way."""
    names = [entry.name for entry in entries]
    suffixes = {name[name.rfind(".") :] for name in names}
    if not {suffix.lower() for suffix in suffixes} <= extensions() or any(name[0] == "." for name in names):
        return None
    try:
        infos = [entry.stat() for entry in entries]
    except OSError:
        return None
    if not all(stat.S_ISREG(mode) for mode in {info.st_mode for info in infos}):
        return None
    return names, infos, [], []


def _one_by_one(entries: list[os.DirEntry[str]], notes: ScanNotes) -> _Found:
    """The names and facts (None: a link to nothing) of the images among the entries; the folders and archives."""
    names: list[str] = []
    infos: list[os.stat_result | None] = []
    folders, shards = [], []
    for entry in entries:
        if _is_folder(entry):
            if not entry.name.startswith("."):
                folders.append(entry.path)
            continue
        suffix = os.path.splitext(entry.name)[1].lower()
        if entry.name.startswith(".") or (suffix and suffix not in extensions() and suffix not in ARCHIVES):
            notes.skipped[storable(suffix or entry.name)] += 1
            continue
        try:
            info = entry.stat()
        except OSError:  # decoding reports it as an unreadable image
            info = None
        if info is not None and not stat.S_ISREG(info.st_mode):  # a pipe or a socket would block its reader
            notes.skipped["not a regular file"] += 1
        elif suffix in ARCHIVES:
            shards.append(entry.path)
        elif not suffix and not looks_like_image(entry.path):
            notes.skipped["no extension"] += 1
        else:
            names.append(entry.name)
            infos.append(info)
    return names, infos, folders, shards


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points at itself
        return False


def _key(folder: str) -> tuple[int, int]:
    info = os.stat(folder)
    return info.st_dev, info.st_ino


def _is(folder: str, key: tuple[int, int]) -> bool:
    try:
        return _key(folder) == key
    except OSError:  # not made yet
        return False
