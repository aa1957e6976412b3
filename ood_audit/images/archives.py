"""Archives of images, tar, zip and Parquet files: each member is an image, read from its place in the file.

Where the members lie is found once for each state of an archive, and kept for the few that were used last. A damaged
archive gives the members before the damage. The archive itself then stands for the rest, with the error.
"""

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import BinaryIO, Protocol, cast
from urllib.parse import unquote_to_bytes

from ood_audit.images import parquets, tars, zips
from ood_audit.images.content import Content, UnreadableError
from ood_audit.images.uri import is_archive, is_remote

_KEPT = 32  # indexes; one of 10,000 members takes some 2 MB
_AHEAD = 1 << 20  # bytes read at once where a remote file is indexed


class Index(Protocol):
    """What is in an archive."""

    kind: str  # for people
    others: int  # members that are no files
    damage: str | None  # why the archive ends early

    @property
    def sizes(self) -> Mapping[str, int]:
        """Sizes in bytes by the names of the members; -1 where a size is known only once the member is read."""

    def read(self, file: BinaryIO, name: str) -> bytes:
        """The bytes of a member; UnreadableError where they can't be read."""


_KINDS: dict[str, Callable[[BinaryIO, int], Index]] = {
    zips.SUFFIX: zips.ZipIndex,
    parquets.SUFFIX: parquets.ParquetIndex,
}
_OTHERS = (  # what a file may be that has the suffix of an archive, by its first bytes, and the remedy
    (0, b"PK\x03\x04", "zip file", "name it .zip"),
    (257, b"ustar", "tar file", "name it .tar"),
    (0, b"PAR1", "Parquet file", "name it .parquet"),
    (0, b"\x1f\x8b", "gzip file", "unpack it first"),
    (0, b"BZh", "bzip2 file", "unpack it first"),
    (0, b"\xfd7zXZ", "xz file", "unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "Zstandard file", "unpack it first"),
    (0, b"Rar!", "RAR archive", "unpack it, and embed the folder"),
    (0, b"7z\xbc\xaf\x27\x1c", "7z archive", "unpack it, and embed the folder"),
    (0, b"\xff\xd8\xff", "JPEG", "name it .jpg"),
    (0, b"\x89PNG", "PNG", "name it .png"),
    (0, b"version https://git-lfs", "pointer of Git LFS", "run `git lfs pull`"),
    (0, b"<", "web page", "download it again"),
)
_indexes: OrderedDict[tuple[str, int, int], Index] = OrderedDict()
_lock = threading.Lock()  # one thread makes an index, the others wait for it


def index(uri: str, file: BinaryIO, size: int, mtime_ns: int) -> Index:
    """What is in an archive that is open for reading, in this state of it."""
    key = (uri, size, mtime_ns)
    suffix = os.path.splitext(uri.partition("?")[0])[1].lower()
    make = _KINDS.get(suffix, tars.TarIndex)
    with _lock:
        if key not in _indexes:
            if (
                is_remote(uri) and "#" not in uri
            ):  # headers are small and far between: they are read with what lies around them
                ahead = io.BufferedReader(cast(io.RawIOBase, file), _AHEAD)
                _indexes[key] = make(ahead, size)
                ahead.detach()
            else:
                _indexes[key] = make(file, size)
            made = _indexes[key]
            if made.damage is not None and not made.sizes:
                made.damage = _misnamed(file, made.kind) or made.damage
            while len(_indexes) > _KEPT:
                _indexes.popitem(last=False)
        _indexes.move_to_end(key)
        return _indexes[key]


def _misnamed(file: BinaryIO, kind: str) -> str | None:
    """What a file is that is no archive of a kind."""
    try:
        file.seek(0)
        head = file.read(512)
    except (OSError, ValueError):
        return None
    for at, magic, other, remedy in _OTHERS:
        if head[at:].startswith(magic) and other != kind:
            return f"not a {kind} but a {other}: {remedy}"
    return None


def read(index: Index, file: BinaryIO, member: str, mtime_ns: int) -> Content:
    """The bytes of a member of an open archive.

    Args:
        index: What is in the archive.
        file: The archive.
        member: The member's name, percent-encoded.
        mtime_ns: The time of the archive.

    Raises:
        UnreadableError: There is no such member, or no member is named.

    """
    if not member:
        raise UnreadableError(index.damage or f"a {index.kind}, not an image; name it as a source of its own")
    name = os.fsdecode(unquote_to_bytes(member))
    if name not in index.sizes:
        raise UnreadableError(f"no such member in the {index.kind}{f', a {index.damage}' if index.damage else ''}")
    if is_archive(name):
        raise UnreadableError("an archive within an archive; unpack it, and name it as a source of its own")
    data = index.read(file, name)
    return Content(data, len(data), mtime_ns)


@contextmanager
def open_member(index: Index, file: BinaryIO, member: str) -> Iterator[tuple[BinaryIO, int]]:
    """A member of an open zip file, its name percent-encoded, for reading anywhere in it, and its size.

    Raises:
        UnreadableError: There is no such member, or it can't be read.

    """
    name = os.fsdecode(unquote_to_bytes(member))
    if not isinstance(index, zips.ZipIndex) or name not in index.sizes:
        raise UnreadableError(f"no such file in the {index.kind}")
    with index.member(file, name) as opened:
        yield cast(BinaryIO, opened), index.sizes[name]


def size_of(index: Index, member: str) -> int | None:
    """How many bytes a member has, its name percent-encoded; None where there is no such member."""
    return index.sizes.get(os.fsdecode(unquote_to_bytes(member)))
