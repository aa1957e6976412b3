"""Text that is safe to show: file names may hold newlines, escape codes or bytes that are no text at all."""

import csv
import os
from collections.abc import Iterable, Sequence
from typing import TextIO


class JsonText(str):
    """A value that is JSON already."""

    __slots__ = ()


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


def write_csv(file: TextIO, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """CSV with a header. Names are exact, so a spreadsheet may take one with a leading = for a formula."""
    plain = csv.writer(file, lineterminator="\n")
    quoted = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
    plain.writerow(columns)
    for row in rows:
        # Python before 3.13 leaves a carriage return bare, which its own reader takes for the end of the row.
        (quoted if any(isinstance(value, str) and "\r" in value for value in row) else plain).writerow(row)
