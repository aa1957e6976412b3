"""What datasets say of their images, in `annotations/`: for each source its classes, and a row for each box."""

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

from ood_audit.store import schema
from ood_audit.store.files import read_json, remove, replacing, write_json
from ood_audit.store.folder import StoreFolder
from ood_audit.text import storable
from ood_audit.values import JsonObject

if TYPE_CHECKING:
    import pyarrow as pa


def write_boxes(store: StoreFolder, source: str, tables: "Iterator[pa.Table]") -> None:
    """Write the boxes of a source, tables with the columns `schema.ANNOTATIONS`, in place of those of before."""
    import pyarrow.parquet as pq

    columns = schema.arrow(schema.ANNOTATIONS)
    store.annotations.mkdir(parents=True, exist_ok=True)
    with (
        replacing(store.annotations / f"{_name(source)}.parquet") as temporary,
        pq.ParquetWriter(temporary, columns, compression="zstd") as writer,
    ):
        for table in tables:
            writer.write_table(table.select(columns.names).cast(columns))


def describe(
    store: StoreFolder, source: str, form: str, classes: Sequence[str], problems: dict[str, tuple[int, str]]
) -> None:
    """Note what a source is: its format, its classes, and what is wrong in its annotations."""
    values = {
        "source": storable(source),
        "format": form,
        "classes": [storable(name) for name in classes],
        "problems": {kind: {"count": count, "first": storable(first)} for kind, (count, first) in problems.items()},
    }
    store.annotations.mkdir(parents=True, exist_ok=True)
    write_json(store.annotations / f"{_name(source)}.json", values)


def forget(store: StoreFolder, source: str) -> None:
    """Delete what the store has of a source, if anything."""
    for suffix in ("json", "parquet"):
        path = store.annotations / f"{_name(source)}.{suffix}"
        if path.exists():
            remove(path)


def classes(store: StoreFolder) -> list[str]:
    """The names of the classes of all datasets in the store, in their order."""
    return list(dict.fromkeys(name for one in described(store) for name in one["classes"]))


def described(store: StoreFolder) -> list[JsonObject]:
    """What `describe` noted of each dataset in the store."""
    return [read_json(path) for path in sorted(store.annotations.glob("*.json"))]


def _name(source: str) -> str:
    return blake2b(storable(source).encode(), digest_size=8).hexdigest()
