"""Files of vectors that other programs wrote, read as a stream of blocks.

These forms are read:

- a Parquet file, or a folder of them, with a column of lists of numbers
- the output folder of clip-retrieval: `img_emb/*.npy` beside `metadata/*.parquet`
- `.npz`: a two-dimensional array, with arrays of names, paths or labels beside it
- `.npy` and `.safetensors`: a two-dimensional array, with the paths in a list of their own

Nothing is unpickled, and memory holds one block of vectors at a time.
"""

import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ood_audit.errors import UsageError
from ood_audit.text import printable

BLOCK_ROWS = 16_384
NAME_COLUMNS = ("path", "image_path", "file_path", "filepath", "file_name", "filename", "file", "uri", "url", "name")
_NAME_ARRAYS = ("paths", "path", "files", "filenames", "file_names", "image_paths", "uris", "urls")
_TEXT_ARRAYS = ("names", "name", "classes", "class_names", "labels")
_VECTOR_COLUMNS = ("embedding", "vector", "features", "feature", "image_embedding", "emb")

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Block:
    """Some rows of a file of vectors.

    Attributes:
        vectors: (N, D) float32, as they are in the file.
        names: (N,) strings, such as paths; None where the file has none.
        labels: (N,) strings or nulls; None where the file has none.

    """

    vectors: Floats
    names: pa.Array | None
    labels: pa.Array | None


@dataclass(frozen=True)
class VectorFile:
    """A file of vectors, opened and understood, but not read yet.

    Attributes:
        path: the file or folder.
        rows: how many vectors it has.
        dimension: D, how many numbers each vector has.
        has_names: whether the blocks have names.
        blocks: reads it from the beginning.

    """

    path: Path
    rows: int
    dimension: int
    has_names: bool
    blocks: Callable[[], Iterator[Block]]


def open_vectors(
    path: Path,
    *,
    vector: str | None = None,
    name: str | None = None,
    label: str | None = None,
    of_texts: bool = False,
) -> VectorFile:
    """Find out what is in a file of vectors.

    Args:
        path: the file or folder; see the module for its forms.
        vector: the column or array of the vectors; None for the only one that there is.
        name: the column or array of the names; None to look for a usual name.
        label: the column or array of the labels; None for no labels.
        of_texts: the vectors are of texts, so that their names are looked for where class names usually are.

    Raises:
        UsageError: the file does not exist, is damaged, has another form, or does not say which of several columns
            has the vectors.

    """
    if not path.exists():
        raise UsageError(f"{_shown(path)} does not exist; name a file or folder of vectors")
    wanted = _Wanted(path, vector, name, label, _TEXT_ARRAYS if of_texts else _NAME_ARRAYS, of_texts)
    try:
        if path.is_dir() and (path / "img_emb").is_dir():
            return _clip_retrieval(wanted)
        if path.is_dir() or path.suffix.lower() in (".parquet", ".pq"):
            return _parquet(wanted, _parquet_files(path))
        opener = {".npz": _npz, ".npy": _npy, ".safetensors": _safetensors}.get(path.suffix.lower())
        if opener is None:
            raise UsageError(f"{_shown(path)} has an unknown format; give .parquet, .npz, .npy or .safetensors")
        return opener(wanted)
    except (OSError, ValueError, zipfile.BadZipFile, KeyError) as error:  # Arrow's errors are ValueErrors
        if isinstance(error, UsageError):
            raise
        reason = printable(" ".join(str(error).split()))[:200]
        raise UsageError(f"cannot read the vectors in {_shown(path)}: {reason}") from error


@dataclass(frozen=True)
class _Wanted:
    """What `open_vectors` was asked for."""

    path: Path
    vector: str | None
    name: str | None
    label: str | None
    name_arrays: Sequence[str]
    of_texts: bool

    def pick(self, what: str, asked: str | None, known: Sequence[str], usual: Sequence[str]) -> str | None:
        """The column or array that was asked for, else the first usual name that is there."""
        if asked is not None:
            if asked not in known:
                raise UsageError(f"{_shown(self.path)} has no {what} {printable(asked)}; it has {_listed(known)}")
            return asked
        return next((name for name in usual if name in known), None)

    def the_vectors(self, candidates: Sequence[str], known: Sequence[str]) -> str:
        """The column or array of the vectors."""
        usual = ("texts", *_VECTOR_COLUMNS) if self.of_texts else ("images", *_VECTOR_COLUMNS)
        picked = self.pick("vectors called", self.vector, known, [name for name in usual if name in candidates])
        if picked is None and len(candidates) == 1:
            picked = candidates[0]
        if picked is None and candidates:
            raise UsageError(f"{_shown(self.path)} has several arrays of vectors ({_listed(candidates)}); choose one")
        if picked is None or picked not in candidates:
            raise UsageError(f"{_shown(self.path)} has no column of vectors; it has {_listed(known)}")
        return picked


