"""The names of files, as URIs.

file:///folder/a%20b.jpg              a file; the bytes of its name, percent-encoded
file:///folder/shard.tar#cat/1.jpg    a member of a tar or zip file, whose name is encoded in the same way
s3://bucket/key, gs://, hdfs://       an object; a query such as ?endpoint_override=HOST belongs to the name
https://host/path?query               without what is secret in the query
"""

import os
import re
from urllib.parse import quote, quote_from_bytes, unquote_to_bytes

ARCHIVES = (".tar", ".zip")
_MEMBER = re.compile(r"(.*?\.(?:tar|zip))#(.*)", re.IGNORECASE | re.DOTALL)
_WINDOWS = os.name == "nt"


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


def location(uri: str) -> str:
    """What a person, another tool, or a list of paths calls it: a path, ARCHIVE#MEMBER, or the URI of a remote one."""
    if is_remote(uri):
        return uri
    base, separator, member = uri.partition("#")
    return local_path(base) + separator + os.fsdecode(unquote_to_bytes(member))


def archive_and_member(name: str) -> tuple[str, str] | None:
    """The two parts of ARCHIVE#MEMBER; None for another name."""
    found = _MEMBER.fullmatch(name)
    return (found[1], found[2]) if found else None


def is_archive(name: str) -> bool:
    """Whether the name of a file, without a query, is that of an archive of images."""
    return name.lower().endswith(ARCHIVES)
