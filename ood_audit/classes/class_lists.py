"""Lists of classes, in the forms that they usually have: lines, CSV, JSON and YAML.

cat|kitty  # comment          one class a line, synonyms after |
0 cat    0: cat    cat 0      a number and a name on each line; also [0] cat, 0 - cat, 0=cat, 001.cat, cat: 0
- cat    "cat",               lines with a bullet each, or in quotes, or with a comma at the end
n02691156 airplane            a WordNet id, with its names or without any
cat, dog, mouse               one line, with commas, semicolons or tabs
index,name                    CSV or TSV, with a header or without
item { id: 1 name: "cat" }    a label map of TensorFlow
["cat", "dog"]                JSON or YAML: a list of names, or of objects that have a name
{"0": "cat"}   {"cat": 0}     JSON or YAML: numbers or WordNet ids and names, either way round
names: [cat, dog]             YAML, JSON, TOML or Python: one of these inside of an object, as in YOLO's data.yaml
"""

import ast
import csv
import io
import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ood_audit.classes import wordnet
from ood_audit.errors import UsageError
from ood_audit.names import key
from ood_audit.text import printable

_MOST_BYTES = 64 << 20
_MOST_LETTERS = 1000  # a longer name is none
_MOST_VALUES = 1_000_000  # in a YAML file, whose anchors can stand for any number of them
_DEEPEST = 8
_NUMBER = re.compile(r"\d+")
_KNOWLEDGE_GRAPH = re.compile(r"/[mg]/\w+")  # the ids of Open Images
_NUMBERED = re.compile(
    r"[\[(]?(?P<id>\d+)(?P<mark>[\])]\s*|\s*[,:;=\t]\s*|\s+[-–—]+\s+|\.?\s+|\.(?=[^\W\d]))(?P<name>\S.*)"
)
_NUMBERED_LAST = re.compile(r"(?P<name>.*?\S)(?P<mark>\s*[,:;=\t]\s*|\s+)(?P<id>\d+)")
_BULLET = re.compile(r"[-*+•]\s+")
_QUOTED = re.compile(r"""(["'])(?P<inside>[^"']*)\1""")
_ASSIGNED = re.compile(r"^(\w+)\s*=\s*(?=[\[{(])", re.MULTILINE)  # Python or TOML
_TEXT = r""""(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'"""
_ITEM = re.compile(rf"\bitem\s*:?\s*\{{((?:[^{{}}\"']|{_TEXT})*)\}}")
_FIELD = re.compile(rf"(\w+)\s*:\s*({_TEXT}|[^\s,;]+)")
_MARKUP = re.compile(r"\s*<([?!]|html\b)", re.IGNORECASE)
_WITH_WORDNET_ID = re.compile(r"(?P<id>n\d{8})[\s,:;]+(?P<name>\S.*)")
_NAME_COLUMNS = (
    *("name", "class name", "label name", "category name", "display name", "classname", "class", "label", "category"),
    *("names", "classes", "labels", "categories", "title"),
)
_ID_COLUMNS = (
    *("index", "id", "idx", "number", "class id", "class index", "label id", "label index", "category id"),
    *("wnid", "synset", "synset id", "wordnet id", "wordnetid", "mid"),
)
_WRAPPERS = ("names", "classes", "class names", "labels", "label names", "categories", "id2label", "label2id")


@dataclass(frozen=True)
class Entry:
    """One class of a list.

    Attributes:
        names: its name, then its synonyms.
        place: where it stands, for messages: `line 3`.
        id: the number or WordNet id that the list gives it, or "".

    """

    names: tuple[str, ...]
    place: str
    id: str = ""


@dataclass(frozen=True)
class ClassList:
    """The classes in the order of the file, and in words the form that they had there."""

    entries: list[Entry]
    form: str


class _Pairs(list[tuple[str, Any]]):
    """An object of JSON or YAML with all its keys, also those that come twice."""


class _RefusedError(Exception):
    """Why something is no list of classes; `read` adds the file."""


