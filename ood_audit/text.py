"""Text that is safe to show: file names may hold newlines, escape codes or bytes that are no text at all."""

import os


def storable(name: str) -> str:
    r"""`name` as valid UTF-8: bytes that the file system could not decode become `\xNN`."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return os.fsencode(name).decode("utf-8", "backslashreplace")
    return name


def printable(text: str) -> str:
    r"""`text` on one line, for terminals and logs: control and bidirectional characters are shown as `\n`, `\u202e`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
