"""Parquet as the Hugging Face Hub has it: one file, or a folder of any number of shards."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from glob import escape, glob
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_from_bytes, unquote

from ood_audit.images import archives
from ood_audit.images.access import open_file
from ood_audit.images.datasets.pictures import ImageRow, Picture, picture_rows
from ood_audit.images.found import ScanNotes
from ood_audit.images.parquets import SUFFIX, image_column, image_columns, row_name
from ood_audit.images.splits import NAMES, canonical, named, of_file
from ood_audit.images.uri import Box, file_uri, is_remote, location
from ood_audit.images.zips import SUFFIX as ZIP
from ood_audit.text import printable, storable
from ood_audit.values import JsonObject, Row

if TYPE_CHECKING:
    import pyarrow as pa

NAME = "Hugging Face Parquet"
_LOOKED_AT = 20  # shards; the first one may be damaged
_LABELS = ("label", "labels", "class", "category", "fine_label")
_CATEGORIES = ("category", "categories", "label", "labels")  # of objects
_FOLDERS = ("", "data", *NAMES, *(f"{above}/{name}" for above in ("data", "default") for name in NAMES))


def reads(source: str) -> bool:
    """Whether a source, a path or the URI of an object store, is such a file, or a folder with one.

    Raises:
        OSError: It is remote, and that can't be told now.

    """
    return any(_holds_images(uri) for _, uri in _shards(source)[:_LOOKED_AT])


def rows(source: str, notes: ScanNotes) -> Iterator[ImageRow]:
    """The images of all shards as rows of `found.COLUMNS`, read a row group at a time, without their bytes."""
    for path, uri in _shards(source):
        yield from _shard_rows(uri, storable(path), notes)


def _shards(source: str) -> list[tuple[str, str]]:
    """The shards by their paths from the folder of the source, with their URIs."""
    if (source.partition("?")[0] if is_remote(source) else source).lower().endswith(ZIP):
        return _zipped_shards(source)
    if is_remote(source):
        return _remote_shards(source)
    if not os.path.isdir(source):
        is_one = source.lower().endswith(SUFFIX) and os.path.isfile(source)
        return [(os.path.basename(source), file_uri(source))] if is_one else []
    paths = [path for folder in _FOLDERS for path in sorted(glob(os.path.join(escape(source), folder, f"*{SUFFIX}")))]
    paths = paths or sorted(glob(os.path.join(escape(source), "*", f"*{SUFFIX}")))  # a folder for each configuration
    return [(os.path.relpath(path, source).replace(os.sep, "/"), file_uri(path)) for path in paths]


def _zipped_shards(source: str) -> list[tuple[str, str]]:
    """Those in a zip file, in any folder; none where it can't be read, which is said where its images are listed."""
    uri = source if is_remote(source) else file_uri(source)
    name = os.path.basename(source.partition("?")[0] if is_remote(source) else source)
    try:
        with open_file(uri) as (file, size, mtime_ns):
            members = archives.index(uri, file, size, mtime_ns).sizes
    except OSError:
        return []
    own = sorted(member for member in members if member.lower().endswith(SUFFIX) and not member.startswith("__MACOSX/"))
    return [(f"{name}/{member}", f"{uri}#{quote_from_bytes(os.fsencode(member))}") for member in own]


def _split(path: str) -> str | None:
    """The split of a shard, by its name, or that of the nearest folder that has one."""
    *folders, name = path.split("/")
    return of_file(name) or next((split for folder in reversed(folders) if (split := named(folder))), None)


def _remote_shards(source: str) -> list[tuple[str, str]]:
    from ood_audit.images import object_store

    prefix, mark, query = source.partition("?")
    if prefix.lower().endswith(SUFFIX):
        return [(unquote(prefix.rpartition("/")[2]), source)]
    found, pending = [], [""]
    while pending:
        folder = pending.pop(0)
        above = f"{folder}/".lstrip("/")
        known = {one.removeprefix(above).partition("/")[0] for one in _FOLDERS if one.startswith(above)} - {""}
        folders, files = object_store.names(f"{prefix}/{quote(folder)}".rstrip("/") + mark + query, known)
        paths = [f"{above}{name}" for name in files if name.lower().endswith(SUFFIX)]
        found += [(path, f"{prefix}/{quote(path)}{mark}{query}") for path in paths]
        pending += [f"{above}{name}" for name in folders]
    return found


def _holds_images(uri: str) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open_file(uri) as (file, _, _):
            return image_column(pq.read_schema(file)) is not None
    except pa.ArrowException:
        return False
    except OSError:
        if is_remote(uri):
            raise
        return False