def read(path: str | Path) -> ClassList:
    """Read a list of classes in any of the forms above.

    Raises:
        UsageError: it can't be read, is not text, or has none of these forms.

    """
    shown = printable(str(path))
    try:
        if os.path.isfile(path) and os.path.getsize(path) > _MOST_BYTES:
            size = os.path.getsize(path) >> 20
            raise UsageError(
                f"the labels {shown} have {size} MB, which is too much for a list of classes; write one name on a line"
            )
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot read the labels {shown}: {reason}") from error
    try:
        found = _parsed(_decoded(data), os.path.splitext(path)[1].lower())
        _check(found)
    except _RefusedError as error:
        raise UsageError(f"{shown}{error}") from error
    except RecursionError as error:
        raise UsageError(f"{shown} is nested too deeply for a list of classes; write one name on a line") from error
    if not found.entries:
        raise UsageError(f"{shown} names no class; write one on a line (it has {len(data.splitlines())} lines)")
    return found


def given(names: Sequence[str]) -> ClassList:
    """The same for names that were given one by one."""
    entries = [Entry((" ".join(str(name).split()),), f"entry {n}") for n, name in enumerate(names, start=1)]
    try:
        _check(ClassList(entries, ""))
    except _RefusedError as error:
        raise UsageError(f"the class names{error}") from error
    if not entries:
        raise UsageError("the list of classes is empty; give at least one")
    return ClassList(entries, "given by name")


def _check(found: ClassList) -> None:
    for entry in found.entries:
        for name in entry.names:
            if not name:
                raise _RefusedError(f", {entry.place}: an empty name; remove it")
            if len(name) > _MOST_LETTERS:
                raise _RefusedError(f", {entry.place}: a name of {len(name):,} letters; write one class a line")


