"""Finding images: folders, archives, single files and lists, here or elsewhere, as a stream."""

import os
from collections.abc import Iterator

import pyarrow as pa

from ood_audit.errors import OodAuditError, UsageError
from ood_audit.images import access
from ood_audit.images.datasets import registry
from ood_audit.images.folders import walk
from ood_audit.images.found import UNKNOWN, ImageRef, ScanNotes, tables
from ood_audit.images.lists import LIST_SUFFIXES, listed
from ood_audit.images.members import members
from ood_audit.images.spelling import Spelling
from ood_audit.images.uri import file_uri, is_archive, is_remote, local_path
from ood_audit.text import printable, storable

__all__ = ["ImageRef", "ScanNotes", "file_uri", "listing", "local_path", "resolve", "scan"]


def resolve(source: str | os.PathLike[str]) -> str:
    """What names a source in the store: its absolute path, or its canonical URI.

    Raises:
        UsageError: nothing is there, or it is nothing that can be read.
        OodAuditError: it can't be told what is there.

    """
    name = os.fspath(source)
    if is_remote(name):
        name = access.canonical(name)
        if not name.startswith("http") and not _kind(name):
            raise UsageError(f"nothing there: {printable(name)}")
        if name.startswith("http") and is_archive(name.partition("?")[0]):
            raise UsageError(f"{printable(name)}: members of an archive can't be read over HTTP; download it first")
        return name
    path = Spelling()(os.path.realpath(source))
    if not name or not os.path.exists(path):
        raise UsageError(f"no such file or folder: {printable(name) or '(an empty name)'}")
    if path.lower().endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        raise UsageError(
            f"{printable(path)} is compressed, so its members can't be read one by one; make it a .tar or .zip"
        )
    return path


def listing(
    source: str, notes: ScanNotes, *, exclude: str | None = None, images: str | None = None
) -> Iterator[pa.Table]:
    """The images of one `resolve`d source, unordered: tables with the columns `found.COLUMNS`, none of them empty.

    The first one comes as soon as an image is found, and is small.

    Args:
        source: a folder (searched recursively), a tar or zip file, an image, or a list of these (.txt, .csv, .parquet);
            on this machine or elsewhere. Also a dataset with labels, see `datasets.registry`.
        notes: filled in along the way.
        exclude: a folder that is never entered (the store).
        images: the folder of the images of a dataset, where it is not beside the annotations.

    Raises:
        UsageError: a list or a file of annotations can't be read.
        OodAuditError: a remote folder can't be listed.

    """
    remote = is_remote(source)
    kind = _kind(source) if remote and not source.startswith("http") else ""
    if _is_dataset(source, kind == "folder"):
        return tables(registry.listed(source, notes, images))
    if os.path.isdir(source):
        return walk(source, notes, exclude)
    if kind == "folder":
        return tables(_remote_folder(source, notes, exclude))
    plain = source.partition("?")[0] if remote else source
    uri = source if remote else file_uri(source)
    name = storable(os.path.basename(plain))
    if plain.lower().endswith(LIST_SUFFIXES):
        return tables(listed(source, notes))
    if is_archive(plain):
        return tables(members(uri, name, notes))
    try:
        size_bytes, mtime_ns = access.facts(uri) or (0, 0)
    except OSError:  # whatever is wrong with what the user named, it gets a row
        size_bytes, mtime_ns = UNKNOWN if remote else (0, 0)
    return tables(iter([(uri, name, size_bytes, mtime_ns)]))


def scan(source: str, notes: ScanNotes, *, exclude: str | None = None, images: str | None = None) -> Iterator[ImageRef]:
    """The same as `listing`, image by image."""
    for table in listing(source, notes, exclude=exclude, images=images):
        for uri, *facts in zip(*(column.to_pylist() for column in table.columns[:-1]), strict=True):
            yield ImageRef(uri, storable(source), *facts)


def _remote_folder(
    source: str, notes: ScanNotes, exclude: str | None
) -> Iterator[tuple[str, str, int, int, str | None]]:
    """The images below the URI of a folder, with those in its archives, as rows of `found.COLUMNS`."""
    from ood_audit.images import object_store

    for uri, path, size_bytes, mtime_ns in object_store.walk(source, notes, exclude):
        if is_archive(uri.partition("?")[0]):
            yield from members(uri, path, notes)
        else:
            yield uri, path, size_bytes, mtime_ns, None


def _is_dataset(source: str, is_remote_folder: bool) -> bool:
    try:
        return registry.is_dataset(source, is_remote_folder=is_remote_folder)
    except OSError as error:
        raise OodAuditError(
            f"cannot list {printable(source)}: {error.strerror}; the images in the store are unchanged"
        ) from error


def _kind(uri: str) -> str:
    from ood_audit.images import object_store  # imported where it is needed: pyarrow's file systems take their time

    try:
        return object_store.exists(uri)
    except OSError as error:
        raise OodAuditError(
            f"cannot read {printable(uri)}: {error.strerror}; the images in the store are unchanged"
        ) from error
