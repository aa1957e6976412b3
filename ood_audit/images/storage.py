"""Where images lie: the names of files as URIs, and what is behind a URI.

    file:///folder/a%20b.jpg              a file; the bytes of its name, percent-encoded
    file:///folder/shard.tar#cat/1.jpg    a member of a tar or zip file, its name encoded likewise
    s3://bucket/key, gs://, hdfs://       an object; a query such as ?endpoint_override=HOST belongs to the name
    https://host/path?query               less what is secret in the query

Whatever goes wrong in reading is an OSError, whose `strerror` is a sentence for people.
"""

import importlib
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote, quote_from_bytes, unquote_to_bytes

ARCHIVES = (".tar", ".zip")
_MEMBER = re.compile(r"(.*?\.(?:tar|zip))#(.*)", re.IGNORECASE | re.DOTALL)
REMOTE_THREADS = 32  # that wait for the network
_WINDOWS = os.name == "nt"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of an image, with the size and time that stand for their state.

    `mtime_ns` is the time of the file; for a member, of its archive; over HTTP, see `web`.
    """

    data: bytes
    size_bytes: int
    mtime_ns: int


class UnreadableError(OSError):
    """There is nothing to read, and `strerror` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(0, reason)


def file_uri(path: str) -> str:
    """`file:///…` for an absolute path, exact for names that are not UTF-8.

    On Windows each of the spellings of a path has the same URI: slashes of either kind, either case of the drive's
    letter or the server's name, and the prefix of long paths. A share is `file://server/share/…`.
    """
    if _WINDOWS:
        path = path.replace("\\", "/")
        if path.startswith("//?/"):
            path = path[4:] if path[4:8].upper() != "UNC/" else f"//{path[8:]}"
        if path.startswith("//"):
            server, slash, rest = path[2:].partition("/")
            return f"file://{quote(server.lower())}{slash}{quote_from_bytes(os.fsencode(rest))}"
        if path[1:2] == ":":
            return f"file:///{path[0].upper()}:{quote_from_bytes(os.fsencode(path[2:]))}"
    return "file://" + quote_from_bytes(os.fsencode(path))


def local_path(uri: str) -> str:
    """The path behind a `file://` URI."""
    path = os.fsdecode(unquote_to_bytes(uri.removeprefix("file://")))
    if _WINDOWS:
        is_share, has_drive = not path.startswith("/"), path[2:3] == ":"
        path = (f"//{path}" if is_share else path[1:] if has_drive else path).replace("/", "\\")
    return path


def is_remote(name: str) -> bool:
    """Whether a source, an entry of a list, or a URI is somewhere else: `s3://…`, `https://…`."""
    scheme, separator, _ = name.partition("://")
    return bool(separator) and len(scheme) > 1 and scheme.isalnum() and scheme.lower() != "file"  # `C://` is a drive


def is_file(uri: str) -> bool:
    """Whether a URI is that of a file of its own on this machine."""
    return uri.startswith("file://") and "#" not in uri


def place(uri: str) -> str:
    """What a person, another tool, or a list of paths calls it: a path, ARCHIVE#MEMBER, or the URI of a remote one."""
    if is_remote(uri):
        return uri
    base, separator, member = uri.partition("#")
    return local_path(base) + separator + os.fsdecode(unquote_to_bytes(member))


def archive_and_member(name: str) -> tuple[str, str] | None:
    """The two parts of ARCHIVE#MEMBER; None for another name."""
    found = _MEMBER.fullmatch(name)
    return (found[1], found[2]) if found else None


def read(uri: str) -> Content:
    """The bytes behind a URI, all of them, read once.

    Raises:
        OSError: it is gone, can't be reached, or may not be read.

    """
    base, separator, member = uri.partition("#")
    if separator or base.partition("?")[0].lower().endswith(ARCHIVES):
        from ood_audit.images import archives

        return archives.read(base, member)
    if is_remote(uri):
        return _remote(uri).read(uri)  # type: ignore[no-any-return]
    with open(local_path(uri), "rb") as file:
        info = os.fstat(file.fileno())
        return Content(file.read(), info.st_size, info.st_mtime_ns)


def facts(uri: str) -> tuple[int, int] | None:
    """Size and time of what is behind a URI, as in `Content`; None where there is nothing.

    Raises:
        OSError: it can't be told.

    """
    base, separator, member = uri.partition("#")
    if separator:
        from ood_audit.images import archives

        return archives.facts(base, member)
    if is_remote(uri):
        return _remote(uri).facts(uri)  # type: ignore[no-any-return]
    try:
        info = os.stat(local_path(uri))
    except (FileNotFoundError, ValueError):  # a null byte is in no file's name
        return None
    return info.st_size, info.st_mtime_ns


def each(function: Callable[[str], T], uris: Sequence[str]) -> list[T]:
    """A function of each URI, many at a time where one is remote."""
    if not any(map(is_remote, uris)):
        return [function(uri) for uri in uris]
    with ThreadPoolExecutor(REMOTE_THREADS, thread_name_prefix="remote") as pool:
        return list(pool.map(function, uris))


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
    return _remote(uri).canonical(uri)  # type: ignore[no-any-return]


def _remote(uri: str) -> Any:
    """The module for a remote URI, imported when it is first needed."""
    http = uri.lower().startswith(("http://", "https://"))
    return importlib.import_module(f"ood_audit.images.{'http' if http else 'object_store'}")
