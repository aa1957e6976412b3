"""What is behind a URI: its bytes, its size and its time, wherever the file lies.

Whatever goes wrong in reading is an OSError, whose `strerror` is a sentence for people.
"""

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import BinaryIO, Protocol, TypeVar

from ood_audit.images import archives
from ood_audit.images.content import Content
from ood_audit.images.uri import image_and_box, is_archive, is_file, is_remote, local_path

REMOTE_THREADS = 32  # requests that wait for the network side by side
_A_TASK, _TASKS = 16, 128  # items of a task, where that leaves so many tasks for the threads
S = TypeVar("S")
T = TypeVar("T")


class _Remote(Protocol):
    """What the modules for remote files, `http` and `object_store`, have in common."""

    def canonical(self, uri: str, /) -> str: ...

    def facts(self, uri: str, /) -> tuple[int, int] | None: ...

    def read(self, uri: str, /) -> Content: ...


def read(uri: str) -> Content:
    """The bytes behind a URI, all of them, read once; of a box those of its image.

    Raises:
        OSError: it is gone, can't be reached, or may not be read.

    """
    uri, _ = image_and_box(uri)
    base, separator, member = _base_and_member(uri)
    if separator or is_archive(base.partition("?")[0]):
        with open_file(base) as (file, size, mtime_ns):
            return archives.read(archives.index(base, file, size, mtime_ns), file, member, mtime_ns)
    if is_remote(uri):
        return _remote(uri).read(uri)
    with open(local_path(uri), "rb") as file:
        info = os.fstat(file.fileno())
        return Content(file.read(), info.st_size, info.st_mtime_ns)


def facts(uri: str) -> tuple[int, int] | None:
    """Size and time of what is behind a URI, as in `Content`; None where there is nothing.

    Raises:
        OSError: it can't be told.

    """
    uri, _ = image_and_box(uri)
    base, separator, member = _base_and_member(uri)
    if separator:
        with open_file(base) as (file, size, mtime_ns):
            length = archives.size_of(archives.index(base, file, size, mtime_ns), member)
        return None if length is None else (length, mtime_ns)
    if is_remote(uri):
        return _remote(uri).facts(uri)
    try:
        info = os.stat(local_path(uri))
    except (FileNotFoundError, ValueError):  # a null byte is in no file's name
        return None
    return info.st_size, info.st_mtime_ns


@contextmanager
def open_file(uri: str) -> Iterator[tuple[BinaryIO, int, int]]:
    """Open a file, here, in an object store, or in a zip file, for reading anywhere in it.

    Yields:
        The file, its size in bytes, and its time in ns.

    Raises:
        OSError: it is gone, can't be reached, or may not be read.

    """
    base, separator, member = _base_and_member(uri)
    if separator:
        with (
            open_file(base) as (file, size, mtime_ns),
            archives.open_member(archives.index(base, file, size, mtime_ns), file, member) as (inner, length),
        ):
            yield inner, length, mtime_ns
    elif is_remote(uri):
        from ood_audit.images import object_store

        with object_store.open_file(uri) as opened:
            yield opened
    else:
        with open(local_path(uri), "rb") as file:
            info = os.fstat(file.fileno())
            yield file, info.st_size, info.st_mtime_ns


def _base_and_member(uri: str) -> tuple[str, str, str]:
    """The URI of an archive, `#`, and the member; the archive of a row may be a Parquet file in a zip file."""
    base, separator, member = uri.rpartition("#")
    return (base, separator, member) if separator else (uri, "", "")


def each(function: Callable[[str], T], uris: Sequence[str]) -> list[T]:
    """A function of each URI, many at a time where one is remote."""
    if not any(map(is_remote, uris)):
        return [function(uri) for uri in uris]
    with ThreadPoolExecutor(REMOTE_THREADS, thread_name_prefix="remote") as pool:
        return list(pool.map(function, uris))


def readers(uris: Iterable[str]) -> ThreadPoolExecutor:
    """Threads to decode some pictures: one for each core, as more would only wait for Python's lock; more if remote."""
    from joblib import cpu_count

    return ThreadPoolExecutor(None if any(map(is_remote, uris)) else cpu_count(), thread_name_prefix="decode")


def by_few(pool: ThreadPoolExecutor, function: Callable[[S], T], items: Sequence[S]) -> Generator[T, None, None]:
    """`pool.map` with up to 16 items a task: one at a time, 6,000 thumbnails take a tenth more processor time.

    Where no more results are asked for, as after a Ctrl-C, a task ends after the item at hand.
    """
    few = max(1, min(_A_TASK, len(items) // _TASKS))
    ended = Event()

    def task(some: Sequence[S]) -> list[T]:
        return [function(item) for item in some if not ended.is_set()]

    try:
        for results in pool.map(task, (items[start : start + few] for start in range(0, len(items), few))):
            yield from results
    finally:
        ended.set()


def sizes(uris: Sequence[str]) -> list[int | None]:
    """How many bytes are behind each URI; None where there is nothing, or it can't be told."""

    def size(uri: str) -> int | None:
        try:
            found = facts(uri)
        except OSError:
            return None
        return found and found[0]

    return each(size, uris)


def is_gone(uri: str) -> bool:
    """Whether it is certain that there is nothing behind a URI any more."""
    uri, _ = image_and_box(uri)
    try:
        if not is_file(uri):
            return facts(uri) is None
        os.lstat(local_path(uri))
    except (FileNotFoundError, NotADirectoryError, ValueError):  # also: the archive of a member is gone
        return True
    except OSError:
        return False
    return False


def canonical(uri: str) -> str:
    """The one spelling of a remote URI; UsageError where it is none that can be read, or has a password in it."""
    return _remote(uri).canonical(uri)


def _remote(uri: str) -> _Remote:
    """The module for a remote URI, imported when it is first needed."""
    if uri.lower().startswith(("http://", "https://")):
        from ood_audit.images import http

        return http
    from ood_audit.images import object_store

    return object_store
