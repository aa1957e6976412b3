"""Where images lie: the names of files as URIs, and what is behind a URI."""

import os
from urllib.parse import quote_from_bytes, unquote_to_bytes


def file_uri(path: str) -> str:
    """`file:///…` for an absolute path, exact for names that are not UTF-8."""
    return "file://" + quote_from_bytes(os.fsencode(path))


def local_path(uri: str) -> str:
    """The path behind a `file://` URI."""
    return os.fsdecode(unquote_to_bytes(uri.removeprefix("file://")))
