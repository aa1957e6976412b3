"""Object stores and HDFS, through pyarrow: s3://, gs://, hdfs://.

A URI is percent-encoded. Its query belongs to it, as the same bucket of another endpoint is another one:
`endpoint_override`, `scheme`, `region` and `anonymous` for S3, the same but `region` for Google Cloud Storage, and what
pyarrow knows for HDFS. Credentials come
from where the services' own tools look for them, and are never in a URI, as that is stored and shown.
`AWS_ENDPOINT_URL` is heeded.

Times are cut to seconds: a listing and a look at one object do not give the same fraction.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import BinaryIO, TypeVar
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from pyarrow import fs

from ood_audit.errors import OodAuditError, UsageError
from ood_audit.images.content import Content, UnreadableError
from ood_audit.images.formats import extensions
from ood_audit.images.found import ScanNotes
from ood_audit.images.uri import is_archive
from ood_audit.text import printable

_T = TypeVar("_T")
SCHEMES = ("s3", "gs", "hdfs")
_SECOND = 10**9
_RETRIED = 60  # seconds: the client of Google Cloud Storage goes on for a quarter of an hour by itself
_OPTIONS = {
    "s3": {"endpoint_override", "scheme", "region", "anonymous"},
    "gs": {"endpoint_override", "scheme", "anonymous"},
    "hdfs": {"replication", "user", "buffer_size", "default_block_size", "kerb_ticket"},
}


def canonical(uri: str) -> str:
    """The one spelling of a URI, without a slash at its end.

    Raises:
        UsageError: it has credentials in it, no bucket, or an option that there is not.

    """
    parts = urlsplit(uri)
    scheme = parts.scheme.lower()
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in (*SCHEMES, "https"))
        raise UsageError(f"{printable(scheme)}:// is not supported: choose {known} or a path")
    if parts.username or parts.password:
        raise UsageError(
            f"a {scheme}:// URI is stored and shown, so leave credentials out of it; put them where the service's "
            "own tools look, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if not parts.netloc and scheme != "hdfs":
        raise UsageError(f"{printable(uri)} names no bucket")
    options = dict(parse_qsl(parts.query))
    if unknown := sorted(options.keys() - _OPTIONS[scheme]):
        raise UsageError(f"{scheme}:// URIs have no option {printable(unknown[0])}; %3F is a ? in a name")
    key = quote(unquote(parts.path).strip("/"))
    query = f"?{urlencode(sorted(options.items()))}" if options else ""
    return f"{scheme}://{parts.netloc}{f'/{key}' if key else ''}{query}"


def open_place(uri: str) -> tuple[fs.FileSystem, str]:
    """The `pyarrow.fs.FileSystem` of a canonical URI, and the path in it; OSError where it can't be reached."""
    parts = urlsplit(uri)
    path = unquote(parts.path)
    base = path if parts.scheme == "hdfs" else parts.netloc + path
    return _filesystem(parts.scheme, parts.netloc, parts.query), base


@lru_cache(maxsize=16)
def _filesystem(scheme: str, netloc: str, query: str) -> fs.FileSystem:
    try:
        if scheme == "s3":
            return _s3(netloc, dict(parse_qsl(query)))
        if scheme == "gs":
            return _gs(dict(parse_qsl(query)))
        return fs.FileSystem.from_uri(f"{scheme}://{netloc}/?{query}")[0]
    except (OSError, ValueError, NotImplementedError) as error:
        remedy = "; it needs libhdfs: set HADOOP_HOME, JAVA_HOME and CLASSPATH" if scheme == "hdfs" else ""
        raise UnreadableError(f"{reason(error)}{remedy}") from error


def _s3(bucket: str, options: dict[str, str]) -> fs.FileSystem:
    endpoint = (
        options.get("endpoint_override") or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    )
    given: dict[str, str | int] = {"connect_timeout": 10, "request_timeout": 60}
    if endpoint:
        scheme, separator, host = endpoint.partition("://")
        given["endpoint_override"] = host.rstrip("/") if separator else endpoint
        given["scheme"] = options.get("scheme") or (scheme if separator else "https")
    region = options.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region or endpoint:
        given["region"] = region or "us-east-1"
    else:
        given["region"] = fs.resolve_s3_region(bucket)
    return fs.S3FileSystem(anonymous=_is_anonymous(options), **given)


def _gs(options: dict[str, str]) -> fs.FileSystem:
    given = {name: options[name] for name in ("endpoint_override", "scheme") if name in options}
    return fs.GcsFileSystem(anonymous=_is_anonymous(options), retry_time_limit=timedelta(seconds=_RETRIED), **given)


def _is_anonymous(options: dict[str, str]) -> bool:
    return options.get("anonymous", "").lower() in ("1", "true")


def exists(uri: str) -> str:
    """`file`, `folder` or nothing: what a canonical URI is; OSError where that can't be told."""
    filesystem, path = open_place(uri)
    kind = _told(filesystem.get_file_info, path).type
    return {fs.FileType.File: "file", fs.FileType.Directory: "folder"}.get(kind, "")


def facts(uri: str) -> tuple[int, int] | None:
    """See `access.facts`."""
    filesystem, path = open_place(uri)
    info = _told(filesystem.get_file_info, path)
    return (info.size, _seconds(info.mtime_ns)) if info.type == fs.FileType.File else None


def read(uri: str) -> Content:
    """See `access.read`."""
    filesystem, path = open_place(uri)
    with _told(filesystem.open_input_stream, path) as file:
        data = _told(file.read)
        metadata = file.metadata() or {}
        modified = metadata.get("Last-Modified") or metadata.get("updated")
    mtime_ns = _time(modified.decode()) if modified else (facts(uri) or (0, 0))[1]
    return Content(data, len(data), mtime_ns)