def _decoded(data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            text = data.decode("utf-16")
        except UnicodeDecodeError as error:
            raise _RefusedError(": neither UTF-8 nor UTF-16; save the file as UTF-8") from error
        data = text.encode("utf-8", "surrogatepass")
    if b"\0" in data:
        line = len(data[: data.index(b"\0") + 1].splitlines())
        raise _RefusedError(f", line {line}: a null byte, so this is not UTF-8 text; give a text file with the names")
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        try:
            raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _RefusedError(f", line {number}: not UTF-8; save the file as UTF-8") from error
    return data.decode("utf-8-sig")


def _parsed(text: str, suffix: str) -> ClassList:
    start = text.lstrip()[:1]
    if suffix in (".yaml", ".yml") or re.search(r"^names:(\s|$)", text, re.MULTILINE):
        return _structured(_yaml(text), "YAML")
    if suffix == ".json":
        return _structured(_json(text), "JSON") if start else ClassList([], "JSON")
    if _MARKUP.match(text) or (start == "<" and "</" in text):
        raise _RefusedError(" is XML or HTML, which is not read; write one name on a line")
    if items := _ITEM.findall(text):
        return _label_map(items)
    lines = [line for line in text.splitlines() if line.strip()]
    if suffix in (".jsonl", ".ndjson") or (start == "{" and len(lines) > 1):
        try:
            return ClassList([_item(_json(line), f"line {n}") for n, line in enumerate(lines, start=1)], "JSON lines")
        except _RefusedError:
            if suffix in (".jsonl", ".ndjson"):
                raise
    if suffix == ".py":
        return _python(text)
    if (found := _assigned(text, suffix)) is not None:
        return found
    if start in ("[", "{"):
        for parse, form in ((_json, "JSON"), (_yaml, "YAML")):
            try:
                return _structured(parse(text), form)
            except _RefusedError:
                continue
    if suffix in (".csv", ".tsv") or _has_header(text):
        return _table(text, suffix)
    return _lines(text)


def _python(text: str) -> ClassList:
    """The list in a file of Python that is called `names`, `classes` or so, wherever it is made; or the only one."""
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _RefusedError(" is not in the syntax of Python 3; give one name a line") from None
    lists = ast.List | ast.Tuple | ast.Dict
    named = [(name, value) for node in nodes for name, value in _given_values(node) if isinstance(value, lists)]
    own = [value for name, value in named if key(name) in _WRAPPERS]
    if not own:
        own = [value for name, value in named if not name.startswith("_")]
        if len(own) != 1:
            raise _RefusedError(" holds no list that is called names or classes; write names = [...]")
    for value in own:
        with suppress(ValueError, TypeError, RecursionError, MemoryError):
            return _structured(_json(json.dumps(ast.literal_eval(value))), "Python")
    raise _RefusedError(" holds a list of classes that is not only of texts; write names in quotes")


def _given_values(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """What a part of a program gives a value by its name: `a = 1`, `a: int = 1`, `f(a=1)` or `{"a": 1}`."""
    if isinstance(node, ast.Assign):
        yield from ((name.id, node.value) for name in node.targets if isinstance(name, ast.Name))
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
        yield node.target.id, node.value
    elif isinstance(node, ast.keyword) and node.arg:
        yield node.arg, node.value
    elif isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        yield from (
            (name.value, v) for name, v in pairs if isinstance(name, ast.Constant) and isinstance(name.value, str)
        )


def _assigned(text: str, suffix: str) -> ClassList | None:
    """The list in a file of TOML, or in a text like it, that is called `names`, `classes` or so; or the only one."""
    found = {match[1]: match.end() for match in _ASSIGNED.finditer(text)}
    own = [start for name, start in found.items() if key(name) in _WRAPPERS]
    if not own and suffix == ".toml":
        own = list(found.values()) if len(found) == 1 else []
        if not own:
            raise _RefusedError(" holds no list that is called names or classes; write names = [...]")
    for start in own[:1]:
        for end in re.finditer(r"[\])}]", text[start:]):
            with suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
                value = ast.literal_eval(text[start : start + end.end()])
                return _structured(_json(json.dumps(value)), "TOML" if suffix == ".toml" else "Python")
        if suffix == ".toml":
            raise _RefusedError(" holds a list of classes that is not only of texts; write names in quotes")
    return None


# Lines


def _lines(text: str) -> ClassList:
    contents = []
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        content = re.sub(r"(^|\s)#.*", "", line).strip()
        if content:
            contents.append((number, content))
    if len(contents) == 1 and (several := _in_one_line(contents[0])):
        return several
    contents = _bare(contents)
    for pattern, form in ((_NUMBERED, "a number and a name a line"), (_NUMBERED_LAST, "a name and a number a line")):
        matches = [pattern.fullmatch(content) for _, content in contents]
        if (found := [match for match in matches if match]) and len(found) == len(contents) and _counts(found):
            bare = _unquoted(_numbered_once(found))
            return ClassList(
                [
                    Entry(_synonyms(name, number), f"line {number}", str(int(match["id"])))
                    for name, match, (number, _) in zip(bare, found, contents, strict=True)
                ],
                form,
            )
    entries = []
    for number, content in contents:
        if match := _WITH_WORDNET_ID.fullmatch(content):
            names = tuple(name for part in match["name"].split(",") for name in _synonyms(part, number))
            entries.append(Entry(names, f"line {number}", match["id"]))
        else:
            entries.append(Entry(_synonyms(content, number), f"line {number}"))
    ids = sum(bool(entry.id or wordnet.ID.fullmatch(entry.names[0])) for entry in entries)
    return ClassList(entries, "one a line, with WordNet ids" if ids else "one a line")


def _in_one_line(content: tuple[int, str]) -> ClassList | None:
    number, line = content
    for delimiter, named in ((",", "commas"), (";", "semicolons"), ("\t", "tabs")):
        if line.count(delimiter) > 1:
            cells = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))
            names = _unquoted([name for cell in cells if (name := " ".join(cell.split()))])
            return ClassList([Entry((name,), f"line {number}") for name in names], f"one line, with {named}")
    return None


