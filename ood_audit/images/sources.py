"""Finding images: folders, single files and list files, as a stream of tables or of `ImageRef`s."""

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from ood_audit.errors import UsageError
from ood_audit.images.folders import walk
from ood_audit.images.found import ImageRef, ScanNotes, tables
from ood_audit.images.lists import LIST_SUFFIXES, entries
from ood_audit.images.storage import file_uri, local_path
from ood_audit.text import printable, storable

__all__ = ["ImageRef", "ScanNotes", "file_uri", "listing", "local_path", "resolve", "scan"]


def resolve(source: str | os.PathLike[str]) -> str:
    """The absolute path that names a source in the store; raises UsageError where nothing is there."""
    path = os.path.realpath(source)
    if not os.fspath(source) or not os.path.exists(path):
        raise UsageError(f"no such file or folder: {printable(os.fspath(source)) or '(an empty name)'}")
    return path


def listing(source: str, notes: ScanNotes, *, exclude: str | None = None) -> Iterator[pa.Table]:
    """The images of one `resolve`d source, unordered: tables with the columns `found.COLUMNS`, none of them empty.

    The first one comes as soon as an image is found, and is small.

    Args:
        source: a folder (searched recursively), an image file, or a list of paths (.txt, .csv, .parquet).
        notes: filled in along the way.
        exclude: a folder that is never entered (the store).

    """
    if os.path.isdir(source):
        return walk(source, notes, exclude)
    if source.lower().endswith(LIST_SUFFIXES):
        return tables(_listed(source))
    return tables(iter([_named_file(source, storable(os.path.basename(source)))]))


def scan(source: str, notes: ScanNotes, *, exclude: str | None = None) -> Iterator[ImageRef]:
    """The same as `listing`, image by image."""
    for table in listing(source, notes, exclude=exclude):
        for uri, path, size_bytes, mtime_ns in zip(*(column.to_pylist() for column in table.columns), strict=True):
            yield ImageRef(uri, storable(source), path, size_bytes, mtime_ns)


def _named_file(location: str, path: str) -> tuple[str, str, int, int]:
    """An image that the user named: whatever is wrong with it, it gets a row."""
    try:
        info = os.stat(location)
        size_bytes, mtime_ns = info.st_size, info.st_mtime_ns
    except (OSError, ValueError):
        size_bytes, mtime_ns = 0, 0
    return file_uri(location), path, size_bytes, mtime_ns


def _listed(source: str) -> Iterator[tuple[str, str, int, int]]:
    """Entries are relative to the list's own folder, or absolute."""
    base = os.path.dirname(source)
    for entry in entries(Path(source)):
        location = os.path.normpath(os.path.join(base, entry))
        inside = location.startswith(base.rstrip(os.sep) + os.sep)
        path = os.path.relpath(location, base) if inside else location
        yield _named_file(location, storable(path.replace(os.sep, "/")))
