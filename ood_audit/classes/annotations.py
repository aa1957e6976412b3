"""The one reader of files that say something of images: annotations (`label`) and truth (`is_ood`).

CSV, TSV, Parquet, JSON (a list of objects, or {path: value}) and JSON lines. A row names its image by `image_id`, `uri`
or `path`, in any form that ood-audit writes: relative to the source, with the source's own name in front, absolute, the
member of a tar file as TAR#MEMBER, or a URI.
"""

import csv
import io
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Generic, TypeVar
from urllib.parse import quote, quote_from_bytes, unquote, unquote_to_bytes

from ood_audit.classes.vocabulary import Vocabulary
from ood_audit.errors import UsageError
from ood_audit.images.access import canonical
from ood_audit.images.spelling import Spelling
from ood_audit.images.uri import as_file_uri, file_uri, is_remote, local_path, location
from ood_audit.names import key, near
from ood_audit.store import Store
from ood_audit.store.views import streaming
from ood_audit.text import printable, storable
from ood_audit.values import JsonObject

T = TypeVar("T")

IMAGE_COLUMNS = ("image_id", "uri", "path")  # the first of these that a row has names its image
_YES, _NO = {"1", "1.0", "true", "yes", "ood"}, {"0", "0.0", "false", "no", "id"}
_SHOWN = 3  # names in a message
_BOX = re.compile(r"(.*)#box=([^#&]*)(&xywh=[^#&]*)?", re.DOTALL)
_EXCEL = re.compile(r"sep=[,;\t|]", re.IGNORECASE)  # how a file tells Excel its delimiter, in its first line
_ESCAPED = re.compile(r"\\x([0-9a-f]{2})")  # how `text.storable` writes bytes that are not UTF-8


@dataclass(frozen=True)
class Row(Generic[T]):
    """What a file says of one image.

    Attributes:
        image: the image as the file names it.
        place: where the row stands, for messages: `line 3`.
        value: what it says: a class, or whether the image is OOD.
        image_id: of the image of the store that it names, or "".

    """

    image: str
    place: str
    value: T
    image_id: str = ""


@dataclass(frozen=True)
class Truth:
    """What is known of one image: whether it is OOD, and its label or None."""

    is_ood: bool
    label: str | None


def labels(store: Store, vocabulary: Vocabulary | None, path: str | Path) -> dict[str, str]:
    """The label of each image that a file of annotations names, by image id.

    Args:
        store: The store whose images are labelled.
        vocabulary: The classes that labels must belong to; None accepts any label.
        path: The file.

    Raises:
        UsageError: the file can't be read or lacks a column, or a row names no class of the vocabulary, no image of the
            store or several of them, or says something else than another row.

    """
    what = f"the annotations {printable(str(path))}"
    rows = [
        Row(row.image, row.place, _filled(row.value["label"], f"{what}, {row.place}", "label"))
        for row in read_rows(path, what, ("label",))
    ]
    if vocabulary is not None:
        check_labels(vocabulary, [(row.value, row.place) for row in rows], what)
        rows = [replace(row, value=vocabulary.names[vocabulary.position(row.value) or 0]) for row in rows]
    found = locate(store, rows, what, Path(path), lambda label: printable(repr(label)), key)
    if missing := [row for row in found if not row.image_id]:
        named = [f"{row.image} in {row.place}" for row in missing]
        raise UsageError(
            f"{what} name {len(missing)} image{'s' * (len(missing) > 1)} that the store has no features of "
            f"({_some(named)}); write paths as the store has them, relative to the embedded folder, "
            "and embed what is new"
        )
    return {row.image_id: row.value for row in found}


def truth(store: Store, path: str | Path) -> tuple[dict[str, Truth], list[tuple[str, str]], list[str]]:
    """What a file of truth says.

    Returns:
        what is known, by image id; the labels of images in distribution, each with its place in the file; and the
        images that the store has no features of, as the file names them.

    Raises:
        UsageError: the file can't be read or lacks a column, or a row says neither yes nor no, names several images, or
            says something else than another row.

    """
    what = f"the truth {printable(str(path))}"
    rows = read_truth(path)
    shown = {False: "ID", True: "OOD"}
    found = locate(
        store,
        rows,
        what,
        Path(path),
        lambda known: shown[known.is_ood] + (f" ({printable(known.label)})" if known.label else ""),
        lambda known: (known.is_ood, key(known.label or "")),
    )
    known = {row.image_id: row.value for row in found if row.image_id}
    said = [(row.value.label, row.place) for row in rows if row.value.label and not row.value.is_ood]
    return known, said, list(dict.fromkeys(row.image for row in found if not row.image_id))