# Parquet


def _parquet_files(path: Path) -> list[Path]:
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    if not files:
        raise UsageError(f"{_shown(path)} holds no Parquet file")
    return files


def _parquet(wanted: _Wanted, files: list[Path]) -> VectorFile:
    schema = pq.read_schema(files[0])
    candidates = [field.name for field in schema if _is_list_of_numbers(field.type)]
    vector = wanted.the_vectors(candidates, schema.names)
    usual = ("name", "label", "class", *NAME_COLUMNS) if wanted.of_texts else NAME_COLUMNS
    name = wanted.pick("column", wanted.name, schema.names, usual)
    label = wanted.pick("column", wanted.label, schema.names, ())
    rows = sum(pq.read_metadata(file).num_rows for file in files)

    def blocks() -> Iterator[Block]:
        columns = [column for column in (vector, name, label) if column is not None]
        before = 0
        for file in files:
            with pq.ParquetFile(file) as opened:
                for batch in opened.iter_batches(batch_size=BLOCK_ROWS, columns=columns):
                    vectors = _rows_of_lists(batch[vector], dimension, wanted.path, before)
                    before += len(vectors)
                    yield Block(vectors, _strings(batch, name), _strings(batch, label))

    dimension = _first_dimension(files, vector, wanted.path)
    return VectorFile(wanted.path, rows, dimension, name is not None, blocks)


def _is_list_of_numbers(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(is_list and pa.types.is_floating(kind.value_type))


def _first_dimension(files: Sequence[Path], vector: str, path: Path) -> int:
    for file in files:
        with pq.ParquetFile(file) as opened:
            for batch in opened.iter_batches(batch_size=1024, columns=[vector]):
                lengths = [len(row) for row in batch[vector].to_pylist() if row]
                if lengths:
                    return lengths[0]
    raise UsageError(f"{_shown(path)} holds no vector")


def _rows_of_lists(column: pa.Array, dimension: int, path: Path, before: int) -> Floats:
    """(N, D) of a column of lists; a null counts as a vector that is not finite."""
    import pyarrow.compute as pc

    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False).astype(np.float64)
    missing = np.isnan(lengths) | (lengths == 0)
    if (wrong := np.flatnonzero(~missing & (lengths != dimension))).size:
        row = int(wrong[0])
        raise UsageError(
            f"{_shown(path)}, row {before + row + 1}: a vector of {int(lengths[row])} numbers, while the first has "
            f"{dimension}"
        )
    vectors = np.full((len(column), dimension), np.nan, np.float32)
    values = column.filter(pa.array(~missing)).flatten().cast(pa.float32()).to_numpy(zero_copy_only=False)
    vectors[~missing] = values.reshape(-1, dimension)
    return vectors


def _strings(batch: pa.RecordBatch, column: str | None) -> pa.Array | None:
    return None if column is None else batch[column].cast(pa.string())


# clip-retrieval


def _clip_retrieval(wanted: _Wanted) -> VectorFile:
    arrays = sorted((wanted.path / "img_emb").glob("*.npy"), key=_number)
    tables = sorted((wanted.path / "metadata").glob("*.parquet"), key=_number)
    if not arrays:
        raise UsageError(f"{_shown(wanted.path / 'img_emb')} holds no .npy file")
    if len(arrays) != len(tables):
        raise UsageError(
            f"{_shown(wanted.path)} has {len(arrays)} files in img_emb and {len(tables)} in metadata; they go in pairs"
        )
    schema = pq.read_schema(tables[0])
    name = wanted.pick("column", wanted.name, schema.names, NAME_COLUMNS)
    label = wanted.pick("column", wanted.label, schema.names, ())
    rows, dimension = 0, 0
    for array, table in zip(arrays, tables, strict=True):
        shape = _mapped(array).shape
        listed = pq.read_metadata(table).num_rows
        if shape[0] != listed:
            raise UsageError(f"{_shown(array)} has {shape[0]} vectors, {_shown(table)} has {listed} rows")
        rows, dimension = rows + shape[0], dimension or shape[1]
        if shape[1] != dimension:
            raise UsageError(f"{_shown(array)} has vectors of {shape[1]} numbers, the first file has {dimension}")

    def blocks() -> Iterator[Block]:
        columns = [column for column in (name, label) if column is not None]
        for array, table in zip(arrays, tables, strict=True):
            vectors, start = _mapped(array), 0
            with pq.ParquetFile(table) as opened:
                for batch in opened.iter_batches(batch_size=BLOCK_ROWS, columns=columns or [schema.names[0]]):
                    part = np.asarray(vectors[start : start + len(batch)], np.float32)
                    start += len(batch)
                    yield Block(part, _strings(batch, name), _strings(batch, label))

    return VectorFile(wanted.path, rows, dimension, name is not None, blocks)