def _bare(contents: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """The lines without what all of them have around their names: bullets, commas at the end, quotes."""
    lines = [content for _, content in contents]
    if all(map(_BULLET.match, lines)) and len({line[0] for line in lines}) == 1:
        lines = [_BULLET.sub("", line, count=1) for line in lines]
    if len(lines) > 1 and all(line.endswith((",", ";")) for line in lines[:-1]):
        lines = [line.rstrip(",; ") or line for line in lines]
    return [(number, line) for (number, _), line in zip(contents, _unquoted(lines), strict=True)]


def _unquoted(names: list[str]) -> list[str]:
    """Names without the quotes that all of them are in."""
    quoted = [_QUOTED.fullmatch(name) for name in names]
    return names if None in quoted else [match["inside"].strip() for match in quoted if match]


def _label_map(items: list[str]) -> ClassList:
    entries = []
    for number, item in enumerate(items, start=1):
        fields = {name: _plain(value) for name, value in _FIELD.findall(item)}
        name = fields.get("display_name") or fields.get("name") or ""
        entries.append(Entry((" ".join(name.split()),), f"item {number}", fields.get("id", "")))
    return ClassList(entries, "a label map")


def _plain(value: str) -> str:
    """A value of a label map, without its quotes and what escapes them."""
    return re.sub(r"\\(.)", r"\1", value[1:-1]) if value[0] in "\"'" else value


def _counts(found: list[re.Match[str]]) -> bool:
    """Whether the numbers count the names; else they belong to them, as in `2 door car` and `boeing 747`."""
    numbers = [int(match["id"]) for match in found]
    ascending = all(a < b for a, b in itertools.pairwise(numbers))
    several = len({key(match["name"]) for match in found}) > 1 or len(found) == 1
    if found[0].re is _NUMBERED and all(match["mark"].strip() or "\t" in match["mark"] for match in found):
        return several and len(set(numbers)) == len(numbers)
    if found[0].re is _NUMBERED_LAST:
        return several and len(found) > 1 and numbers[0] in (0, 1) and numbers[-1] - numbers[0] == len(numbers) - 1
    return several and ascending and numbers[0] in (0, 1) and numbers[-1] < 2 * len(numbers)


def _numbered_once(found: list[re.Match[str]]) -> list[str]:
    """The names, without a second number and full stop that counts them as the first one does: `1 001.cat`."""
    names = [match["name"] for match in found]
    again = [match for name in names if (match := _NUMBERED.fullmatch(name)) and match["mark"].startswith(".")]
    if len(again) < len(names) or len({int(a["id"]) - int(b["id"]) for a, b in zip(found, again, strict=True)}) > 1:
        return names
    return [match["name"] for match in again]


def _synonyms(content: str, line: int) -> tuple[str, ...]:
    names = [" ".join(name.split()) for name in content.split("|")]
    if "" in names:
        raise _RefusedError(f", line {line}: an empty name beside '|'")
    return tuple(names)


# Tables


def _delimiter(text: str, suffix: str) -> str:
    first = text.partition("\n")[0]
    return "\t" if suffix == ".tsv" else max(",;\t", key=first.count)


def _has_header(text: str) -> bool:
    """Whether a file of another suffix is a table with a header that says so: of an id and a name."""
    first = text.partition("\n")[0].strip()
    cells = [key(cell) for cell in first.split(_delimiter(text, ""))]
    return (
        len(cells) > 1
        and any(cell in _NAME_COLUMNS for cell in cells)
        and all(cell in _NAME_COLUMNS + _ID_COLUMNS for cell in cells)
    )


def _table(text: str, suffix: str) -> ClassList:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text, suffix))
    rows = []
    try:
        for row in reader:
            cells = [" ".join(cell.split()) for cell in row]
            if any(cells) and not cells[0].startswith("#"):
                rows.append((reader.line_num, cells))
    except csv.Error as error:
        raise _RefusedError(f", line {reader.line_num}: {error}; write one class a line") from error
    if not rows:
        return ClassList([], "CSV")
    header = [key(cell) for cell in rows[0][1]]
    if any(cell in _NAME_COLUMNS + _ID_COLUMNS for cell in header) and (len(rows) > 1 or len(header) > 1):
        name, ids = _named_columns(rows[0][1], [cells for _, cells in rows[1:]])
        form, body = f"CSV, column {rows[0][1][name]}", rows[1:]
    elif len(rows) == 1 and len(header) > 1 and not _is_id(rows[0][1][0]):
        return ClassList([Entry((cell,), "line 1") for cell in rows[0][1] if cell], "one line, with commas")
    else:
        name, ids = _columns_without_header([cells for _, cells in rows])
        form, body = "CSV without a header", rows
    entries = []
    for line, cells in body:
        if len(cells) <= name or not cells[name]:
            raise _RefusedError(f", line {line}: no name in column {name + 1}; write one, or remove the line")
        entry_id = next((cells[i] for i in ids if len(cells) > i and _is_id(cells[i])), "")
        entries.append(Entry(_synonyms(cells[name], line), f"line {line}", entry_id))
    return ClassList(entries, form)