def read_truth(path: str | Path) -> list[Row[Truth]]:
    """The rows of a file of truth, each with a `Truth`: is_ood is 0 or 1, and label may be missing."""
    what = f"the truth {printable(str(path))}"
    rows = []
    for row in read_rows(path, what, ("is_ood",), ("label",)):
        value = row.value["is_ood"].lower()
        if value not in _YES | _NO:
            raise UsageError(f"{what}, {row.place}: is_ood is {printable(value)!r}; write 0 or 1")
        rows.append(Row(row.image, row.place, Truth(value in _YES, row.value.get("label") or None)))
    return rows


def check_labels(vocabulary: Vocabulary, said: Sequence[tuple[str, str]], what: str) -> None:
    """UsageError for labels, each with its place, that are not in the vocabulary."""
    unknown: dict[str, str] = {}
    for label, place in said:
        if label not in unknown and vocabulary.position(label) is None:
            unknown[label] = place
    if not unknown:
        return
    close = near(unknown, vocabulary.names)
    named = [
        f"{label!r} ({place}{f', close to {close[label]!r}' if label in close else ''})"
        for label, place in unknown.items()
    ]
    raise UsageError(
        f"{what}: {_some(named)} {'is' if len(named) == 1 else 'are'} not in the vocabulary; "
        "correct them, or add the classes to the labels file"
    )


# Reading


def read_rows(
    path: str | Path, what: str, wanted: Sequence[str], optional: Sequence[str] = ()
) -> list[Row[dict[str, str]]]:
    """The rows of a file, each with the text of the wanted columns as its value; UsageError where one is not there.

    Args:
        path: the file.
        what: what to call it in messages.
        wanted: the columns that it must have beside one that names the image.
        optional: other columns that are read.

    """
    try:
        columns, records = _records(Path(path), what, wanted[0])
    except UsageError:
        raise
    except (OSError, ValueError, csv.Error, RecursionError) as error:  # Arrow's, JSON's and Unicode's are ValueErrors
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UsageError(f"cannot read {what}: {printable(reason)[:200]}") from error
    by_key: dict[str, str] = {}
    for column in columns:
        if by_key.setdefault(key(column), column) != column or columns.count(column) > 1:
            raise UsageError(f"there are two columns {printable(column)!r} in {what}; remove one")
    own = [by_key[key(column)] for column in IMAGE_COLUMNS if key(column) in by_key]
    missing = [column for column in wanted if key(column) not in by_key] + ([] if own else ["path"])
    if missing:
        have = ", ".join(printable(column)[:40] for column in columns[:10]) or "none"
        needs = " and ".join(("path", *wanted))
        raise UsageError(f"{what} must have the columns {needs} (missing: {', '.join(sorted(missing))}; found: {have})")
    cells = {column: by_key[key(column)] for column in (*wanted, *optional) if key(column) in by_key}
    rows = []
    for place, record in records:
        image = next((text for column in own if (text := _plain(record.get(column)))), "")
        values = {column: _plain(record.get(written)).strip() for column, written in cells.items()}
        where = f"{what}, {place}"
        for column, value in values.items():
            if value != storable(value):
                raise UsageError(f"{where}: {column} is not UTF-8; save the file as UTF-8")
        rows.append(Row(_filled(image, where, "path"), place, values))
    return rows


def _filled(value: str, where: str, column: str) -> str:
    if not value.strip():
        raise UsageError(f"{where}: no {column}; write one, or remove the row")
    return value


def _plain(value: object) -> str:
    """The value of a cell as text, "" where there is none."""
    if isinstance(value, bytes):
        return os.fsdecode(value)
    if value is None or value != value:  # NaN, by which pandas means nothing
        return ""
    return str(value)


def _records(path: Path, what: str, wanted: str) -> tuple[list[str], list[tuple[str, JsonObject]]]:
    """The columns of a file and its rows, each with its place."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        return table.column_names, [(f"row {n}", row) for n, row in enumerate(table.to_pylist(), start=1)]
    text = _decoded(path.read_bytes())
    if suffix in (".json", ".jsonl", ".ndjson"):
        return _json_records(text, suffix, what, wanted)
    delimiter = "\t" if suffix == ".tsv" else _delimiter(text, wanted)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    header: list[str] = []
    records = []
    start = 1
    for cells in reader:
        place, start = f"line {start}", reader.line_num + 1
        if not any(cell.strip() for cell in cells):
            continue
        if not header and (_EXCEL.fullmatch(delimiter.join(cells)) or _is_comment(cells, wanted)):
            continue
        if not header:
            header = [cell.strip() for cell in cells]
            continue
        if len(cells) > len(header):
            raise UsageError(
                f"{what}, {place}: {len(cells)} values in {len(header)} columns; put a path with a comma in quotes"
            )
        records.append((place, dict(zip(header, cells, strict=False))))
    return header, records


def _delimiter(text: str, wanted: str) -> str:
    """What stands between the columns, by the header."""
    for line in text.splitlines():
        if line.strip() and not _is_comment(re.split(r"[,;\t|]", line), wanted):
            if _EXCEL.fullmatch(line.strip()):
                return line.strip()[4:]
            by = {delimiter: next(csv.reader([line], delimiter=delimiter), []) for delimiter in ",;\t|"}
            fits = [delimiter for delimiter, cells in by.items() if key(wanted) in map(key, cells)]
            return max(fits or by, key=lambda delimiter: len(by[delimiter]))
    return ","


def _is_comment(cells: list[str], wanted: str) -> bool:
    """Whether a row before the header is a comment. A header may begin with `#`, as the name of a column of numbers."""
    return cells[0].startswith("#") and key(wanted) not in map(key, cells)


def _decoded(data: bytes) -> str:
    """Text; bytes that are not UTF-8 as surrogates, as a path may have them."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16")
    if b"\0" in data:
        line = len(data[: data.index(b"\0") + 1].splitlines())
        raise ValueError(f"line {line} has a null byte, so this is not UTF-8 text; give a CSV, JSON or Parquet file")
    return data.decode("utf-8-sig", "surrogateescape")


