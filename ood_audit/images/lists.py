"""Lists of images: .txt with one on each line, or .csv and .parquet with a column `path`, perhaps `label` and `split`.

Entries are paths, members of tar and zip files (ARCHIVE#MEMBER), boxes (IMAGE#box=ID&xywh=X,Y,WIDTH,HEIGHT), or URIs;
relative ones start from the list's own folder. A column `uri` with `file:///…` is exact where a path is not.
"""

import csv
import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import BinaryIO
from urllib.parse import quote, quote_from_bytes, unquote_to_bytes, urlsplit

from ood_audit.errors import UsageError
from ood_audit.images import access
from ood_audit.images.found import UNKNOWN, ScanNotes
from ood_audit.images.spelling import Spelling
from ood_audit.images.splits import canonical
from ood_audit.images.uri import (
    archive_and_member,
    as_file_uri,
    box_uri,
    file_uri,
    image_and_box,
    is_remote,
    local_path,
)
from ood_audit.text import printable, storable
from ood_audit.values import Row

_LABELS = ("label", "class")
ListRow = tuple[str, str, int, int, str | None, str | None, dict[str, str | float] | None]
LIST_SUFFIXES = (".txt", ".csv", ".parquet")
_TOGETHER = 1000  # entries that are looked at side by side
_TRIES = 5  # how often a host may fail before it is left alone


def listed(source: str, notes: ScanNotes) -> Iterator[ListRow]:
    """What a list names, as rows of `found.COLUMNS`: whatever is wrong with an image, it gets a row.

    Args:
        source: the list's path or canonical URI.
        notes: filled in along the way; hosts that can't be reached now are `unreadable`.

    """
    spelling = Spelling()
    rows = ((image_and_box(path), label, split) for path, label, split in _entries(source))
    found = ((_entry(spelling, source, path), box, label, split) for (path, box), label, split in rows)
    failures: Counter[str] = Counter()

    def facts(uri: str) -> tuple[int, int]:
        host = "://".join(urlsplit(uri)[:2])
        if failures[host] >= _TRIES:
            return UNKNOWN
        try:
            return access.facts(uri) or (0, 0)
        except OSError as error:
            if not is_remote(uri):
                return 0, 0
            notes.unreadable[host] = error.strerror or str(error)
            failures[host] += 1
            return UNKNOWN

    many = 1
    while some := list(islice(found, many)):
        for ((uri, path), box, label, split), known in zip(
            some, access.each(facts, [uri for (uri, _), *_ in some]), strict=True
        ):
            if label:
                notes.format = "list with labels"
                notes.add_label(label, os.path.basename(source))
            if box is None:
                yield uri, path, *known, label, split, None
            else:
                notes.format = notes.format or "list with boxes"
                named = f"{path}#box={storable(box.id)}"
                yield box_uri(uri, box), named, *known, label, split, box.values()
        many = _TOGETHER


def _entry(spelling: Spelling, source: str, entry: str) -> tuple[str, str]:
    """URI and path of an entry."""
    if is_remote(source):
        return _remote_entry(source, entry)
    return local_entry(os.path.dirname(source), entry, spelling)


def local_entry(base: str, entry: str, spelling: Spelling) -> tuple[str, str]:
    """URI and path of what an entry names that starts from a folder."""
    if exact := as_file_uri(entry):
        archive, mark, member = exact.partition("#")
        uri, path = local_entry(base, local_path(archive), spelling)
        name = unquote_to_bytes(member)
        return (f"{uri}#{quote_from_bytes(name)}", f"{path}/{storable(os.fsdecode(name))}") if mark else (uri, path)
    if is_remote(entry):
        return _named(entry), entry.partition("?")[0]
    location = spelling(os.path.normpath(os.path.join(base, entry)))
    inside = location.startswith(base.rstrip(os.sep) + os.sep)
    path = storable((os.path.relpath(location, base) if inside else location).replace(os.sep, "/"))
    parts = archive_and_member(location)
    if parts is not None and not os.path.lexists(location):
        archive, member = spelling(parts[0]), parts[1]
        return f"{file_uri(archive)}#{quote_from_bytes(os.fsencode(member))}", "/".join(
            archive_and_member(path) or (path,)
        )
    return file_uri(location), path


