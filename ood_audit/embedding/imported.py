"""`import`: make a store of vectors that were computed elsewhere, so that they can be scored and reported."""

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ood_audit.embedding.vectors import Block, VectorFile, open_vectors
from ood_audit.encoders.identity import EncoderIdentity
from ood_audit.errors import StoreError, UsageError
from ood_audit.images.decode import Decoded
from ood_audit.images.found import ImageRef
from ood_audit.images.spelling import Spelling
from ood_audit.images.uri import file_uri, is_file, is_remote, local_path
from ood_audit.progress import Progress, silent
from ood_audit.store import DEFAULT_STORE, Store, create_store, open_store, totals, writing
from ood_audit.store.files import replacing, write_json
from ood_audit.store.parts import PartWriter
from ood_audit.store.store import store_root
from ood_audit.store.views import connect, interruptible, registered
from ood_audit.text import printable, storable

_UNIT = 1e-2  # float16 and bfloat16 round lengths by less
_MEMORY = "1GB"  # beyond it, DuckDB keeps the names on disk


@dataclass(frozen=True)
class ImportResult:
    """What was imported.

    Attributes:
        store: the store.
        added: vectors of images that the store did not have.
        changed: vectors of images that it had.
        invalid: vectors that are not finite or zero. Their images are rows with an error.
        normalised: whether vectors had to be brought to length 1.
        on_disk: images whose file is there, so that reports can show them.
        classes: names with an imported vector.
        background: background names with an imported vector.

    """

    store: Store
    added: int
    changed: int
    invalid: int
    normalised: bool
    on_disk: int
    classes: int
    background: int


@dataclass(frozen=True)
class FeatureColumns:
    """The columns or arrays of a file of vectors, by name.

    Attributes:
        vector: the vectors; None for the only column or array that can be it.
        path: the images' paths; None to look for a usual name.
        label: the class that each image is labelled with, which becomes the image's folder; None for no labels.

    """

    vector: str | None = None
    path: str | None = None
    label: str | None = None


def import_features(
    features: str | os.PathLike[str],
    *,
    store: str | os.PathLike[str] = DEFAULT_STORE,
    columns: FeatureColumns = FeatureColumns(),
    paths: str | os.PathLike[str] | None = None,
    images: str | os.PathLike[str] | None = None,
    model: str | None = None,
    weights: str | None = None,
    texts: str | os.PathLike[str] | None = None,
    background: str | os.PathLike[str] | None = None,
    on_progress: Progress = silent,
) -> ImportResult:
    """Make a store of vectors that others computed, or add to one.

    Args:
        features: a Parquet file or folder, the output folder of clip-retrieval, .npz, .npy or .safetensors.
        store: the store's folder; made where there is none.
        columns: the columns or arrays of the vectors, paths and labels.
        paths: a text file with a path on each line, for files that have no paths themselves.
        images: the folder that relative paths start from; None for the folder of `features`.
        model: the open_clip model that made the vectors, to encode the names of the classes with.
        weights: a checkpoint file for `model`.
        texts: a file of the same forms with the names of the classes and their vectors, in place of a model.
        background: a file of the same forms with the names of things that the images are not meant to show, and their
            vectors.
        on_progress: called with the stages of the work.

    Raises:
        UsageError: a file cannot be read, lacks a column, or its parts do not fit together.
        StoreError: the store is locked, cannot be written, or holds other vectors.

    Example:
        >>> import ood_audit  # doctest: +SKIP
        >>> ood_audit.import_features("features.npz", store="audit", texts="classes.npz").added  # doctest: +SKIP
        1005

    """
    on_progress("reading the files")
    source = Path(features).absolute()
    vectors = open_vectors(source, vector=columns.vector, name=columns.path, label=columns.label)
    known = {"classes": _names(texts), "background": _names(background)}
    for name, found in known.items():
        if found is not None and found[1].shape[1] != vectors.dimension:
            raise UsageError(
                f"the vectors of the {name} have {found[1].shape[1]} numbers, those of the images {vectors.dimension}"
            )
    root = store_root(store)
    with writing(root, "images"), duckdb.connect() as db, interruptible(db):
        db.execute(f"SET memory_limit = '{_MEMORY}'")
        db.execute("SET temp_directory = ?", [str(root / ".import.tmp")])
        listing = _list_images(db, vectors, source, images, paths)
        own = _open(root, EncoderIdentity.imported(model, weights, vectors.dimension))
        before = listing.mark_known(own)
        run = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        counts = _write(own, run, vectors, listing, source, on_progress)
        totals.keep(own)
        if known["classes"] is not None:
            _keep_texts(own.imported_texts("classes"), *known["classes"])
            for path in own.vocabularies.glob("*.safetensors"):  # made of the vectors that the names had before
                path.unlink()
        if known["background"] is not None:
            _keep_texts(own.imported_texts("background"), *known["background"])
        result = ImportResult(
            store=own,
            added=vectors.rows - before,
            changed=before,
            invalid=counts["invalid"],
            normalised=bool(counts["normalised"]),
            on_disk=counts["on_disk"],
            classes=len(known["classes"][0]) if known["classes"] else 0,
            background=len(known["background"][0]) if known["background"] else 0,
        )
        finished = datetime.now(timezone.utc).isoformat(timespec="seconds")
        record = {"run_id": run, "finished": finished, "sources": [storable(str(source))], "counts": counts}
        write_json(own.runs / f"{run}.json", record)
    return result