def _json_records(text: str, suffix: str, what: str, wanted: str) -> tuple[list[str], list[tuple[str, JsonObject]]]:
    unit = "entry" if suffix == ".json" else "line"
    if suffix == ".json":
        value = json.loads(text, object_pairs_hook=_no_key_twice)
        if isinstance(value, dict) and not any(isinstance(own, (dict, list)) for own in value.values()):
            value = [{"path": path, wanted: own} for path, own in value.items()]
        entries = list(enumerate(value, start=1)) if isinstance(value, list) else [(1, value)]
    else:
        lines = enumerate(text.split("\n"), start=1)
        entries = [(n, json.loads(line, object_pairs_hook=_no_key_twice)) for n, line in lines if line.strip()]
    columns: dict[str, None] = {}
    records = []
    for n, entry in entries:
        if not isinstance(entry, dict):
            raise UsageError(f"{what}, {unit} {n}: no object with path and {wanted}; write one for each image")
        columns.update(dict.fromkeys(entry))
        records.append((f"{unit} {n}", entry))
    return list(columns), records


def _no_key_twice(pairs: list[tuple[str, object]]) -> JsonObject:
    found: JsonObject = {}
    for name, value in pairs:
        if found.setdefault(name, value) != value:
            raise ValueError(f"{name!r} has two values; remove one")
    return found


# Which image is meant


def locate(
    store: Store,
    rows: Sequence[Row[T]],
    what: str,
    path: Path,
    describe: Callable[[T], str],
    answer: Callable[[T], object] = lambda value: value,
) -> list[Row[T]]:
    """The rows with the ids of their images; UsageError where one may mean several, or two contradict each other."""
    ids = images(store, [row.image for row in rows], path)
    seen: dict[str, Row[T]] = {}
    found = []
    for row in rows:
        meant = ids[row.image]
        if len(meant) > 1:
            places = [storable(location(uri)) for uri in sorted(meant.values())]
            raise UsageError(
                f"{what}, {row.place}: {printable(row.image)} is {len(meant)} images of the store "
                f"({_some(places, ' and ', 2)}); write absolute paths or URIs"
            )
        own = replace(row, image_id=next(iter(meant), ""))
        before = seen.setdefault(own.image_id or f"path {os.path.normpath(row.image)}", own)
        if answer(before.value) != answer(own.value):
            raise UsageError(
                f"{what}: {printable(row.image)} is {describe(before.value)} in {before.place} and "
                f"{describe(own.value)} in {own.place}; remove one"
            )
        found.append(own)
    return found


def images(store: Store, names: Sequence[str], path: Path) -> dict[str, dict[str, str]]:
    """Which readable images of a store some names mean: by name, image ids with their URIs.

    There are several where two sources have the same names inside, and none where there is no such image. The names are
    looked up while the images pass by, so that memory grows with the names only.

    Args:
        store: the store.
        names: as a file has them.
        path: the file, whose folder relative paths may start from.

    """
    _real.cache_clear()
    folders = (str(path.absolute().parent), os.getcwd())
    found: dict[str, dict[str, str]] = {name: {} for name in names}
    for spellings in (_usual, _spellings):
        left = [name for name, meant in found.items() if not meant]
        forms = {name: list(dict.fromkeys(spellings(name, folders))) for name in left}
        wanted: dict[tuple[str, str], dict[str, str] | None] = {form: None for own in forms.values() for form in own}
        if not wanted:
            break
        with streaming(store, "SELECT image_id, uri, path, source FROM images WHERE status = 'ok'") as (_, rows):
            for image_id, uri, inside, source in rows:
                for form in _forms(image_id, uri, inside, source):
                    if form in wanted:
                        wanted[form] = {**(wanted[form] or {}), image_id: uri}
        found |= {name: next((meant for form in own if (meant := wanted[form])), {}) for name, own in forms.items()}
    return found


