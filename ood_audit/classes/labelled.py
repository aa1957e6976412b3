"""Labelled images: known examples of the classes, registered in `labelled/` of a store.

Flags are calibrated with them, class prototypes are made of them, and `tune` learns from them. A registration is a
folder FOLDER/CLASS/… of pictures, which are embedded into a store of their own, or a file that names images of the
store and their classes. It is two files, `labelled/ID.parquet` with the features and `labelled/ID.json`, which is
written last: without it the registration is not there. Labels are kept as they were written, so that they serve any
list of classes.
"""

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ood_audit.arrays import unit
from ood_audit.classes import annotations
from ood_audit.classes.vocabulary import Vocabulary
from ood_audit.encoders import looks
from ood_audit.errors import OodAuditError, StoreError, UsageError
from ood_audit.names import near
from ood_audit.progress import Progress, silent
from ood_audit.store import Store, files, open_store, writing
from ood_audit.store.files import read_json, replacing, write_json
from ood_audit.store.locks import COMMIT_SECONDS
from ood_audit.text import printable, storable

if TYPE_CHECKING:
    import pyarrow as pa

Note = Callable[[str], None]
_SAME = 0.9999  # the cosine from which on two features are of the same picture: float16 loses less than a tenth of it
_ROWS = 1024  # labelled images at a time that are compared with those that prompts were trained on


