"""Finding images: folders, single files and list files → `ImageRef`s, as a stream.

Nothing here keeps a list of all files: a flat folder of ten million images is one pass of `os.scandir`.
"""

import csv
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes

from ood_audit.errors import UsageError
from ood_audit.images.formats import extensions, looks_like_image
from ood_audit.text import printable, storable

LIST_SUFFIXES = (".txt", ".csv", ".parquet")


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One image file, as it was found.

    `path` is relative to `source`, with `/`. `uri` names the file for good (`file:///…`, percent-encoded bytes),
    and `image_id` is its hash: the same file is the same image, whichever source led to it.
    """

    uri: str
    source: str
    path: str
    size_bytes: int
    mtime_ns: int

    @property
    def folder(self) -> str:
        """The folder part of `path`; empty at the top of the source."""
        return self.path.rpartition("/")[0]

    @property
    def image_id(self) -> str:
        """128 bits of BLAKE2b of `uri`, in hexadecimal."""
        return blake2b(self.uri.encode(), digest_size=16).hexdigest()


@dataclass
class ScanNotes:
    """What a scan passed over: `skipped` files by extension, and `unreadable` folders, with the reason."""

    skipped: Counter[str] = field(default_factory=Counter)
    unreadable: dict[str, str] = field(default_factory=dict)


def file_uri(path: str) -> str:
    """`file:///…` for an absolute path, exact for names that are not UTF-8."""
    return "file://" + quote_from_bytes(os.fsencode(path))


def local_path(uri: str) -> str:
    """The path behind a `file://` URI."""
    return os.fsdecode(unquote_to_bytes(uri.removeprefix("file://")))


def resolve(source: str | os.PathLike[str]) -> str:
    """The absolute path that names a source in the store; raises UsageError where nothing is there."""
    path = os.path.realpath(source)
    if not os.fspath(source) or not os.path.exists(path):
        raise UsageError(f"no such file or folder: {printable(os.fspath(source)) or '(an empty name)'}")
    return path


def scan(source: str, notes: ScanNotes, *, exclude: str | None = None) -> Iterator[ImageRef]:
    """The images of one `resolve`d source, unordered.

    Args:
        source: a folder (searched recursively), an image file, or a list of paths (.txt, .csv, .parquet).
        notes: filled in along the way.
        exclude: a folder that is never entered (the store).

    """
    if os.path.isdir(source):
        return _scan_folder(source, notes, exclude)
    if source.lower().endswith(LIST_SUFFIXES):
        return _scan_list(source)
    return iter([_named_file(source, source, storable(os.path.basename(source)))])


def _scan_folder(root: str, notes: ScanNotes, exclude: str | None) -> Iterator[ImageRef]:
    seen: set[tuple[int, int]] = set()  # real folders, so that links that loop or meet are entered once
    pending = [root]
    while pending:
        folder = pending.pop()
        try:
            info = os.stat(folder)
            if (info.st_dev, info.st_ino) in seen or os.path.realpath(folder) == exclude:
                continue
            seen.add((info.st_dev, info.st_ino))
            with os.scandir(folder) as entries:
                for entry in entries:
                    if _is_folder(entry):
                        if not entry.name.startswith("."):
                            pending.append(entry.path)
                    else:
                        yield from _folder_entry(entry, root, notes)
        except OSError as error:
            notes.unreadable[folder] = error.strerror or str(error)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points at itself
        return False


def _folder_entry(entry: os.DirEntry[str], root: str, notes: ScanNotes) -> Iterator[ImageRef]:
    suffix = os.path.splitext(entry.name)[1].lower()
    if entry.name.startswith(".") or (suffix and suffix not in extensions()):
        notes.skipped[storable(suffix or entry.name)] += 1
        return
    size_bytes, mtime_ns = 0, 0
    try:
        info = entry.stat()
        if not stat.S_ISREG(info.st_mode):  # a pipe or a socket would block its reader
            notes.skipped["not a regular file"] += 1
            return
        size_bytes, mtime_ns = info.st_size, info.st_mtime_ns
    except OSError:
        pass  # a dangling link: decoding reports it as an unreadable image
    if not suffix and not looks_like_image(entry.path):
        notes.skipped["no extension"] += 1
        return
    path = storable(os.path.relpath(entry.path, root).replace(os.sep, "/"))
    yield ImageRef(file_uri(entry.path), storable(root), path, size_bytes, mtime_ns)


def _named_file(location: str, source: str, path: str) -> ImageRef:
    """An image that the user named: whatever is wrong with it, it gets a row."""
    try:
        info = os.stat(location)
        size_bytes, mtime_ns = info.st_size, info.st_mtime_ns
    except (OSError, ValueError):
        size_bytes, mtime_ns = 0, 0
    return ImageRef(file_uri(location), storable(source), path, size_bytes, mtime_ns)


def _scan_list(source: str) -> Iterator[ImageRef]:
    """Entries are relative to the list's own folder, or absolute."""
    base = os.path.dirname(source)
    for entry in _list_entries(Path(source)):
        location = os.path.normpath(os.path.join(base, entry))
        inside = location.startswith(base.rstrip(os.sep) + os.sep)
        path = os.path.relpath(location, base) if inside else location
        yield _named_file(location, source, storable(path.replace(os.sep, "/")))


def _list_entries(source: Path) -> Iterator[str]:
    try:
        if source.suffix.lower() == ".parquet":
            yield from _parquet_entries(source)
            return
        with source.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
            if source.suffix.lower() == ".txt":
                for line in lines:
                    if line.strip("\r\n"):
                        yield line.strip("\r\n")
                return
            rows = csv.DictReader(lines)
            _require_path_column(rows.fieldnames or [], source)
            yield from (row["path"] for row in rows if row["path"])
    except (OSError, csv.Error) as error:
        raise UsageError(f"cannot read the list {printable(str(source))}: {error}") from error


def _parquet_entries(source: Path) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(source)
        _require_path_column(file.schema_arrow.names, source)
        kind = file.schema_arrow.field("path").type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise UsageError(f"the list {printable(str(source))}: its column 'path' holds {kind}, not text")
        for batch in file.iter_batches(columns=["path"]):
            yield from (path for path in batch.column(0).to_pylist() if path)
    except pa.ArrowException as error:
        raise UsageError(f"cannot read the list {printable(str(source))}: {error}") from error


def _require_path_column(names: Sequence[str], source: Path) -> None:
    if "path" not in names:
        found = ", ".join(names) or "none"
        raise UsageError(f"the list {printable(str(source))} needs a column named 'path' (it has: {found})")