def _is_id(cell: str) -> bool:
    return bool(_NUMBER.fullmatch(cell) or wordnet.ID.fullmatch(cell) or _KNOWLEDGE_GRAPH.fullmatch(cell))


def _ids_last(columns: list[int], rows: list[list[str]]) -> list[int]:
    """Columns of ids, those of WordNet first, as they say more than a number."""
    return sorted(columns, key=lambda i: not wordnet.ID.fullmatch(rows[0][i] if rows and len(rows[0]) > i else ""))


def _named_columns(header: list[str], rows: list[list[str]]) -> tuple[int, list[int]]:
    keys = [key(cell) for cell in header]
    all_ids = [bool(rows) and all(len(row) > i and _is_id(row[i]) for row in rows) for i in range(len(keys))]
    candidates = [keys.index(wanted) for wanted in _NAME_COLUMNS if wanted in keys]
    name = next((i for i in candidates if not all_ids[i]), candidates[0] if candidates else None)
    if name is None and len(keys) == 2:
        name = next(i for i, cell in enumerate(keys) if cell not in _ID_COLUMNS or i == 1)
    if name is None:
        raise _RefusedError(f" needs a column of names called name (it has: {printable(', '.join(header))})")
    return name, _ids_last([i for i, ids in enumerate(all_ids) if ids and i != name], rows)


def _columns_without_header(rows: list[list[str]]) -> tuple[int, list[int]]:
    width = max(map(len, rows))
    ids = [i for i in range(width) if all(len(row) > i and _is_id(row[i]) for row in rows)]
    names = [i for i in range(width) if i not in ids] or [width - 1]
    if len(names) > 1:
        raise _RefusedError(f" has {width} columns and no header; call the one with the names name")
    return names[0], _ids_last([i for i in ids if i != names[0]], rows)


# JSON and YAML


def _json(text: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_Pairs)
    except ValueError as error:
        raise _RefusedError(f" is no JSON: {error}; correct it, or write one name a line") from error


def _yaml(text: str) -> object:
    """A YAML document with all scalars as text: `no` is a name, and nothing is ever constructed."""
    import yaml

    values = 0

    def plain(node: yaml.Node | None, depth: int = 0) -> object:
        nonlocal values
        values += 1
        if depth > _DEEPEST or values > _MOST_VALUES:
            raise _RefusedError(" is nested too deeply for a list of classes; write one name on a line")
        if isinstance(node, yaml.SequenceNode):
            return [plain(item, depth + 1) for item in node.value]
        if isinstance(node, yaml.MappingNode):
            return _Pairs((str(plain(name, depth + 1)), plain(value, depth + 1)) for name, value in node.value)
        return node.value if node is not None else None

    try:
        return plain(yaml.compose(text, Loader=getattr(yaml, "CBaseLoader", yaml.BaseLoader)))
    except yaml.YAMLError as error:
        reason = printable(" ".join(str(error).split()))
        raise _RefusedError(f" is no YAML: {reason[:200]}; correct it, or write one name a line") from error


