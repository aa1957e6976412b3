"""The duplicates of a store, found once for its images as they are, and as findings of a report.

Apart from `duplicates`, which does the finding, because a report on a store whose duplicates are known must start
without FAISS.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ood_audit.encoders.gpu import choose_gpu
from ood_audit.errors import StoreError
from ood_audit.store import schema
from ood_audit.store.files import replacing
from ood_audit.store.findings import Finding
from ood_audit.store.store import Store
from ood_audit.store.views import count_readable
from ood_audit.text import printable

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MOST = 200_000  # images: with more, near duplicates alone take minutes on a CPU; `nearest.MOST` is for a GPU
_COUNTS = ("clusters", "images", "extra", "unreadable", "flat")


def current(
    store: Store,
    near: bool | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    *,
    device: str = "auto",
    on_note: Callable[[str], None] = lambda note: None,
) -> tuple[Path, dict[str, int]]:
    """The file of the store's duplicates, a row for each `duplicates.Duplicate`; found anew if images have changed.

    The caller holds the lock of the scores.

    Args:
        store: the store.
        near: look for near duplicates too, or only for exact ones. By default for near ones of at most `MOST` images,
            of millions where there is a GPU, or where they have been found.
        on_progress: called with the number of images done and to do.
        device: see `duplicates.find`.
        on_note: see `duplicates.find`.

    Returns:
        The path, and the counts of `duplicates.Duplicates`: clusters, images, extra, unreadable, flat; and `near`,
        whether near duplicates were looked for.

    Raises:
        StoreError: the file is damaged.

    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = store.root / "duplicates.parquet"
    if path.exists():
        try:
            metadata = pq.read_schema(path).metadata or {}
        except (OSError, pa.ArrowInvalid) as error:
            raise StoreError(f"{printable(str(path))} is damaged; delete it and run the command again") from error
        done = int(metadata.get(b"near", b"1"))  # older ones always did
        # One of an older ood-audit has none that are turned or mirrored.
        is_current = b"turned" in metadata and metadata.get(b"generation") == str(store.generation).encode()
        if is_current and (near is None or near == bool(done)):
            return path, {name: int(metadata[name.encode()]) for name in _COUNTS} | {"near": done}
    from ood_audit.findings.duplicates import find

    generation = store.generation
    if near is None:
        images = count_readable(store)
        near = images <= MOST or images <= _most_on(device, store.encoder.dimension)
    progress = on_progress or (lambda done, total: None)
    found = find(store, near=near, device=device, on_progress=progress, on_note=on_note)
    counts = {name: int(getattr(found, name)) for name in _COUNTS} | {"near": int(near)}
    columns = schema.arrow(schema.DUPLICATES)
    table = pa.Table.from_pylist([asdict(row) for row in found.rows], schema=columns)
    values = {"generation": generation, "turned": 1, **counts}
    with replacing(path) as temporary:
        pq.write_table(table.replace_schema_metadata({k: str(v) for k, v in values.items()}), temporary)
    return path, counts


def _most_on(device: str, dimension: int) -> int:
    gpu = choose_gpu(device)
    if gpu is None:
        return 0
    from ood_audit.findings.nearest import most_on

    return most_on(gpu, dimension)


def findings(
    db: "DuckDBPyConnection", path: Path, report: str, together: Mapping[str, int] | None = None
) -> Iterator[Finding]:
    """The duplicates as findings, without the one of each cluster that is kept.

    Args:
        db: a connection with the view `images`.
        path: as `current` gives it.
        report: the report's name.
        together: by the id of an image, the recording that it is of: near duplicates within one are left out.

    """
    rows = db.execute(
        "WITH d AS (FROM read_parquet($path, hive_partitioning = false)) "
        "SELECT d.image_id, i.uri, d.path, d.kind, d.kept_path, d.cosine, d.hash_distance, d.turned, k.image_id "
        "FROM d JOIN images AS i USING (image_id) LEFT JOIN d AS k ON k.cluster = d.cluster AND k.keep "
        "WHERE NOT d.keep ORDER BY d.cluster, d.path",
        {"path": str(path)},
    ).fetchall()
    recording = together or {}
    for image_id, uri, own, kind, kept, cosine, bits, turned, kept_id in rows:
        same = kind == "exact"
        if not same and image_id in recording and recording[image_id] == recording.get(kept_id):
            continue
        picture = "the same picture, turned or mirrored" if turned else "the same picture"
        of_both = f": cosine {cosine:.3f}, {bits} of 256 bits differ"
        evidence = f"the same bytes as {kept}" if same else f"{picture} as {kept}{of_both}"
        severity = 1.0 if same else 0.9
        yield Finding(image_id, uri, own, f"{kind}-duplicate", severity, evidence, f"keep {kept}", report)


def unreadable(db: "DuckDBPyConnection", report: str) -> Iterator[Finding]:
    """The images that could not be read as findings."""
    rows = db.execute("SELECT image_id, uri, path, error FROM images WHERE status = 'error' ORDER BY path").fetchall()
    for image_id, uri, path, error in rows:
        yield Finding(image_id, uri, path, "unreadable", 1.0, error, "replace the file, or take it away", report)
