"""A Parquet file that embedding-atlas opens: each image and box with its place on a map, neighbours and a thumbnail."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ood_audit.actions.datasets.chosen import Chosen
from ood_audit.errors import UsageError
from ood_audit.findings.map import coordinates, coordinates_by_sample
from ood_audit.images.decode import thumbnail
from ood_audit.store import Store
from ood_audit.store.files import replacing
from ood_audit.store.parts import iter_features
from ood_audit.store.search import build
from ood_audit.values import JsonObject

OPEN = "embedding-atlas {} --x x --y y --neighbors neighbors --image image"
NEIGHBOURS = 10
_MAPPED = 50_000  # images whose map is that of a report; for more, these give the axes
_BLOCK = 4096
_THUMBNAIL, _QUALITY = 128, 50  # pixels, and of the JPEG: some 3 kB
_VALUES = ("path", "split", "given_label", "label", "ood_score", "p_value", "flagged", "findings", "uri")
_ROWS = """
SELECT i.path, i.split, s.given_label, s.label, s.ood_score, d.p_value, d.flagged, coalesce(f.kinds, '') AS findings,
       i.uri
FROM rows AS r JOIN images AS i USING (image_id) LEFT JOIN scores AS s USING (image_id)
LEFT JOIN _decisions AS d USING (image_id)
LEFT JOIN (SELECT image_id, string_agg(DISTINCT kind, ', ' ORDER BY kind) AS kinds FROM findings GROUP BY 1) AS f
USING (image_id)
ORDER BY r.row
"""
_SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("x", pa.float32()),
        ("y", pa.float32()),
        ("neighbors", pa.struct([("ids", pa.list_(pa.int64())), ("distances", pa.list_(pa.float32()))])),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        *((name, pa.string()) for name in ("path", "split", "given_label", "label")),
        ("ood_score", pa.float32()),
        ("p_value", pa.float64()),
        ("flagged", pa.bool_()),
        *((name, pa.string()) for name in ("findings", "uri")),
    ]
)
Halves = NDArray[np.float16]


def write(chosen: Chosen, out: Path, *, copy: bool) -> tuple[int, int]:
    """Write a row for each image and box that was embedded.

    Features are in memory, as 16-bit floats; pictures are not.

    Returns:
        How many images and boxes were written.

    Raises:
        UsageError: Images are to be copied: the file has thumbnails.

    """
    if copy:
        raise UsageError("`copy` is for coco and yolo; a file for embedding-atlas has thumbnails")
    ids, features = _features(chosen.store, chosen.image_ids())
    if len(features) <= _MAPPED:
        places = coordinates(features.astype(np.float32))
    else:
        some = np.sort(np.random.default_rng(0).choice(len(features), _MAPPED, replace=False))
        places = coordinates_by_sample(features, features[some].astype(np.float32))
    boxes = 0
    with replacing(out) as temporary, pq.ParquetWriter(temporary, _SCHEMA, compression="zstd") as file:
        start = 0
        with ThreadPoolExecutor() as pool:
            for (near, distances), values in zip(_neighbours(features), chosen.rows(ids, _ROWS, _BLOCK), strict=True):
                rows = range(start, start + len(near))
                uris = [value[-1] for value in values]
                corrected = [chosen.label(ids[row], value[2] or "") for row, value in zip(rows, values, strict=True)]
                values = [
                    (*value[:2], label or None, *value[3:]) for label, value in zip(corrected, values, strict=True)
                ]
                boxes += sum("#box=" in uri for uri in uris)
                pictures = pool.map(lambda uri: thumbnail(uri, _THUMBNAIL, _QUALITY), uris)
                columns: list[Sequence[object]] = [
                    list(rows),
                    *places[start : start + len(near)].T,
                    [_near(*one) for one in zip(near.tolist(), distances.tolist(), strict=True)],
                    [None if data is None else {"bytes": data, "path": None} for data in pictures],
                    *zip(*values, strict=True),
                ]
                arrays = [pa.array(column, kind) for column, kind in zip(columns, _SCHEMA.types, strict=True)]
                file.write_table(pa.Table.from_arrays(arrays, schema=_SCHEMA))
                start += len(near)
    return len(ids) - boxes, boxes


def _near(ids: list[int], distances: list[float]) -> JsonObject:
    """As embedding-atlas has neighbours; where an index found fewer than it was asked for, the others are -1."""
    pairs = [(one, distance) for one, distance in zip(ids, distances, strict=True) if one >= 0]
    return {"ids": [one for one, _ in pairs], "distances": [distance for _, distance in pairs]}


def _features(store: Store, wanted: set[str]) -> tuple[list[str], Halves]:
    """The ids of the wanted images, in the order of the store, and their features."""
    ids: list[str] = []
    found: list[Halves] = []
    for batch in iter_features(store):
        own = batch.image_ids.to_pylist()
        rows = [row for row, one in enumerate(own) if one in wanted]
        ids += [own[row] for row in rows]
        found.append(batch.features[rows].astype(np.float16))
    return ids, np.concatenate(found)


def _neighbours(features: Halves) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """For blocks of images the rows of the nearest others, and their distances, which are 1 − cosine."""

    def blocks() -> Iterator[NDArray[np.float32]]:
        return (features[start : start + _BLOCK].astype(np.float32) for start in range(0, len(features), _BLOCK))

    index, _ = build(blocks, len(features), features.shape[1])
    start = 0
    for block in blocks():
        cosines, rows = index.search(block, min(NEIGHBOURS + 1, len(features)))
        own = np.arange(start, start + len(block))[:, None]
        itself = (rows == own) | (rows < 0)
        itself[~itself.any(axis=1), -1] = True  # among so many of the same picture it was not found itself
        order = np.argsort(itself, axis=1, kind="stable")[:, : rows.shape[1] - 1]
        near = np.take_along_axis(rows, order, axis=1)
        yield near, np.clip(1 - np.take_along_axis(cosines, order, axis=1), 0, 2)
        start += len(block)
