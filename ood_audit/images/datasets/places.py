"""Where a dataset lies: on this machine, in a zip file, or in an object store. Readers ask a place, not the system.

Paths in a zip file or an object store begin with `/`, which is the top of the archive or the folder of the dataset.
"""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, Protocol, TypeVar
from urllib.parse import quote, quote_from_bytes

from PIL import Image

from ood_audit.images import access, archives
from ood_audit.images.content import UnreadableError
from ood_audit.images.folders import walk
from ood_audit.images.formats import extensions, formats
from ood_audit.images.found import UNKNOWN, ScanNotes
from ood_audit.images.lists import local_entry
from ood_audit.images.spelling import Spelling
from ood_audit.images.uri import archive_and_member, is_remote, local_path
from ood_audit.text import storable

_ON_ITS_SIDE = (5, 6, 7, 8)  # orientations of EXIF
T = TypeVar("T")
S = TypeVar("S")


class Place(Protocol):
    """What readers ask of it. An OSError, whose `strerror` is a sentence, is raised where something can't be read."""

    looked_at: int  # files that may be asked for, to find the folder that they are in

    def read(self, path: str, /) -> bytes:
        """The bytes of a file."""

    def is_file(self, path: str, /) -> bool:
        """Whether there is a file."""

    def is_folder(self, path: str, /) -> bool:
        """Whether there is a folder."""

    def files(self, folder: str, /) -> list[str]:
        """The paths of the files below a folder, in order."""

    def images(self, folder: str, notes: ScanNotes, /) -> Iterator[str]:
        """The paths of the images below a folder."""

    def size(self, path: str, /) -> tuple[int, int] | None:
        """Width and height of an image, upright; None where it can't be read."""

    def entry(self, base: str, path: str, /) -> tuple[str, str]:
        """The URI of a file, and its path from a folder."""

    def facts(self, path: str, /) -> tuple[int, int] | None:
        """The size and time of a file; None where there is none."""

    def each(self, function: Callable[[S], T], items: Sequence[S], /) -> list[T]:
        """A function of each item, many at a time where that is quicker."""


class Local:
    """This machine."""

    looked_at = 50

    def __init__(self) -> None:
        self._spelling = Spelling()

    def read(self, path: str) -> bytes:
        """See `Place`."""
        with open(path, "rb") as file:
            return file.read()

    def is_file(self, path: str) -> bool:
        """See `Place`."""
        return os.path.isfile(path)

    def is_folder(self, path: str) -> bool:
        """See `Place`."""
        return os.path.isdir(path)

    def files(self, folder: str) -> list[str]:
        """See `Place`."""
        return [os.path.join(above, name) for above, _, names in sorted(os.walk(folder)) for name in sorted(names)]

    def images(self, folder: str, notes: ScanNotes) -> Iterator[str]:
        """See `Place`."""
        for table in walk(folder, notes):
            yield from sorted(map(local_path, table["uri"].to_pylist()))

    def size(self, path: str) -> tuple[int, int] | None:
        """See `Place`."""
        return upright_size(path)

    def entry(self, base: str, path: str) -> tuple[str, str]:
        """See `Place`."""
        return local_entry(base, path, self._spelling)

    def facts(self, path: str) -> tuple[int, int] | None:
        """See `Place`."""
        try:
            if is_remote(path):
                return access.facts(path)
            info = os.stat(path)
        except (OSError, ValueError):
            return self._facts_of_member(path)
        return info.st_size, info.st_mtime_ns

    def each(self, function: Callable[[S], T], items: Sequence[S]) -> list[T]:
        """See `Place`."""
        return list(map(function, items))

    def _facts_of_member(self, path: str) -> tuple[int, int] | None:
        if archive_and_member(path) is None:
            return None
        try:
            return access.facts(self.entry(os.path.dirname(path), path)[0])
        except OSError:
            return None


