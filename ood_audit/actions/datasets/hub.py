"""Parquet as the Hugging Face Hub has it: the bytes of each image, its label as a `ClassLabel`, and its objects."""

import json
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ood_audit.actions.datasets.chosen import Chosen, Picture
from ood_audit.actions.datasets.files import new_folder, split_names, unreadable
from ood_audit.images.access import read
from ood_audit.images.parquets import SUFFIX
from ood_audit.store.files import replacing
from ood_audit.values import JsonObject

_SHARD = 500_000_000  # bytes of images: about what the Hub makes of them
_GROUP = 32_000_000  # of a row group, which is in memory
_ROWS = 1000  # of a row group at most
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_OBJECTS = pa.struct([("bbox", pa.list_(pa.list_(pa.float64(), 4))), ("category", pa.list_(pa.int64()))])


def write(chosen: Chosen, out: Path, *, copy: bool) -> tuple[int, int]:
    """Write the pictures to a file `….parquet`, or to a new folder with shards for each split.

    Returns:
        How many pictures and boxes were written.

    Raises:
        UsageError: The folder is there already.
        OodAuditError: An image can't be read any more; nothing is written.

    """
    shape = _Shape(chosen)
    if out.suffix.lower() == SUFFIX:
        with replacing(out) as temporary:
            return shape.write(temporary, chosen.pictures())
    pictures = boxes = 0
    with new_folder(out) as folder:
        (folder / "data").mkdir()
        shards = max(1, math.ceil(chosen.size_bytes / _SHARD / max(1, len(chosen.splits))))
        names = split_names(chosen.splits, otherwise="data")
        for split, count in chosen.splits.items():
            every = chosen.pictures(split)
            for shard in range(shards):
                name = f"{names[split]}-{shard:05d}-of-{shards:05d}{SUFFIX}"
                some = islice(every, math.ceil(count / shards))
                more = shape.write(folder / "data" / name, some)
                pictures, boxes = pictures + more[0], boxes + more[1]
    return pictures, boxes


class _Shape:
    """The columns, and the numbers of the classes."""

    def __init__(self, chosen: Chosen) -> None:
        names = chosen.classes()
        self._numbers = {name: number for number, name in enumerate(names)}
        kind = {"names": names, "_type": "ClassLabel"}
        features: JsonObject = {"image": {"_type": "Image"}}
        columns = [("image", _IMAGE), ("width", pa.int32()), ("height", pa.int32())]
        features |= {name: {"dtype": "int32", "_type": "Value"} for name in ("width", "height")}
        if any(picture.own_label for picture in chosen.pictures()):
            columns.append(("label", pa.int64()))
            features["label"] = kind
        if any(picture.boxes for picture in chosen.pictures()):
            columns.append(("objects", _OBJECTS))
            number = {"dtype": "float64", "_type": "Value"}
            place = {"feature": number, "length": 4, "_type": "Sequence"}
            features["objects"] = {
                "bbox": {"feature": place, "_type": "Sequence"},
                "category": {"feature": kind, "_type": "Sequence"},
            }
        if any(split is not None for split in chosen.splits):
            columns.append(("split", pa.string()))
            features["split"] = {"dtype": "string", "_type": "Value"}
        self._schema = pa.schema(columns, metadata={"huggingface": json.dumps({"info": {"features": features}})})

    def write(self, path: Path, pictures: Iterator[Picture]) -> tuple[int, int]:
        """Write a file, a row group at a time."""
        count = boxes = size = 0
        waiting: list[JsonObject] = []
        with pq.ParquetWriter(path, self._schema, compression="zstd", use_dictionary=["split"]) as file:

            def flush() -> None:
                nonlocal size
                file.write_table(pa.Table.from_pylist(waiting, schema=self._schema))
                waiting.clear()
                size = 0

            for picture in pictures:
                row = self._row(picture)
                waiting.append({name: row[name] for name in self._schema.names})
                size += len(row["image"]["bytes"])
                count, boxes = count + 1, boxes + len(picture.boxes)
                if size >= _GROUP or len(waiting) >= _ROWS:
                    flush()
            if waiting or not count:
                flush()
        return count, boxes

    def _row(self, picture: Picture) -> JsonObject:
        try:
            data = read(picture.uri).data
        except OSError as error:
            raise unreadable(picture, error) from error
        places = [[round(value, 3) for value in (box.x, box.y, box.width, box.height)] for box, _ in picture.boxes]
        return {
            "image": {"bytes": data, "path": picture.path.rpartition("/")[2]},
            "width": picture.width,
            "height": picture.height,
            "label": self._numbers.get(picture.own_label, -1),
            "objects": {"bbox": places, "category": [self._numbers.get(label, -1) for _, label in picture.boxes]},
            "split": picture.split,
        }