def _open(root: Path, identity: EncoderIdentity) -> Store:
    """The store to add to; StoreError where it holds vectors that cannot be compared with these."""
    if not (root / "store.json").exists():
        return create_store(root, identity)
    store = open_store(root)
    if not store.encoder.is_imported:
        raise StoreError(
            f"the store {printable(str(root))} holds features that ood-audit computed itself; import into another one "
            "with `store=DIR`"
        )
    if store.encoder.dimension != identity.dimension:
        raise StoreError(
            f"the store {printable(str(root))} holds vectors of {store.encoder.dimension} numbers, these have "
            f"{identity.dimension}; import them into another one with `store=DIR`"
        )
    if identity.model != "imported" and store.encoder.model not in ("imported", identity.model):
        raise StoreError(
            f"the store {printable(str(root))} holds vectors of {store.encoder.model}, these are said to be of "
            f"{identity.model}; import them into another one with `store=DIR`"
        )
    return create_store(root, identity) if identity.model != "imported" else store


@dataclass(frozen=True)
class _Listing:
    """The images that vectors belong to, row by row, in the table `listing` of a DuckDB that keeps it on disk."""

    db: duckdb.DuckDBPyConnection

    def mark_known(self, store: Store) -> int:
        """Mark which images the store has, and count them."""
        with connect(store) as views:
            known = views.sql("SELECT uri FROM images").to_arrow_table()
        with registered(self.db, known_rows=known):
            self.db.execute("UPDATE listing SET is_known = true WHERE uri IN (SELECT uri FROM known_rows)")
        ((count,),) = self.db.execute("SELECT count(*) FROM listing WHERE is_known").fetchall()
        return int(count)

    def places(self) -> duckdb.DuckDBPyConnection:
        """The URI and path of each image, and whether the store has it, to be fetched in the order of the rows."""
        return self.db.execute("SELECT uri, path, is_known FROM listing ORDER BY row")


def _list_images(
    db: duckdb.DuckDBPyConnection,
    vectors: VectorFile,
    source: Path,
    images: str | os.PathLike[str] | None,
    paths: str | os.PathLike[str] | None,
) -> _Listing:
    """List the images, having checked that each has one vector."""
    base = Path(images).absolute() if images is not None else (source if source.is_dir() else source.parent)
    db.execute("CREATE TABLE listing (row BIGINT, uri VARCHAR, path VARCHAR, is_known BOOLEAN DEFAULT false)")
    row = 0
    spelling = Spelling()
    for names in _all_names(vectors, source, paths):
        rows = [(row + i, *_place(name, base, spelling)) for i, name in enumerate(names)]
        listed = pa.table({key: [r[k] for r in rows] for k, key in enumerate(("row", "uri", "path"))})
        with registered(db, listed=listed):
            db.execute("INSERT INTO listing BY NAME FROM listed")
        row += len(names)
    if row != vectors.rows:
        raise UsageError(f"{printable(str(source))} has {vectors.rows} vectors, but there are {row} paths for them")
    twice = db.execute(
        "SELECT any_value(path), min(row) + 1, max(row) + 1, count(*) OVER () FROM listing GROUP BY uri "
        "HAVING count(*) > 1 LIMIT 1"
    ).fetchone()
    if twice is not None:
        raise UsageError(
            f"{printable(str(source))}: {twice[3]} paths occur more than once, such as {printable(twice[0])} in "
            f"rows {twice[1]} and {twice[2]}; each image can have one vector"
        )
    return _Listing(db)