@dataclass(frozen=True)
class Labelled:
    """Images of known classes.

    Attributes:
        features: (M, D) float32 of length 1.
        labels: (M,) int.
        image_ids: of those under audit; "" for others.
        held_out: (H,) the rows that no prompt was tuned on.
        looks: (M, L) float32 of length 1, see `encoders.looks`; None where one of the images has none.

    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    image_ids: list[str]
    held_out: NDArray[np.int64]
    looks: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class LabelledSource:
    """A registered folder or file of labelled images.

    Attributes:
        source: The absolute path of the folder or file.
        kind: `folder`, or `file` for one that names images of the store.
        images: How many labelled images it gave.
        classes: How many images there are of each label, by label.
        unreadable: How many images of the folder could not be read.
        added: When it was registered, in ISO 8601 and UTC.

    """

    source: str
    kind: str
    images: int
    classes: dict[str, int]
    unreadable: int
    added: str


def add(
    store: Store,
    source: str | os.PathLike[str],
    *,
    vocabulary: Vocabulary | None = None,
    device: str = "auto",
    note: Note = lambda message: None,
    on_progress: Progress = silent,
) -> LabelledSource:
    """Register labelled images. To register a source again replaces what was known of it.

    Args:
        store: The store.
        source: A folder with one folder of images for each class, or a CSV, JSON or Parquet file with the columns
            `path` (of an image in the store) and `label`.
        vocabulary: Classes that every label must belong to; None accepts any label.
        device: Where a folder's images are embedded.
        note: Called with a sentence for each thing that a person should know.
        on_progress: Called with the stages of the work, see `ood_audit.progress.Progress`.

    Raises:
        UsageError: There is no such source, or it has a label that is not in the vocabulary.
        OodAuditError: It holds no readable image.

    """
    import pyarrow.parquet as pq

    place = os.path.abspath(source)
    path = _registration(store, place)
    if os.path.isdir(place):
        table, unreadable = _embedded(store, place, vocabulary, device, note, on_progress)
    elif os.path.isfile(place):
        table, unreadable = _annotated(store, place, vocabulary), 0
    else:
        raise UsageError(
            f"there is no folder or file of labelled images {printable(str(source))}; name a folder with one folder of "
            "images for each class, or a CSV file with the columns path and label"
        )
    added = LabelledSource(
        source=storable(place),
        kind="folder" if os.path.isdir(place) else "file",
        images=len(table),
        classes=dict(sorted(Counter(table["label"].to_pylist()).items())),
        unreadable=unreadable,
        added=datetime.now(timezone.utc).isoformat(),
    )
    with writing(store.root, "scores", wait=COMMIT_SECONDS):
        path.parent.mkdir(exist_ok=True)
        for leftover in filter(files.is_leftover, path.parent.glob(".*.tmp")):
            files.delete(leftover)
        files.remove(path)
        with replacing(path.with_suffix(".parquet")) as temporary:
            pq.write_table(table, temporary, compression="zstd")
        write_json(path, asdict(added))
    return added


def registered(store: Store) -> list[LabelledSource]:
    """List the registered labelled images, the oldest registration first.

    Raises:
        StoreError: A file of the store is damaged.

    """
    found = []
    for path in (store.root / "labelled").glob("[!.]*.json"):
        try:
            found.append(LabelledSource(**read_json(path)))
        except TypeError as error:
            raise StoreError(f"{printable(str(path))} is damaged; delete it and register the images again") from error
    return sorted(found, key=lambda own: (own.added, own.source))


def remove(store: Store, source: str | os.PathLike[str]) -> LabelledSource:
    """Take labelled images out of the store; the files that they came from are left alone.

    Args:
        store: The store.
        source: A registered folder or file, as `registered` lists it or by any path that leads there.

    Raises:
        UsageError: No such source is registered.

    """
    place = storable(os.path.abspath(source))
    known = {own.source: own for own in registered(store)}
    if place not in known:
        there = ", ".join(printable(name) for name in known) or "none yet"
        raise UsageError(f"no labelled images are registered from {printable(place)}; registered are: {there}")
    path = _registration(store, os.path.abspath(source))
    with writing(store.root, "scores", wait=COMMIT_SECONDS):
        files.remove(path)
        files.remove(path.with_suffix(".parquet"))
        if (inner := path.with_suffix("")).is_dir():
            for file in [file for file in inner.rglob("*") if file.is_file()]:
                files.remove(file)
            shutil.rmtree(inner)
    return known[place]


def fingerprint(store: Store) -> list[str]:
    """What changes whenever labelled images are registered or removed."""
    return [f"{own.source} {own.added}" for own in registered(store)]


def load(store: Store, vocabulary: Vocabulary, note: Note = lambda message: None) -> Labelled | None:
    """The registered labelled images of a vocabulary's classes, all of them held out; None where there are none.

    A picture that is registered several times has the label it was given last. `note` is called with the labels that
    are not in the vocabulary, whose images are left out.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    sources = registered(store)
    rows: dict[str, tuple[int, int]] = {}  # by content: the row and the class
    tables, strange, start = [], Counter[str](), 0
    for source in sources:
        path = _registration(store, source.source).with_suffix(".parquet")
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise StoreError(f"{printable(str(path))} is damaged; register the images again") from error
        class_of = vocabulary.class_of if source.kind == "folder" else vocabulary.position
        known = {label: class_of(label) for label in source.classes}
        contents = zip(table["content_hash"].to_pylist(), table["label"].to_pylist(), strict=True)
        for row, (content, label) in enumerate(contents, start):
            if (k := known[label]) is None:
                strange[label] += 1
                rows.pop(content, None)
            else:
                rows[content] = (row, k)
        if "look" not in table.column_names:  # of an older version
            table = table.append_column("look", pa.nulls(len(table), pa.binary()))
        tables.append(table)
        start += len(table)
    if strange:
        note(_left_out(strange, vocabulary))
    if not rows:
        return None
    chosen = sorted(rows.values())
    table = pa.concat_tables(tables).take([row for row, _ in chosen])
    seen = None if table["look"].null_count else looks.read(table["look"].to_pylist())
    labels = np.array([k for _, k in chosen])
    return Labelled(_features(table), labels, _audited(store, table), np.arange(len(chosen)), seen)


def apart_from(labelled: Labelled, tuned_on: Labelled) -> Labelled:
    """`labelled`, where `held_out` are the rows whose picture prompts were not trained on.

    Args:
        labelled: Registered images.
        tuned_on: The images that prompts were tuned with.

    """
    trained = np.delete(tuned_on.features, tuned_on.held_out, axis=0)
    if not len(trained):
        return labelled
    new = [
        (labelled.features[start : start + _ROWS] @ trained.T).max(axis=1) < _SAME
        for start in range(0, len(labelled.features), _ROWS)
    ]
    return replace(labelled, held_out=np.flatnonzero(np.concatenate(new)))