def _shard_rows(uri: str, path: str, notes: ScanNotes) -> Iterator[ImageRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with ExitStack() as stack:
        try:
            opened, _, mtime_ns = stack.enter_context(open_file(uri))
            file = stack.enter_context(pq.ParquetFile(opened))
        except (pa.ArrowException, OSError) as error:  # its images in the store are left as they are
            notes.unreadable[location(uri)] = printable(str(error).splitlines()[0])
            return
        schema = file.schema_arrow
        if image_column(schema) is None:
            notes.skipped[SUFFIX] += 1
            return
        for column in image_columns(schema)[1:]:
            notes.add_problem("further columns of images, left out", f"{path}, {column}")
        labels = _Labels(schema)
        for name in labels.names:
            notes.add_class(name)
        facts = -1, mtime_ns
        split, row = _split(path), 0
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            try:
                values = file.read_row_group(group, columns=labels.columns).to_pylist() if labels.columns else []
            except (pa.ArrowException, OSError):
                notes.add_problem("row groups whose labels can't be read", f"{path}, row {row}")
                values = []
            for n in range(count):
                own = labels.of(values[n] if values else {}, f"{path}, row {row}", notes)
                own.split = own.split or split
                yield from picture_rows(f"{uri}#{row_name(row)}", f"{path}/{row_name(row)}", facts, own, notes)
                row += 1


class _Labels:
    """Which columns hold labels and boxes, and the names of the classes, by the schema of a file.

    Attributes:
        columns: To be read of each row.
        names: Of the classes, in their order.

    """

    def __init__(self, schema: "pa.Schema") -> None:
        features = _features(schema)
        image = image_column(schema)
        self._label = next((name for name in schema.names if _class_names(features.get(name)) is not None), None)
        if self._label is None:
            self._label = next((name for name in _LABELS if name in schema.names and name != image), None)
        self._objects = "objects" if "objects" in schema.names else None
        sizes = [name for name in ("width", "height") if name in schema.names]
        self._split = "split" if "split" in schema.names else None
        self.columns = [name for name in (self._label, self._objects, self._split) if name is not None] + sizes
        self._label_names = _class_names(features.get(self._label or "")) or []
        objects = _inner(features.get("objects"))
        fields = objects or _fields(schema.field(self._objects).type if self._objects else None)
        self._category = next((name for name in _CATEGORIES if name in fields), "category")
        self._category_names = _class_names(objects.get(self._category)) or []
        self.names = list(dict.fromkeys([*self._label_names, *self._category_names]))

    def of(self, row: Row, where: str, notes: ScanNotes) -> Picture:
        """What a row says of its image."""
        value = row.get(self._label or "")
        labels = [_named(v, self._label_names, where, notes) for v in (value if isinstance(value, list) else [value])]
        picture = Picture("", [label for label in labels if label])
        if isinstance(part := row.get(self._split or ""), str) and part:
            picture.split = canonical(part)
        if isinstance(row.get("width"), int) and isinstance(row.get("height"), int):
            picture.size = row["width"], row["height"]
        objects = _columns(row.get(self._objects or ""))
        places = objects.get("bbox") or []
        kinds = objects.get(self._category) or [None] * len(places)
        for number, (place, kind) in enumerate(zip(places, kinds, strict=False)):
            if not isinstance(place, list) or len(place) != 4 or None in place:
                notes.add_problem("boxes that are no four numbers, left out", where)
                continue
            box = Box(str(number), *map(float, place))
            picture.boxes.append((box, _named(kind, self._category_names, where, notes)))
        return picture


def _columns(objects: object) -> JsonObject:
    """The objects of a picture by column, also where each of them is a struct."""
    if isinstance(objects, list):
        rows = [one for one in objects if isinstance(one, dict)]
        return {name: [one.get(name) for one in rows] for name in (rows[0] if rows else ())}
    return objects if isinstance(objects, dict) else {}


def _fields(kind: "pa.DataType | None") -> list[str]:
    """The names of the fields of a struct, or of a list of structs."""
    import pyarrow as pa

    if kind is not None and (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        kind = kind.value_type
    if kind is None or not pa.types.is_struct(kind):
        return []
    return [kind.field(i).name for i in range(kind.num_fields)]


def _named(value: object, names: list[str], where: str, notes: ScanNotes) -> str:
    """The name of a class; -1 and null, by which the Hub means an image without a label, are ""."""
    if value is None or value == -1 or value != value:  # NaN is how pandas writes null
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    if isinstance(value, str):
        notes.add_class(value)
        return value
    notes.add_problem("annotations whose class has no name", f"class {value} in {where}")
    return str(value) if isinstance(value, int) else ""


def _features(schema: "pa.Schema") -> JsonObject:
    """What the Hub's metadata says of the columns."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _inner(feature: object) -> JsonObject:
    """The fields of a feature that is a struct or a list of structs."""
    if isinstance(feature, list):
        feature = feature[0] if feature else {}
    if isinstance(feature, dict) and "feature" in feature:
        feature = feature["feature"]
    return feature if isinstance(feature, dict) else {}


def _class_names(feature: object) -> list[str] | None:
    """The names of a `ClassLabel`, or of a list of them; None for another feature."""
    inner = feature if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else _inner(feature)
    names = inner.get("names")
    return [str(name) for name in names] if isinstance(names, list) and inner.get("_type") == "ClassLabel" else None