def _all_names(vectors: VectorFile, source: Path, paths: str | os.PathLike[str] | None) -> Iterator[list[str]]:
    if paths is not None:
        yield from _lines(Path(paths))
    elif vectors.has_names:
        for number, block in enumerate(vectors.blocks()):
            assert block.names is not None  # noqa: S101  `has_names` says so
            names = block.names.to_pylist()
            if None in names:
                raise UsageError(f"{printable(str(source))}: a path is missing in block {number + 1} of the rows")
            yield names
    else:
        for start in range(0, vectors.rows, 65_536):
            yield [f"{source.name}#{row:07d}" for row in range(start, min(start + 65_536, vectors.rows))]


def _lines(path: Path) -> Iterator[list[str]]:
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            lines: list[str] = []
            for line in file:
                if line.strip():
                    lines.append(line.rstrip("\r\n"))
                if len(lines) == 65_536:
                    yield lines
                    lines = []
            yield lines
    except OSError as error:
        raise UsageError(f"cannot read the paths in {printable(str(path))}: {error.strerror or error}") from error


def _place(name: str, base: Path, spelling: Spelling) -> tuple[str, str]:
    """The URI of an image, and its path within the source."""
    name = storable(name)
    if is_remote(name):
        return name, name.partition("://")[2]
    plain = name.removeprefix("file://")
    whole = spelling(os.path.normpath(os.path.join(base, plain)))
    inside = os.path.relpath(whole, base)
    return file_uri(whole), storable(whole.lstrip("/") if inside.startswith("..") else inside)


def _write(
    store: Store,
    run: str,
    vectors: VectorFile,
    listing: _Listing,
    source: Path,
    on_progress: Progress,
) -> dict[str, int]:
    counts = dict.fromkeys(("invalid", "normalised", "on_disk"), 0)
    places = listing.places()
    done = 0
    with PartWriter(store, run) as writer:
        for block in vectors.blocks():
            unit, valid, changed = normalised(block.vectors)
            counts["invalid"] += int((~valid).sum())
            counts["normalised"] += changed
            labels = [None] * len(unit) if block.labels is None else block.labels.to_pylist()
            for vector, is_valid, label, (uri, path, is_known) in zip(
                unit, valid, labels, places.fetchmany(len(unit)), strict=True
            ):
                facts = _facts(uri)
                counts["on_disk"] += facts is not None
                size, mtime_ns = facts or (0, 0)
                image = ImageRef(uri, storable(str(source)), path, size, mtime_ns, label)
                error = None if is_valid else "the vector is not finite, or zero"
                decoded = Decoded(None, None, None, size, mtime_ns, None, error=error)
                writer.add(image, decoded, vector if is_valid else None, supersedes=is_known)
            done += len(unit)
            on_progress("importing", done, vectors.rows)
    return counts


def normalised(vectors: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_], bool]:
    """Vectors of length 1, which of them are valid, and whether any had another length.

    Args:
        vectors: (N, D).

    Returns:
        (N, D) float32; (N,) bool: finite and not zero; and whether a valid vector was not of length 1.

    """
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    valid = np.isfinite(lengths) & (lengths > 0)
    safe = np.where(valid, lengths, 1.0)
    unit = np.where(valid[:, None], vectors / safe[:, None], 0).astype(np.float32)
    return unit, valid, bool((np.abs(safe - 1) > _UNIT).any())


def _facts(uri: str) -> tuple[int, int] | None:
    """Size and time of a local file; None where it is not there, or somewhere else."""

    if not is_file(uri):
        return None
    try:
        info = os.stat(local_path(uri))
    except (OSError, ValueError):
        return None
    return info.st_size, info.st_mtime_ns


def _names(path: str | os.PathLike[str] | None) -> tuple[list[str], NDArray[np.float32]] | None:
    """The names and unit vectors of a file of texts."""
    if path is None:
        return None
    file = open_vectors(Path(path), of_texts=True)
    if not file.has_names:
        raise UsageError(
            f"{printable(str(path))} has vectors, but no names for them; add an array or column named names"
        )
    blocks: list[Block] = list(file.blocks())
    names = [name for block in blocks if block.names is not None for name in block.names.to_pylist()]
    unit, valid, _ = normalised(np.concatenate([block.vectors for block in blocks]))
    if not valid.all():
        first = int(np.flatnonzero(~valid)[0])
        raise UsageError(f"{printable(str(path))}: the vector of {printable(str(names[first]))} is not finite, or zero")
    return names, unit


def _keep_texts(path: Path, names: list[str], vectors: NDArray[np.float32]) -> None:
    values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    with replacing(path) as temporary:
        pq.write_table(pa.table({"name": pa.array(names, pa.string()), "vector": values}), temporary)