def from_store(store: Store, vocabulary: Vocabulary) -> Labelled:
    """The images under audit whose folder is named as a class."""
    table = _collected(store, lambda _, folder: None if vocabulary.class_of(folder) is None else folder)
    labels = np.array([vocabulary.class_of(folder) for folder in table["label"].to_pylist()], np.int64)
    return Labelled(_features(table), labels, table["image_id"].to_pylist(), np.arange(0))


def check(labelled: Labelled, vocabulary: Vocabulary, note: Note) -> None:
    """Tell what is missing; UsageError where there is too little to tune on."""
    counts = np.bincount(labelled.labels, minlength=len(vocabulary.names)) if len(labelled.labels) else np.zeros(1)
    if (counts >= 2).sum() < 2:
        raise UsageError(
            f"too few labelled images: {len(labelled.labels)} in {int((counts > 0).sum())} classes; tuning needs two "
            "images each of two classes: register some with `ood-audit labels add FOLDER`, or name folders as the "
            "classes"
        )
    if without := [name for name, count in zip(vocabulary.names, counts, strict=True) if count == 0]:
        note(f"no labelled image of {_some(without)} ({len(without)} of {len(counts)} classes)")


def _registration(store: Store, place: str) -> Path:
    """The JSON file of a source; `place` is its absolute path, also as `storable` writes it."""
    return store.root / "labelled" / f"{hashlib.sha256(storable(place).encode()).hexdigest()[:16]}.json"


def _embedded(
    store: Store, place: str, vocabulary: Vocabulary | None, device: str, note: Note, on_progress: Progress
) -> "tuple[pa.Table, int]":
    """Embed FOLDER/CLASS into a store inside the store; the images, and how many are unreadable."""
    from ood_audit.embedding.run import embed

    encoder = store.encoder
    if encoder.is_imported and encoder.model == "imported":
        raise UsageError(
            "the features of this store were imported without a model, so that pictures can't be embedded beside them; "
            "label images of the store by a CSV file with the columns path and label"
        )
    inner = _registration(store, place).with_suffix("")
    done = embed(
        [place],
        store=inner,
        model=encoder.model,
        weights=encoder.weights,
        precision=encoder.precision,
        device=device,
        on_progress=on_progress,
    )
    apart = open_store(inner)
    table = _collected(apart, lambda _, folder: folder)
    loose = sum(label == "" for label in table["label"].to_pylist())
    if loose:
        raise UsageError(
            f"{printable(place)} holds {loose} images outside of any folder; put the images of each class into a "
            "folder named as the class"
        )
    if vocabulary is not None:
        _check_folders(place, table["label"].to_pylist(), vocabulary)
    if unreadable := done.counts["unreadable"]:
        note(f"warning: {unreadable} of the labelled images can't be read and are left out")
    if not len(table):
        raise OodAuditError(f"{printable(place)} holds no readable image")
    outside = [""] * len(table)  # an image of the folder may be under audit as well, which `load` finds out
    return table.set_column(0, "image_id", [outside]), unreadable


def _check_folders(place: str, folders: Sequence[str], vocabulary: Vocabulary) -> None:
    """UsageError for folders that are not in the vocabulary."""
    strange = [folder for folder in dict.fromkeys(folders) if vocabulary.class_of(folder) is None]
    if not strange:
        return
    close = near([folder.rpartition("/")[2] for folder in strange], vocabulary.names)
    hint = "".join(f" ({name!r} is close to {other!r})" for name, other in list(close.items())[:1])
    raise UsageError(
        f"{printable(place)}: {_some(strange)} {'is' if len(strange) == 1 else 'are'} not in the "
        f"vocabulary{printable(hint)}; add the class to the list of classes, or remove the folder"
    )