@contextmanager
def open_file(uri: str) -> Iterator[tuple[BinaryIO, int, int]]:
    """A file for reading anywhere in it, its size and its time."""
    filesystem, path = open_place(uri)
    info = _told(filesystem.get_file_info, path)
    if info.type != fs.FileType.File:
        raise UnreadableError("no such object any more")
    with _told(filesystem.open_input_file, path) as file:
        yield file, info.size, _seconds(info.mtime_ns)


def files(source: str) -> list[tuple[str, int, int]]:
    """All files below a canonical URI: the path from there, the size and the time of each; OSError if that can't be."""
    filesystem, base = open_place(source)
    found = _told(filesystem.get_file_info, fs.FileSelector(base, recursive=True, allow_not_found=True))
    return [
        (entry.path[len(base) :].strip("/"), entry.size, _seconds(entry.mtime_ns))
        for entry in found
        if entry.type == fs.FileType.File
    ]


def names(source: str, among: Iterable[str]) -> tuple[list[str], list[str]]:
    """The names of the folders, of those asked for, and of the files right below a canonical URI.

    Raises:
        OSError: They can't be listed.

    """
    filesystem, base = open_place(source)
    found = _told(filesystem.get_file_info, fs.FileSelector(base, allow_not_found=True))
    own = sorted(entry.base_name for entry in found if entry.type == fs.FileType.File)
    if source.startswith("gs:"):  # see `walk`
        found = _told(filesystem.get_file_info, [f"{base.rstrip('/')}/{name}" for name in among])
    folders = {entry.base_name for entry in found if entry.type == fs.FileType.Directory}
    return sorted(folders & set(among)), own


def walk(source: str, notes: ScanNotes, exclude: str | None = None) -> Iterator[tuple[str, str, int, int]]:
    """The images and archives below a canonical URI, as rows of `found.COLUMNS`.

    The folders at its top are listed one after the other, each with all that is below it: memory holds one of them. In
    Google Cloud Storage all is listed at once, as pyarrow does not see folders there that are no objects themselves.

    Args:
        source: the URI.
        notes: filled in along the way.
        exclude: a canonical URI below which nothing is looked at (the store's).

    Raises:
        OodAuditError: a listing failed; what was found so far is then no ground for taking images to be gone.

    """
    prefix, mark, query = source.partition("?")
    end = mark + query
    filesystem, base = open_place(source)
    pending, recursive = [base], source.startswith("gs:")
    while pending:
        folder = pending.pop()
        try:
            entries = _told(filesystem.get_file_info, fs.FileSelector(folder, recursive=recursive))
        except OSError as error:
            raise OodAuditError(
                f"cannot list {printable(source)}: {error.strerror}; the images in the store are unchanged"
            ) from error
        for entry in entries:
            below = entry.path[len(base) :].strip("/")
            name = below.rpartition("/")[2]
            if entry.type == fs.FileType.Directory:
                if not recursive and not name.startswith("."):
                    pending.append(entry.path)
                continue
            if any(part.startswith(".") for part in below.split("/")[:-1]):
                continue
            uri = f"{prefix}/{quote(below)}{end}"
            if exclude is not None and uri.startswith(exclude.partition("?")[0] + "/"):
                continue
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith(".") or not (suffix in extensions() or is_archive(name)):
                notes.skipped[suffix or ("no extension" if not name.startswith(".") else name)] += 1
            else:
                yield uri, below, entry.size, _seconds(entry.mtime_ns)
        recursive = True


def _told(call: Callable[..., _T], *arguments: object) -> _T:
    """A call whose OSError says what is wrong in few words."""
    try:
        return call(*arguments)
    except OSError as error:
        raise UnreadableError(reason(error)) from error


def reason(error: Exception) -> str:
    """What is wrong, in few words."""
    if isinstance(error, UnreadableError):
        return str(error.strerror)
    text = str(error)
    reasons = {
        "ACCESS_DENIED": "access denied; check the credentials",
        "AccessDenied": "access denied; check the credentials",
        "INVALID_ACCESS_KEY_ID": "access denied; the access key is not known there",
        "SIGNATURE_DOES_NOT_MATCH": "access denied; the secret key is wrong",
        "NO_SUCH_BUCKET": "no such bucket",
        "Bucket not found": "no such bucket",
        "NETWORK_CONNECTION": "cannot be reached",
        "HTTP status 403": "access denied; check the credentials",
        "PERMISSION_DENIED": "access denied; check the credentials",
        "UNAUTHENTICATED": "access denied; check the credentials, or add ?anonymous=true for a public bucket",
        "UNAVAILABLE": "cannot be reached",
        "HTTP status 404": "no such object any more",
        "Path does not exist": "no such object any more",
        "NO_SUCH_KEY": "no such object any more",
    }
    if isinstance(error, FileNotFoundError):
        return "no such bucket" if "ListObjects" in text else "no such object any more"
    for code, reason in reasons.items():
        if code in text:
            return reason
    return printable(text.splitlines()[0] if text else type(error).__name__)


def _seconds(mtime_ns: int | None) -> int:
    return (mtime_ns or 0) // _SECOND * _SECOND


def _time(modified: str) -> int:
    from datetime import datetime
    from email.utils import parsedate_to_datetime

    try:
        moment = (
            parsedate_to_datetime(modified)
            if "," in modified
            else datetime.fromisoformat(modified.replace("Z", "+00:00"))
        )
        return int(moment.timestamp()) * _SECOND
    except ValueError:
        return 0