class Listed:
    """A zip file, or what lies below a URI: all names are known beforehand.

    Args:
        uris: The URI of each file by its path.
        facts: The size and time of each.
        name: What the place is called in paths, such as `data.zip`; "" for a folder.
        open_ended: Whether further files may be there, which are then asked for: at https://, which has no listings.

    """

    def __init__(
        self, uris: dict[str, str], facts: dict[str, tuple[int, int]], *, name: str = "", open_ended: str = ""
    ) -> None:
        self.looked_at = 3 if open_ended else 50
        self._uris = uris
        self._facts = facts
        self._name = name
        self._open = open_ended
        self._folders = {above for path in uris for above in _above(path)}
        self._remote = bool(open_ended) or any(is_remote(uri) for uri in list(uris.values())[:1])

    def read(self, path: str) -> bytes:
        """See `Place`."""
        return access.read(self._uri(path)).data

    def is_file(self, path: str) -> bool:
        """See `Place`."""
        return _plain(path) in self._uris or (bool(self._open) and self.facts(path) is not None)

    def is_folder(self, path: str) -> bool:
        """See `Place`."""
        return _plain(path) in self._folders

    def files(self, folder: str) -> list[str]:
        """See `Place`."""
        above = _plain(folder).rstrip("/") + "/"
        return sorted(path for path in self._uris if path.startswith(above))

    def images(self, folder: str, notes: ScanNotes) -> Iterator[str]:
        """See `Place`."""
        for path in self.files(folder):
            is_hidden = any(part.startswith(".") for part in path.split("/"))
            if os.path.splitext(path)[1].lower() in extensions() and not is_hidden:
                yield path

    def size(self, path: str) -> tuple[int, int] | None:
        """See `Place`."""
        uri = self._uri(path)
        try:
            if is_remote(uri) and "#" not in uri and not self._open:
                with access.open_file(uri) as (file, _, _):
                    return upright_size(file)
            return upright_size(io.BytesIO(access.read(uri).data))
        except OSError:
            return None

    def entry(self, base: str, path: str) -> tuple[str, str]:
        """See `Place`."""
        if is_remote(path):
            return access.canonical(path), path.partition("?")[0]
        plain, above = _plain(path), _plain(base).rstrip("/") + "/"
        inside = plain.removeprefix(above) if self._name == "" else plain.lstrip("/")
        return self._uri(path), storable(f"{self._name}/{inside}" if self._name else inside.lstrip("/"))

    def facts(self, path: str) -> tuple[int, int] | None:
        """See `Place`."""
        plain = _plain(path)
        if plain not in self._facts and (self._open or is_remote(path)):
            uri = access.canonical(path) if is_remote(path) else self._uri(path)
            try:
                found = access.facts(uri)
            except OSError:  # it may well be there
                return UNKNOWN
            if found is None:
                return None
            self._facts[plain] = found
        return self._facts.get(plain)

    def each(self, function: Callable[[S], T], items: Sequence[S]) -> list[T]:
        """See `Place`."""
        if not self._remote:
            return list(map(function, items))
        with ThreadPoolExecutor(access.REMOTE_THREADS, thread_name_prefix="remote") as pool:
            return list(pool.map(function, items))

    def _uri(self, path: str) -> str:
        plain = _plain(path)
        if plain in self._uris:
            return self._uris[plain]
        if self._open:
            return self._open + quote(plain)
        raise UnreadableError("no such file")


def of_zip(uri: str, name: str) -> Listed:
    """The members of a zip file; OSError where it can't be read."""
    with access.open_file(uri) as (file, size, mtime_ns):
        found = archives.index(uri, file, size, mtime_ns).sizes
    members = {_plain(member): member for member in found if not member.startswith("__MACOSX/")}
    uris = {path: f"{uri}#{quote_from_bytes(os.fsencode(member))}" for path, member in members.items()}
    return Listed(uris, {path: (found[member], mtime_ns) for path, member in members.items()}, name=name)


def of_folder(uri: str) -> Listed:
    """What lies below a canonical URI; OSError where it can't be listed."""
    if uri.startswith("http"):
        return Listed({}, {}, open_ended=uri.rstrip("/"))
    from ood_audit.images import object_store

    prefix, mark, query = uri.partition("?")
    uris, facts = {}, {}
    for path, size, mtime_ns in object_store.files(uri):
        uris[_plain(path)] = f"{prefix.rstrip('/')}/{quote(path)}{mark}{query}"
        facts[_plain(path)] = size, mtime_ns
    return Listed(uris, facts)


def upright_size(file: str | BinaryIO) -> tuple[int, int] | None:
    """Width and height of an upright image file in pixels, by its header; None where it can't be read."""
    try:
        with Image.open(file, formats=formats()) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112) in _ON_ITS_SIDE
    except Exception:  # Pillow's readers raise anything at all on hostile bytes
        return None
    return (height, width) if turned else (width, height)


def _plain(path: str) -> str:
    """A path with a slash before each of its parts, and without `.` and `..`."""
    parts: list[str] = []
    for part in path.replace(os.sep, "/").split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


def _above(path: str) -> Iterator[str]:
    """The folders that a path is in."""
    while path != "/":
        path = path.rpartition("/")[0] or "/"
        yield path