def _number(path: Path) -> tuple[int, str]:
    digits = re.findall(r"\d+", path.stem)
    return (int(digits[-1]) if digits else -1, path.name)


# NumPy and safetensors


def _npy(wanted: _Wanted) -> VectorFile:
    array = _mapped(wanted.path)
    rows, dimension = array.shape
    return VectorFile(wanted.path, rows, dimension, False, lambda: _sliced(lambda a, b: array[a:b], rows))


def _mapped(path: Path) -> NDArray[np.floating]:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim != 2 or array.dtype.kind != "f":
        raise UsageError(
            f"{_shown(path)} is an array of {array.ndim} dimensions of {array.dtype}; two of floats are needed"
        )
    return array  # type: ignore[no-any-return]


def _safetensors(wanted: _Wanted) -> VectorFile:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(wanted.path, "numpy") as file:
            names = list(file.keys())
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except SafetensorError as error:
        raise UsageError(f"{_shown(wanted.path)} is damaged or no safetensors file: {error}") from error
    vector = wanted.the_vectors([name for name in names if len(shapes[name]) == 2], names)

    def part(start: int, stop: int) -> NDArray[np.floating]:
        with safe_open(wanted.path, "numpy") as file:
            return np.asarray(file.get_slice(vector)[start:stop])

    rows, dimension = shapes[vector]
    return VectorFile(wanted.path, rows, dimension, False, lambda: _sliced(part, rows))


def _npz(wanted: _Wanted) -> VectorFile:
    members = {info.filename.removesuffix(".npy"): info.filename for info in zipfile.ZipFile(wanted.path).infolist()}
    headers = {name: _header_of(wanted.path, member) for name, member in members.items()}
    known = list(headers)
    floats = [name for name, (shape, kind) in headers.items() if len(shape) == 2 and kind.kind == "f"]
    vector = wanted.the_vectors(floats, known)
    rows, dimension = headers[vector][0]
    beside = [name for name, (shape, _) in headers.items() if shape == (rows,)]
    name = wanted.pick("array", wanted.name, known, [usual for usual in wanted.name_arrays if usual in beside])
    label = wanted.pick("array", wanted.label, known, ())
    names, labels = (_names_in(wanted, member, headers, rows) for member in (name, label))

    def blocks() -> Iterator[Block]:
        start = 0
        for vectors in _streamed(wanted.path, members[vector]):
            stop = start + len(vectors)
            yield Block(vectors, *(None if of is None else of.slice(start, stop - start) for of in (names, labels)))
            start = stop

    return VectorFile(wanted.path, rows, dimension, names is not None, blocks)


def _names_in(
    wanted: _Wanted, array: str | None, headers: Mapping[str, tuple[tuple[int, ...], np.dtype]], rows: int
) -> pa.Array | None:
    """An array of strings; or of numbers, which point into the array `names` where there is one."""
    if array is None:
        return None
    shape, kind = headers[array]
    if kind.kind == "O":
        raise UsageError(f"{_shown(wanted.path)}: {array} is pickled; save it as an array of strings, dtype str")
    if shape != (rows,):
        raise UsageError(f"{_shown(wanted.path)}: {array} has the shape {shape}, there are {rows} vectors")
    with np.load(wanted.path, allow_pickle=False) as file:
        values = file[array]
        if values.dtype.kind in "iu" and "names" in file and array != "names":
            names = file["names"]
            if len(values) and not 0 <= values.min() <= values.max() < len(names):
                raise UsageError(f"{_shown(wanted.path)}: {array} points outside of its {len(names)} names")
            values = names[values]
    return pa.array([str(value) for value in values.tolist()], pa.string())


def _header_of(path: Path, member: str) -> tuple[tuple[int, ...], np.dtype]:
    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        shape, _, kind = _header(file)
        return shape, kind


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def _streamed(path: Path, member: str) -> Iterator[Floats]:
    """A two-dimensional array inside of a .npz file, some rows at a time."""
    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        (rows, dimension), fortran, kind = _header(file)
        if fortran:
            raise UsageError(f"{_shown(path)}: {member} is stored by columns; save it with numpy.ascontiguousarray")
        width = dimension * kind.itemsize
        for start in range(0, rows, BLOCK_ROWS):
            count = min(BLOCK_ROWS, rows - start)
            data = file.read(count * width)
            if len(data) != count * width:
                raise UsageError(f"{_shown(path)} is truncated")
            yield np.frombuffer(data, kind).reshape(count, dimension).astype(np.float32)


def _sliced(part: Callable[[int, int], NDArray[np.floating]], rows: int) -> Iterator[Block]:
    for start in range(0, rows, BLOCK_ROWS):
        yield Block(np.asarray(part(start, min(start + BLOCK_ROWS, rows)), np.float32), None, None)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(printable(name) for name in names) or "nothing"


def _shown(path: Path) -> str:
    return printable(str(path))
