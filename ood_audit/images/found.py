"""What a scan finds: images, as rows of a table, and notes on what it passed over."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice

import pyarrow as pa

BATCH = 50_000  # rows of a table

# What a scan says of an image; see `ImageRef`, of which these are the fields but for `source`.
COLUMNS = pa.schema([("uri", pa.string()), ("path", pa.string()), ("size_bytes", pa.int64()), ("mtime_ns", pa.int64())])

UNKNOWN = (-1, 0)  # size and time of an image that can't be asked for now: it is taken to be as it was


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One image file, as it was found.

    `path` is relative to `source`, with `/`. `uri` names the file for good (`file:///…`, percent-encoded bytes),
    and `image_id` is its hash: the same file is the same image, whichever source led to it. `label` is the class
    that an annotation gives the image.
    """

    uri: str
    source: str
    path: str
    size_bytes: int
    mtime_ns: int
    label: str | None = None

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
        """128 bits of BLAKE2b of `uri`, in hexadecimal."""
        return blake2b(self.uri.encode(), digest_size=16).hexdigest()


@dataclass
class ScanNotes:
    """What a scan passed over: `skipped` files by extension, and `unreadable` folders, with the reason."""

    skipped: Counter[str] = field(default_factory=Counter)
    unreadable: dict[str, str] = field(default_factory=dict)


def tables(rows: Iterator[Sequence[str | int]]) -> Iterator[pa.Table]:
    """Rows of the values of COLUMNS as tables: the first row as soon as it is there, then many at a time."""
    size = 1
    while batch := list(islice(rows, size)):
        yield pa.table([pa.array(column, kind) for column, kind in zip(zip(*batch), COLUMNS.types)], COLUMNS)  # noqa: B905
        size = BATCH
