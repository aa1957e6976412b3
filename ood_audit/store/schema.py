"""The columns of the store's tables by their types in DuckDB, each table written once.

To add a column, add it here and where its values are made. Files that an older version wrote lack it, and it is null
in all of their rows.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

Columns = dict[str, str]

IMAGES: Columns = {
    "image_id": "VARCHAR",
    "source": "VARCHAR",
    "path": "VARCHAR",
    "folder": "VARCHAR",
    "split": "VARCHAR",  # train, val, test, or a name that the user gave; null where it is unknown
    "width": "INTEGER",
    "height": "INTEGER",
    "format": "VARCHAR",
    "size_bytes": "BIGINT",
    "content_hash": "VARCHAR",
    "status": "VARCHAR",  # ok, error or removed
    "error": "VARCHAR",
    "note": "VARCHAR",  # what is odd about a readable image
    "brightness": "FLOAT",  # the first of seven by `images.quality`; null in parts of older versions
    "shadows": "FLOAT",
    "highlights": "FLOAT",
    "sharpness": "FLOAT",
    "entropy": "FLOAT",
    "saturation": "FLOAT",
    "picture_hash": "VARCHAR",
    "taken_at": "VARCHAR",  # the time in the EXIF data
    "camera": "VARCHAR",
    "latitude": "DOUBLE",  # null unless `embed` was asked to keep places
    "longitude": "DOUBLE",
    "uri": "VARCHAR",
    "mtime_ns": "BIGINT",
    "run_id": "VARCHAR",
}
PARTS: Columns = IMAGES | {
    "part": "INTEGER",  # the number in the name of the part that the row was written to
    "supersedes": "BOOLEAN",  # whether an older part has a row of this image, which no longer counts
    "look": "BLOB",  # see `encoders.looks`; null where the encoder has none
}
ANNOTATIONS: Columns = {  # a row for each box of a dataset
    "image_id": "VARCHAR",  # the whole image
    "box_id": "VARCHAR",  # its number in the dataset, or in the annotation of the image
    "label": "VARCHAR",
    "x": "DOUBLE",  # the left edge in pixels
    "y": "DOUBLE",  # the upper edge
    "width": "DOUBLE",
    "height": "DOUBLE",
    "split": "VARCHAR",
}
SCORES: Columns = {
    "image_id": "VARCHAR",
    "path": "VARCHAR",
    "ood_score": "FLOAT",
    "delta_energy": "FLOAT",
    "energy": "FLOAT",
    "max_cosine": "FLOAT",
    "label": "VARCHAR",
    "label_2": "VARCHAR",
    "margin": "FLOAT",
    "given_label": "VARCHAR",
    "confidence": "FLOAT",
    "given_confidence": "FLOAT",
    "distance": "FLOAT",
    "lead": "FLOAT",
    "folder_rank": "INTEGER",
    "novelty": "FLOAT",
    "unlike": "VARCHAR",
}
DECISIONS: Columns = {
    "image_id": "VARCHAR",
    "flagged": "BOOLEAN",
    "p_value": "DOUBLE",
    "shift": "VARCHAR",
    "p_distance": "DOUBLE",
    "label_issue": "FLOAT",
    "suggested_label": "VARCHAR",
    "cluster": "VARCHAR",
}
DUPLICATES: Columns = {
    "image_id": "VARCHAR",
    "path": "VARCHAR",
    "cluster": "INTEGER",
    "kind": "VARCHAR",
    "keep": "BOOLEAN",
    "kept_path": "VARCHAR",
    "cosine": "FLOAT",
    "hash_distance": "INTEGER",
    "turned": "BOOLEAN",  # or mirrored
    "width": "INTEGER",
    "height": "INTEGER",
    "size_bytes": "BIGINT",
}
NAMES = ("label", "label_2", "given_label", "unlike")  # columns of few different values, stored as a dictionary's


def ddl(columns: Columns) -> str:
    """The columns as `CREATE TABLE` has them in its brackets."""
    return ", ".join(f"{name} {kind}" for name, kind in columns.items())


def arrow(columns: Columns, dictionaries: tuple[str, ...] = ()) -> "pa.Schema":
    """The columns as Arrow has them; `dictionaries` are encoded as such."""
    import pyarrow as pa

    kinds = {
        "VARCHAR": pa.string(),
        "INTEGER": pa.int32(),
        "BIGINT": pa.int64(),
        "FLOAT": pa.float32(),
        "DOUBLE": pa.float64(),
        "BOOLEAN": pa.bool_(),
        "BLOB": pa.binary(),
    }
    word = pa.dictionary(pa.int32(), pa.string())
    return pa.schema([(name, word if name in dictionaries else kinds[kind]) for name, kind in columns.items()])


def completed(table: "pa.Table", schema: "pa.Schema") -> "pa.Table":
    """The columns of `schema` of a table of any version; those that it lacks are null."""
    import pyarrow as pa

    for field in schema:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table.select(schema.names).cast(schema)