def _remote_entry(source: str, entry: str) -> tuple[str, str]:
    if is_remote(entry):
        return _named(entry), entry.partition("?")[0]
    base, mark, query = source.partition("?")
    suffix = "" if source.startswith("http") else mark + query
    return _named(f"{base.rpartition('/')[0]}/{quote(entry.lstrip('/'))}{suffix}"), entry


def _named(entry: str) -> str:
    """The canonical URI of an entry; where there is none, a URI that can't be read, so that its row says why."""
    if parts := archive_and_member(entry):
        return f"{_named(parts[0])}#{parts[1]}"
    try:
        return access.canonical(entry)
    except UsageError:
        if "@" in urlsplit(entry).netloc:  # a password, which no row may hold
            raise
        return quote(storable(entry), safe=":/?&=%")


def _entries(source: str) -> Iterator[tuple[str, str | None, str | None]]:
    """The entries of a list, as they stand there, with label and split; UsageError where it can't be read.

    A label is None where there is no column of labels, and "" where it says nothing.
    """
    suffix = os.path.splitext(source.partition("?")[0] if is_remote(source) else source)[1].lower()
    try:
        with io.BytesIO(access.read(source).data) if is_remote(source) else open(source, "rb") as file:
            if suffix == ".parquet":
                yield from _parquet_entries(file, source)
                return
            start = file.read(2)
            file.seek(0)
            encoding = "utf-16" if start in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
            errors = "strict" if encoding == "utf-16" else "surrogateescape"
            lines = io.TextIOWrapper(file, encoding=encoding, errors=errors, newline="")
            if suffix == ".txt":
                for line in lines:
                    if line.strip("\r\n"):
                        yield line.strip("\r\n"), None, None
                return
            first = lines.readline()
            rows = csv.DictReader(chain([first], lines), delimiter=_delimiter(first))
            names = rows.fieldnames or []
            column = _column(names, source)
            label, split = _of(names, _LABELS), _of(names, ("split",))
            yield from (_cells(row, column, label, split) for row in rows if row[column])
    except (OSError, UnicodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot read the list {printable(source)}: {reason}") from error


def _parquet_entries(file: BinaryIO, source: str) -> Iterator[tuple[str, str | None, str | None]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
        column = _column(table.schema_arrow.names, source)
        kind = table.schema_arrow.field(column).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise UsageError(f"the list {printable(source)}: its column '{column}' holds {kind}, not text")
        names = table.schema_arrow.names
        label, split = _of(names, _LABELS), _of(names, ("split",))
        for batch in table.iter_batches(
            columns=[name for name in (column, label, split, _of(names, ("uri",))) if name is not None]
        ):
            yield from (_cells(row, column, label, split) for row in batch.to_pylist() if row[column])
    except pa.ArrowException as error:
        raise UsageError(f"cannot read the list {printable(source)}: {error}") from error


def _delimiter(header: str) -> str:
    """What stands between the columns: by which there is one of paths."""
    for delimiter in ",;\t":
        if _of(next(csv.reader([header], delimiter=delimiter), []), ("path", "url")) is not None:
            return delimiter
    return max(",;\t", key=header.count)


def _of(names: Sequence[str], wanted: Sequence[str]) -> str | None:
    return next((name for name in names if name.strip().lower() in wanted), None)


def _cells(row: Row, path: str, label: str | None, split: str | None) -> tuple[str, str | None, str | None]:
    """The path, label and split of a row; its `uri` in place of the path where that is one of a file."""
    exact = row.get(next((name for name in row if name and name.strip().lower() == "uri"), ""))
    entry = exact if isinstance(exact, str) and exact.startswith("file:///") else row[path]
    text = "" if label is None or row[label] is None else storable(str(row[label])).strip()
    part = "" if split is None or row[split] is None else storable(str(row[split])).strip()
    return entry, None if label is None else text, canonical(part) if part else None


def _column(names: Sequence[str], source: str) -> str:
    if (column := _of(names, ("path",)) or _of(names, ("url",))) is not None:
        return column
    found = ", ".join(names) or "none"
    raise UsageError(f"the list {printable(source)} needs a column named 'path' (it has: {found})")