def _structured(value: object, kind: str, inside: str = "") -> ClassList:
    """A list or an object of names; of other objects, what is in there under one of the usual keys."""
    if value is None or value == "":
        return ClassList([], kind)
    if isinstance(value, _Pairs):
        for wanted in _WRAPPERS:
            for name, content in value:
                if key(name) == wanted and isinstance(content, list) and not inside:
                    return _structured(content, kind, name)
        if deeper := _wrapped(value):
            return _structured(deeper[1], kind, deeper[0])
        return _object(value, f"{inside} of {kind}" if inside else f"a {kind} object")
    if isinstance(value, list):
        entries = [_item(item, f"entry {n}") for n, item in enumerate(value, start=1)]
        return ClassList(entries, f"{inside} of {kind}" if inside else f"a {kind} list")
    raise _RefusedError(f" holds no list of classes; write a {kind} list of names, or one name a line")


def _wrapped(pairs: _Pairs) -> tuple[str, object] | None:
    """The one list of names that lies deeper inside of an object, as in the `features` of a data set of the Hub."""
    found: list[tuple[str, object]] = []
    for _, content in pairs:
        if isinstance(content, _Pairs):
            own = [
                (name, value)
                for name, value in content
                if key(name) in _WRAPPERS and isinstance(value, list) and len(value) > 1
            ]
            deeper = None if own else _wrapped(content)
            found += [deeper] if deeper else own
    return found[0] if len(found) == 1 else None


def _item(item: object, place: str) -> Entry:
    if isinstance(item, _Pairs):
        values = {key(name): value for name, value in item}
        name = next((values[wanted] for wanted in _NAME_COLUMNS if _is_text(values.get(wanted))), None)
        number = next((values[wanted] for wanted in _ID_COLUMNS if _is_text(values.get(wanted))), "")
        if name is not None:
            return Entry((_text(name),), place, str(number))
    elif isinstance(item, list) and item and all(map(_is_text, item)):
        first, *others = map(_text, item)
        if _is_id(first) and others:  # as in {"0": ["n01440764", "tench"]}
            return Entry(tuple(others), place, first)
        return Entry((first, *others), place)
    elif _is_text(item):
        return Entry((_text(item),), place)
    raise _RefusedError(f", {place}: {printable(repr(item)[:40])} is no name; write names in quotes")


def _object(pairs: _Pairs, form: str) -> ClassList:
    """{id: name}, {id: [name, synonym]}, {name: id} or {name: [synonym]}; the order is kept."""
    if not pairs:
        return ClassList([], form)
    places = [f"the key {printable(name)[:40]!r}" for name, _ in pairs]
    if all(_is_id(name) for name, _ in pairs):
        entries = []
        for (number, value), place in zip(pairs, places, strict=True):
            entry = _item(value, place)
            wordnet_id = wordnet.ID.fullmatch(entry.id)  # it says more than the number of the key
            entries.append(Entry(entry.names, place, entry.id if wordnet_id else number))
        return ClassList(entries, f"{form}, number: name" if _NUMBER.fullmatch(pairs[0][0]) else f"{form}, id: name")
    if all(_is_text(value) and _is_id(str(value)) for _, value in pairs):
        named = zip(pairs, places, strict=True)
        return ClassList([Entry((_text(name),), place, str(value)) for (name, value), place in named], form)
    if all(isinstance(value, list) and all(map(_is_text, value)) for _, value in pairs):
        named = zip(pairs, places, strict=True)
        return ClassList(
            [Entry((_text(name), *map(_text, value)), place) for (name, value), place in named],
            f"{form}, name: synonyms",
        )
    empty = all(value in ("", None) for _, value in pairs)
    if empty or all(isinstance(value, _Pairs) and _id_of(value) for _, value in pairs):
        named = zip(pairs, places, strict=True)
        return ClassList(
            [Entry((_text(name),), place, _id_of(value) if value else "") for (name, value), place in named], form
        )
    keys = ", ".join(printable(name)[:40] for name, _ in pairs[:5])
    raise _RefusedError(f" holds no list of classes: its keys are {keys}; write names: [...], or one name a line")


def _id_of(value: _Pairs) -> str:
    values = {key(name): own for name, own in value}
    return next((str(values[wanted]) for wanted in _ID_COLUMNS if _is_text(values.get(wanted))), "")


def _is_text(value: object) -> bool:
    return isinstance(value, (str, int)) and not isinstance(value, bool)


def _text(value: object) -> str:
    return " ".join(str(value).split())