def _forms(image_id: str, uri: str, inside: str, source: str) -> Iterator[tuple[str, str]]:
    """All that an image may be called, each with its kind."""
    yield "id", image_id
    yield "uri", uri
    yield "path", inside
    yield "in source", f"{source.rstrip('/').rpartition('/')[2]}/{inside}"
    if "#box=" in uri:
        yield "box", uri.partition("&xywh=")[0]
    if not inside.isascii():
        yield "composed", unicodedata.normalize("NFC", inside)


def _usual(name: str, folders: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The most certain of `_spellings`, by which nearly all names are found."""
    if found := _BOX.fullmatch(name):
        yield from _boxed(_usual(found[1], folders), found)
        return
    yield "id", name
    yield "uri", name
    if os.path.isabs(name):
        yield "uri", file_uri(os.path.normpath(name))
    elif "://" not in name:
        yield "path", storable(os.path.normpath(name).replace(os.sep, "/"))


def _spellings(name: str, folders: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What a name in a file may mean, the most certain first."""
    if found := _BOX.fullmatch(name.strip()):
        yield from _boxed(_spellings(found[1], folders), found)
        return
    for written in dict.fromkeys((name, name.strip())):
        yield "id", written
        yield "uri", written
        if is_remote(written):
            yield from (("uri", uri) for uri in _remote(written))
        elif exact := as_file_uri(written):
            base, mark, member = exact.partition("#")
            own = os.fsdecode(unquote_to_bytes(member))
            yield from _local(os.path.normpath(local_path(base)), mark, own)
        elif os.path.isabs(written):
            yield from _absolute(written)
        else:
            yield from _relative(written, folders)


def _boxed(images: Iterator[tuple[str, str]], found: re.Match[str]) -> Iterator[tuple[str, str]]:
    """The spellings of a box in an image, by those of the image: its id tells it, and its place where that is given."""
    box, place = unquote(found[2]), found[3] or ""
    for kind, image in images:
        if kind == "uri":
            if place:
                yield "uri", f"{image}#box={quote(box, safe='')}{place}"
            yield "box", f"{image}#box={quote(box, safe='')}"
        elif kind in ("path", "in source"):
            yield kind, f"{image}#box={box}"


def _absolute(name: str) -> Iterator[tuple[str, str]]:
    if _ESCAPED.search(name):
        exact = _ESCAPED.sub(lambda match: os.fsdecode(bytes([int(match[1], 16)])), name)
        yield from _absolute(exact)
    tar, mark, member = name.partition(".tar#")
    if mark:
        yield from _local(os.path.normpath(f"{tar}.tar"), "#", member)
    yield "path", storable(os.path.normpath(name))  # a list of images has what is outside of its folder in full
    yield from _local(os.path.normpath(name), "", "")


def _relative(name: str, folders: Sequence[str]) -> Iterator[tuple[str, str]]:
    slashes = dict.fromkeys((name, name.replace("\\", "/")))
    plains = [storable(os.path.normpath(own).replace(os.sep, "/")) for own in slashes]
    for path in plains:
        tar_path = path.replace(".tar#", ".tar/", 1)
        for kind in ("path", "in source"):
            yield kind, path
            yield kind, tar_path
    for folder in folders:
        yield from (form for form in _absolute(os.path.join(folder, name)) if form[0] == "uri")
    for path in plains:
        yield "composed", unicodedata.normalize("NFC", path)


def _local(path: str, mark: str, member: str) -> Iterator[tuple[str, str]]:
    """The URIs that a file may have in the store: sources are kept by their real path, links inside of them are not."""
    end = mark + quote_from_bytes(os.fsencode(member))
    yield "uri", file_uri(path) + end
    if (spelled := Spelling()(path)) != path:
        yield from _local(spelled, mark, member)
        return
    above, inside = os.path.dirname(path), os.path.basename(path)
    while above != os.path.dirname(above):
        real = _real(above)
        if real != above:
            yield "uri", file_uri(os.path.join(real, inside)) + end
        inside, above = os.path.join(os.path.basename(above), inside), os.path.dirname(above)
    if os.path.islink(path):
        yield "uri", file_uri(os.path.realpath(path)) + end


@lru_cache(maxsize=65_536)
def _real(folder: str) -> str:
    return os.path.realpath(folder)


def _remote(name: str) -> list[str]:
    base, mark, member = name.partition("#")
    try:
        return [canonical(base) + mark + member]
    except UsageError:
        return []


def _some(names: Sequence[str], between: str = ", ", most: int = _SHOWN) -> str:
    return between.join(printable(name) for name in names[:most]) + (f"{between}…" if len(names) > most else "")
