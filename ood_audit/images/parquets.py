"""Parquet files that hold images, as the Hugging Face Hub has them: a column with the bytes of each."""

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, BinaryIO

from ood_audit.images.content import UnreadableError
from ood_audit.text import printable

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIX = ".parquet"
_KEPT = 3  # row groups in memory: threads that decode are in two that follow each other
_DIGITS = 8
_NAMES = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp", "image_bytes", "image_data")


class ParquetIndex:
    """The rows of a Parquet file by number; see `archives.Index`."""

    kind = "Parquet file"

    def __init__(self, file: BinaryIO, size: int) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.others = 0
        self.damage: str | None = None
        self._starts = [0]  # the first row of each row group, and the end
        self._column: str | None = None
        self._groups: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        self._lock = threading.Lock()  # one thread reads a row group, the others wait for it
        try:
            metadata = pq.read_metadata(file)
            self._column = image_column(metadata.schema.to_arrow_schema())
            groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
            self._starts = list(accumulate(groups, initial=0))
        except (pa.ArrowException, OSError) as error:
            self.damage = f"damaged Parquet file: {printable(str(error).splitlines()[0])}"
        if self._column is None and self.damage is None:
            self.damage = "a Parquet file without a column of images"
        self.sizes: Mapping[str, int] = _Rows(self._starts[-1])

    def read(self, file: BinaryIO, name: str) -> bytes:
        """The bytes of the image of a row.

        Raises:
            UnreadableError: The row has none, or is damaged.

        """
        row = int(name)
        group = bisect_right(self._starts, row) - 1
        with self._lock:
            if group not in self._groups:
                self._groups[group] = self._images(file, group)
                while len(self._groups) > _KEPT:
                    self._groups.popitem(last=False)
            images = self._groups[group]
        data = images[row - self._starts[group]].as_py()
        if not data:
            raise UnreadableError("no image in this row of the Parquet file")
        return bytes(data)

    def _images(self, file: BinaryIO, group: int) -> "pa.ChunkedArray":
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        try:
            opened = pq.ParquetFile(file)
            if not pa.types.is_struct(opened.schema_arrow.field(self._column).type):
                return opened.read_row_group(group, columns=[self._column]).column(0)
            table = opened.read_row_group(group, columns=[f"{self._column}.bytes"])
            return pc.struct_field(table.column(0), "bytes")
        except (pa.ArrowException, OSError) as error:
            raise UnreadableError(f"damaged Parquet file: {printable(str(error).splitlines()[0])}") from error


class _Rows(Mapping[str, int]):
    """The names of so many rows; their sizes are not known."""

    def __init__(self, rows: int) -> None:
        self._rows = rows

    def __getitem__(self, name: str) -> int:
        if not (name.isascii() and name.isdecimal() and int(name) < self._rows):
            raise KeyError(name)
        return -1

    def __iter__(self) -> Iterator[str]:
        return map(row_name, range(self._rows))

    def __len__(self) -> int:
        return self._rows


def row_name(row: int) -> str:
    """What a row is called, in the order of the rows."""
    return f"{row:0{_DIGITS}}"


def image_column(schema: "pa.Schema") -> str | None:
    """The column that holds images, the first of `image_columns`; None where there is none."""
    return next(iter(image_columns(schema)), None)


def image_columns(schema: "pa.Schema") -> list[str]:
    """The columns that hold images: structs with a field `bytes`, and bytes by a name that says so."""
    import pyarrow as pa

    found = []
    for field in schema:
        kind = field.type
        if pa.types.is_struct(kind):
            kind = next((kind.field(i).type for i in range(kind.num_fields) if kind.field(i).name == "bytes"), kind)
        elif field.name.lower() not in _NAMES:
            continue
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            found.append(str(field.name))
    return found