def _annotated(store: Store, place: str, vocabulary: Vocabulary | None) -> "pa.Table":
    """The images of the store that a file names."""
    wanted = annotations.labels(store, vocabulary, place)
    table = _collected(store, lambda image_id, _: wanted.get(image_id))
    if not len(table):
        raise OodAuditError(f"{printable(place)} names no readable image of the store")
    return table


def _collected(store: Store, label_of: Callable[[str, str], str | None]) -> "pa.Table":
    """The images of a store that have a label, by id: image_id, content_hash, label, look, and feature in float16."""
    import pyarrow as pa

    from ood_audit.store.parts import iter_features, looks_of

    ids: list[str] = []
    labels: list[str] = []
    codes = [np.empty((0, store.encoder.dimension), np.float16)]
    for batch in iter_features(store):
        found = [label_of(i, f) for i, f in zip(batch.image_ids.to_pylist(), batch.folders.to_pylist(), strict=True)]
        rows = [row for row, label in enumerate(found) if label is not None]
        ids += batch.image_ids.take(rows).to_pylist() if rows else []
        labels += [label for label in found if label is not None]
        codes.append(batch.codes[rows].astype(np.float16))
    seen = looks_of(store, ids)
    values = pa.array(np.concatenate(codes).ravel(), pa.float16())
    table = pa.table(
        {
            "image_id": pa.array(ids, pa.string()),
            "content_hash": pa.array(_contents(store, ids), pa.string()),
            "label": pa.array(labels, pa.string()),
            "look": pa.array(seen, pa.binary()),
            "feature": pa.FixedSizeListArray.from_arrays(values, store.encoder.dimension),
        }
    )
    return table.sort_by("image_id")  # the order of the parts is that of the workers which decoded


def _contents(store: Store, ids: Sequence[str]) -> list[str]:
    """The hashes of the images' bytes; an image of an unknown hash, as of an imported feature, is its own content."""
    known = _looked_up(store, "image_id", ids, "content_hash")
    return [known.get(image_id) or image_id for image_id in ids]


def _audited(store: Store, table: "pa.Table") -> list[str]:
    """The ids of the images under audit that have the same bytes; "" for others."""
    contents = table["content_hash"].to_pylist()
    by_content = {content: content for content in _looked_up(store, "image_id", contents, "image_id")}
    by_content |= _looked_up(store, "content_hash", contents, "image_id")
    own = zip(table["image_id"].to_pylist(), contents, strict=True)
    there = _looked_up(store, "image_id", table["image_id"].to_pylist(), "content_hash")
    return [i if i and (there.get(i) or i) == content else by_content.get(content, "") for i, content in own]


def _looked_up(store: Store, column: str, values: Sequence[str], wanted: str) -> dict[str, str]:
    """One column of the readable images by another; of several images with a value the first, by id."""
    import pyarrow as pa

    from ood_audit.store.views import connect

    with connect(store) as db:
        db.register("_asked", pa.table({"value": pa.array(list(dict.fromkeys(values)), pa.string())}))
        return dict(
            db.execute(
                f"SELECT {column}, arg_min({wanted}, image_id) FROM images JOIN _asked ON {column} = value "
                f"WHERE status = 'ok' AND {wanted} IS NOT NULL GROUP BY ALL"
            ).fetchall()
        )


def _features(table: "pa.Table") -> NDArray[np.float32]:
    """(M, D) float32 of length 1."""
    column = table["feature"].combine_chunks()
    codes = column.flatten().to_numpy(zero_copy_only=False)
    return unit(codes.reshape(len(table), column.type.list_size))


def _left_out(strange: Counter[str], vocabulary: Vocabulary) -> str:
    close = near([label.rpartition("/")[2] for label in strange], vocabulary.names)
    hint = "".join(f"; {name!r} is close to {other!r}" for name, other in list(close.items())[:1])
    return (
        f"warning: {strange.total()} labelled images are left out, as the vocabulary lacks their classes: "
        f"{_some(list(strange))}{printable(hint)}"
    )


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(printable(name) for name in names[:most]) + (", …" if len(names) > most else "")
