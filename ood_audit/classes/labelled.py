"""The labelled subset: which images `tune` learns from."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ood_audit.classes import annotations
from ood_audit.classes.prompts import Labelled
from ood_audit.classes.vocabulary import Vocabulary
from ood_audit.errors import UsageError
from ood_audit.names import near
from ood_audit.progress import Progress
from ood_audit.store import Store, open_store
from ood_audit.store.parts import iter_features
from ood_audit.text import printable

Note = Callable[[str], None]


def from_store(store: Store, vocabulary: Vocabulary) -> Labelled:
    """The images under audit whose folder is named as a class."""
    return _collect(store, lambda _, folder: vocabulary.class_of(folder))


def from_folder(
    store: Store,
    vocabulary: Vocabulary,
    folder: str | Path,
    device: str,
    note: Note,
    on_progress: Progress,
) -> Labelled:
    """The images of FOLDER/CLASS, embedded by the store's encoder into a store of their own inside of it.

    Of those that are under audit too, or copies of such, `image_ids` has the id, so that none is its own reference.

    Raises:
        UsageError: there is no such folder, or one inside of it is not a class.
        OodAuditError: it holds no readable image.

    """
    from ood_audit.embedding.run import embed

    place = os.path.abspath(folder)
    if not os.path.isdir(place):
        raise UsageError(f"--from {printable(str(folder))} is no folder; give one with a folder of images a class")
    inner = store.root / "labelled" / hashlib.sha256(os.fsencode(place)).hexdigest()[:16]
    encoder = store.encoder
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
    rows = apart.query("SELECT DISTINCT folder FROM images WHERE status = 'ok' ORDER BY 1").rows
    strange = [folder or "(no folder)" for (folder,) in rows if vocabulary.class_of(folder) is None]
    if strange:
        close = near([folder.rpartition("/")[2] for folder in strange], vocabulary.names)
        hint = "".join(f" ({name!r} is close to {other!r})" for name, other in list(close.items())[:1])
        raise UsageError(
            f"--from {printable(str(folder))}: {_some(strange)} {'is' if len(strange) == 1 else 'are'} not in the "
            f"vocabulary{printable(hint)}; add the class to the labels file, or take the folder away"
        )
    if unreadable := done.counts["unreadable"]:
        note(f"warning: {unreadable} of the labelled images can't be read, and are left out")
    found = _collect(apart, lambda _, folder: vocabulary.class_of(folder))
    contents = "SELECT image_id, content_hash FROM images WHERE status = 'ok' ORDER BY image_id"
    audited = {content: image_id for image_id, content in store.query(contents).rows}
    same = {image_id: audited.get(content, "") for image_id, content in apart.query(contents).rows}
    return Labelled(found.features, found.labels, [same[image_id] for image_id in found.image_ids], found.held_out)


def from_annotations(store: Store, vocabulary: Vocabulary, path: str | Path) -> Labelled:
    """The images under audit that a file names; see `annotations.labels`, also for what it raises."""
    wanted = annotations.labels(store, vocabulary, path)
    return _collect(store, lambda image_id, _: wanted.get(image_id))


def check(labelled: Labelled, vocabulary: Vocabulary, note: Note) -> None:
    """Tell what is missing; UsageError where there is too little to tune on."""
    counts = np.bincount(labelled.labels, minlength=len(vocabulary.names)) if len(labelled.labels) else np.zeros(1)
    if (counts >= 2).sum() < 2:
        raise UsageError(
            f"too few labelled images: {len(labelled.labels)} in {int((counts > 0).sum())} classes; tuning needs two "
            "images each of two classes: name folders as the classes, or use --from FOLDER or --annotations FILE"
        )
    if without := [name for name, count in zip(vocabulary.names, counts, strict=True) if count == 0]:
        note(f"no labelled image of {_some(without)} ({len(without)} of {len(counts)} classes)")


def _collect(store: Store, label_of: Callable[[str, str], int | None]) -> Labelled:
    ids: list[str] = []
    labels: list[int] = []
    features = [np.empty((0, store.encoder.dimension), np.float32)]
    for batch in iter_features(store):
        found = [label_of(i, f) for i, f in zip(batch.image_ids.to_pylist(), batch.folders.to_pylist(), strict=True)]
        rows = [row for row, label in enumerate(found) if label is not None]
        ids += batch.image_ids.take(rows).to_pylist() if rows else []
        labels += [label for label in found if label is not None]
        features.append(batch.features[rows])
    # The order of the parts is that of the workers which decoded: by id, it is the same in every store.
    order = np.argsort(np.array(ids, dtype=str), kind="stable")
    in_order = [ids[i] for i in order]
    return Labelled(np.concatenate(features)[order], np.array(labels, np.int64)[order], in_order, np.arange(0))


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(printable(name) for name in names[:most]) + (", …" if len(names) > most else "")
