"""Files that an older version wrote lack columns."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ood_audit.store import parts, schema


def test_what_an_older_part_lacks_is_null():
    older = parts.SCHEMA.empty_table().drop_columns(["note", "supersedes"])
    older = pa.concat_tables(
        [older, pa.table({"image_id": ["a"], "part": pa.array([3])})], promote_options="permissive"
    )
    now = schema.completed(older, parts.SCHEMA)
    assert now.schema == parts.SCHEMA
    assert now.select(["image_id", "part", "note", "supersedes"]).to_pylist() == [
        {"image_id": "a", "part": 3, "note": None, "supersedes": None}
    ]


@pytest.mark.parametrize("dictionaries", [(), schema.NAMES])
def test_arrow_and_duckdb_have_the_same_columns(tmp_path, dictionaries):
    import duckdb

    for columns in (schema.PARTS, schema.SCORES, schema.DECISIONS):
        pq.write_table(schema.arrow(columns, dictionaries).empty_table(), tmp_path / "empty.parquet")
        read = duckdb.read_parquet(str(tmp_path / "empty.parquet"))
        assert dict(zip(read.columns, map(str, read.types), strict=True)) == columns
