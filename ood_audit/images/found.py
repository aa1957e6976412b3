"""What a scan finds: images, as rows of a table, and notes on what it passed over."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice

import pyarrow as pa

BATCH = 50_000  # rows of a table

BOX = pa.struct([("id", pa.string())] + [(name, pa.float64()) for name in ("x", "y", "width", "height")])
# What a scan says of an image; see `ImageRef`, of which these are the fields but for `source`.
COLUMNS = pa.schema(
    [
        ("uri", pa.string()),
        ("path", pa.string()),
        ("size_bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("box", BOX),
    ]
)

UNKNOWN = (-1, 0)  # size and time of an image that can't be asked for now: it is taken to be as it was


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One image file, as it was found.

    `path` is relative to `source`, with `/`. `uri` names the file for good (`file:///…`, percent-encoded bytes),
    and `image_id` is its hash: the same file is the same image, whichever source led to it. `label` is the class
    that an annotation gives the image, "" where it gives none, and None where there is no annotation. `split` is the
    part of the dataset that it belongs to, as `splits.NAMES` calls it; None where that is unknown.
    """

    uri: str
    source: str
    path: str
    size_bytes: int
    mtime_ns: int
    label: str | None = None
    split: str | None = None

    @property
    def folder(self) -> str:
        """The label, if there is one; else the folder part of `path`, without the names of archives.

        It is empty at the top of the source.
        """
        if self.label is not None:
            return self.label
        folder = self.path.rpartition("/")[0]
        if "#" in self.uri:
            folder = "/".join(part for part in folder.split("/") if not part.lower().endswith((".tar", ".zip")))
        return folder

    @property
    def image_id(self) -> str:
        """What stands for the image in the store."""
        return image_id(self.uri)


def image_id(uri: str) -> str:
    """128 bits of BLAKE2b of a URI, in hexadecimal."""
    return blake2b(uri.encode(), digest_size=16).hexdigest()


@dataclass
class ScanNotes:
    """What a scan passed over, and what it learned of a dataset.

    Attributes:
        skipped: how many files were passed over, by extension.
        unreadable: folders that could not be read, with the reason.
        format: of a dataset with labels: `COCO`, say; else "".
        classes: the names of its classes, in its order.
        problems: by kind of what is wrong in its annotations, how often that was seen, and where first.

    """

    skipped: Counter[str] = field(default_factory=Counter)
    unreadable: dict[str, str] = field(default_factory=dict)
    format: str = ""
    classes: list[str] = field(default_factory=list)
    problems: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add_problem(self, kind: str, where: str) -> None:
        """Count a problem, such as a `missing pictures` at a path."""
        count, first = self.problems.get(kind, (0, where))
        self.problems[kind] = count + 1, first

    def add_class(self, name: str) -> None:
        """Note the name of a class, once."""
        if name not in self._known:
            self._known.add(name)
            self.classes.append(name)

    def add_label(self, label: str, where: str) -> None:
        """Note the class of a label; a bare number is no name of one."""
        if not label.isdecimal():
            self.add_class(label)
        elif label not in self._known:
            self._known.add(label)
            self.add_problem("classes without a name", f"class {label} in {where}")

    def __post_init__(self) -> None:
        self._known = set(self.classes)


def tables(rows: Iterator[Sequence[object]]) -> Iterator[pa.Table]:
    """Rows of the values of COLUMNS as tables: the first row as soon as it is there, then many at a time.

    The last values of the rows may be left out, all in the same way.
    """
    size = 1
    while batch := list(islice(rows, size)):
        columns = zip(zip(*batch), COLUMNS.types)  # noqa: B905
        yield with_nulls([pa.array(column, kind) for column, kind in columns])
        size = BATCH


def with_nulls(columns: Sequence[pa.Array | pa.ChunkedArray]) -> pa.Table:
    """The first of COLUMNS as a table with all of them, of which the others are null."""
    missing = [pa.nulls(len(columns[0]), kind) for kind in COLUMNS.types[len(columns) :]]
    return pa.table([*columns, *missing], COLUMNS.names).cast(COLUMNS)
