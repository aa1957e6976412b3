"""Archives of images, tar files and zip files: each member is an image, read from its place in the file.

Where the members lie is found once for each state of an archive, and kept for the few that were used last. A damaged
archive gives the members before the damage. The archive itself then stands for the rest, with the error.
"""

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol
from urllib.parse import quote_from_bytes, unquote_to_bytes

from ood_audit.images import tars, zips
from ood_audit.images.formats import extensions
from ood_audit.images.found import ScanNotes
from ood_audit.images.storage import ARCHIVES, Content, UnreadableError, is_remote, local_path
from ood_audit.text import storable

_KEPT = 32  # indexes; one of 10,000 members takes some 2 MB
_AHEAD = 1 << 20  # bytes read at once where a remote file is indexed


class Index(Protocol):
    """What is in an archive."""

    kind: str  # for people
    sizes: dict[str, int]  # in bytes, by the names of the members
    others: int  # members that are no files
    damage: str | None  # why the archive ends early

    def read(self, file: Any, name: str) -> bytes:
        """The bytes of a member; UnreadableError where they can't be had."""


_indexes: OrderedDict[tuple[str, int, int], Index] = OrderedDict()
_lock = threading.Lock()  # one thread makes an index, the others wait for it


def is_archive(name: str) -> bool:
    """Whether a file is an archive of images, by its name."""
    return name.lower().endswith(ARCHIVES)


def members(uri: str, path: str, notes: ScanNotes) -> Iterator[tuple[str, str, int, int]]:
    """The images of an archive: rows of `found.COLUMNS`, and one of the archive itself where it is damaged.

    Args:
        uri: The URI of the archive.
        path: What the archive is called relative to its source.
        notes: Filled in along the way. If the archive can't be read at all now, its images are left alone.

    """
    try:
        with _opened(uri) as (file, size, mtime_ns):
            index = _index(uri, file, size, mtime_ns)
    except OSError as error:
        notes.unreadable[uri if is_remote(uri) else local_path(uri)] = error.strerror or str(error)
        return
    for name, length in index.sizes.items():
        parts = [part for part in name.split("/") if part not in ("", ".")]
        suffix = os.path.splitext(name)[1].lower()
        is_hidden = any(part.startswith(".") and part != ".." for part in parts)
        # An archive within an archive is a row, so that its images are not passed over in silence.
        if is_hidden or (suffix not in extensions() and suffix not in ARCHIVES):
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
            raise UnreadableError(index.damage or f"a {index.kind}, not an image; name it as a source of its own")
        name = os.fsdecode(unquote_to_bytes(member))
        if name not in index.sizes:
            raise UnreadableError(f"no such member in the {index.kind}{f', a {index.damage}' if index.damage else ''}")
        if is_archive(name):
            raise UnreadableError("an archive within an archive; unpack it, and name it as a source of its own")
        return Content(index.read(file, name), index.sizes[name], mtime_ns)


def facts(uri: str, member: str) -> tuple[int, int] | None:
    """Size and time of a member; None where there is no such member, OSError where the archive can't be read."""
    with _opened(uri) as (file, size, mtime_ns):
        length = _index(uri, file, size, mtime_ns).sizes.get(os.fsdecode(unquote_to_bytes(member)))
    return None if length is None else (length, mtime_ns)


def _quoted(name: str) -> str:
    return quote_from_bytes(os.fsencode(name))


@contextmanager
def _opened(uri: str) -> Iterator[tuple[Any, int, int]]:
    """An archive, open for reading, its size and its time."""
    if is_remote(uri):
        from ood_audit.images import object_store as objects

        with objects.open_file(uri) as opened:
            yield opened
    else:
        with open(local_path(uri), "rb") as file:
            info = os.fstat(file.fileno())
            yield file, info.st_size, info.st_mtime_ns


def _index(uri: str, file: Any, size: int, mtime_ns: int) -> Index:
    key = (uri, size, mtime_ns)
    make = zips.ZipIndex if uri.partition("?")[0].lower().endswith(zips.SUFFIX) else tars.TarIndex
    with _lock:
        if key not in _indexes:
            if is_remote(uri):  # headers are small and far between: they are read with what lies around them
                ahead = io.BufferedReader(file, _AHEAD)
                _indexes[key] = make(ahead, size)
                ahead.detach()
            else:
                _indexes[key] = make(file, size)
            while len(_indexes) > _KEPT:
                _indexes.popitem(last=False)
        _indexes.move_to_end(key)
        return _indexes[key]
