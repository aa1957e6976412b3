"""Tar files of images, as WebDataset has them: each member is an image, read from its place in the file.

Where the members lie is found once for each state of a tar file, and kept for the few that were used last. A damaged
file gives the members before the damage; the file itself then stands for the rest, with the error.
"""

import io
import os
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

from ood_audit.images.formats import extensions
from ood_audit.images.found import ScanNotes
from ood_audit.images.storage import Content, UnreadableError, is_remote, local_path
from ood_audit.text import storable

SUFFIX = ".tar"
_KEPT = 32  # indexes; one of 10,000 members takes some 2 MB
_AHEAD = 1 << 20  # bytes read at once where a remote file is indexed


@dataclass(frozen=True)
class _Index:
    """The members by name: offset and size. `others` are those that are no files, `damage` says why it ends early."""

    members: dict[str, tuple[int, int]]
    others: int
    damage: str | None


_indexes: OrderedDict[tuple[str, int, int], _Index] = OrderedDict()
_lock = threading.Lock()  # one thread makes an index, the others wait for it


def members(uri: str, path: str, notes: ScanNotes) -> Iterator[tuple[str, str, int, int]]:
    """The images of a tar file: rows of `found.COLUMNS`, and one of the file itself where it is damaged.

    Args:
        uri: the tar file's.
        path: what it is called relative to its source.
        notes: filled in along the way. Where the file can't be read at all now, its images are left alone.

    """
    try:
        with _opened(uri) as (file, size, mtime_ns):
            index = _index(uri, file, size, mtime_ns)
    except OSError as error:
        notes.unreadable[uri if is_remote(uri) else local_path(uri)] = error.strerror or str(error)
        return
    for name, (_, length) in index.members.items():
        parts = [part for part in name.split("/") if part not in ("", ".")]
        suffix = os.path.splitext(name)[1].lower()
        if suffix not in extensions() or any(part.startswith(".") and part != ".." for part in parts):
            notes.skipped[storable(suffix) or "no extension"] += 1
            continue
        yield f"{uri}#{_quoted(name)}", f"{path}/{storable('/'.join(parts))}", length, mtime_ns
    if index.others:
        notes.skipped["not a regular file"] += index.others
    if index.damage:
        yield uri, path, size, mtime_ns


def read(uri: str, member: str) -> Content:
    """The bytes of a member, its name percent-encoded; OSError where there are none, or no member is named."""
    with _opened(uri) as (file, size, mtime_ns):
        index = _index(uri, file, size, mtime_ns)
        if not member:
            raise UnreadableError(index.damage or "a tar file, not an image; name it as a source of its own")
        name = os.fsdecode(unquote_to_bytes(member))
        if name not in index.members:
            raise UnreadableError(f"no such member in the tar file{f', a {index.damage}' if index.damage else ''}")
        offset, length = index.members[name]
        file.seek(offset)
        return Content(file.read(length), length, mtime_ns)


def facts(uri: str, member: str) -> tuple[int, int] | None:
    """Size and time of a member; None where there is no such member, OSError where the tar file can't be read."""
    with _opened(uri) as (file, size, mtime_ns):
        found = _index(uri, file, size, mtime_ns).members.get(os.fsdecode(unquote_to_bytes(member)))
    return found and (found[1], mtime_ns)


def _quoted(name: str) -> str:
    return quote_from_bytes(os.fsencode(name))


@contextmanager
def _opened(uri: str) -> Iterator[tuple[Any, int, int]]:
    """A tar file, open for reading, its size and its time."""
    if is_remote(uri):
        from ood_audit.images import objects

        with objects.open_file(uri) as opened:
            yield opened
    else:
        with open(local_path(uri), "rb") as file:
            info = os.fstat(file.fileno())
            yield file, info.st_size, info.st_mtime_ns


def _index(uri: str, file: Any, size: int, mtime_ns: int) -> _Index:
    key = (uri, size, mtime_ns)
    with _lock:
        if key not in _indexes:
            if is_remote(uri):  # headers are small and far between: they are read with what lies around them
                ahead = io.BufferedReader(file, _AHEAD)
                _indexes[key] = _read_index(ahead, size)
                ahead.detach()
            else:
                _indexes[key] = _read_index(file, size)
            while len(_indexes) > _KEPT:
                _indexes.popitem(last=False)
        _indexes.move_to_end(key)
        return _indexes[key]


def _read_index(file: Any, size: int) -> _Index:
    found: dict[str, tuple[int, int]] = {}
    others = 0
    damage = None
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # else it keeps them all
                end = tar.offset
                if member.isreg() and not member.issparse():
                    found[member.name] = (member.offset_data, member.size)  # of two with one name the last counts
                elif not member.isdir():
                    others += 1
            # A header that makes no sense ends the file for `tarfile`, as its proper end, zeros, does.
            file.seek(tar.offset)
            block = file.read(tarfile.BLOCKSIZE)
            if block.strip(b"\0"):
                damage = "no header of a member where one should be"
    except tarfile.TarError as error:
        damage = str(error)
    if damage is None and end > size:
        damage = "it ends within a member"
    if damage is not None:
        damage = f"damaged tar file: {damage}, after {len(found)} readable members"
    return _Index(found, others, damage)
