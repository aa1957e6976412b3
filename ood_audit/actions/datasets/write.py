"""`export_dataset`: what is kept of a store, or what was found, as a dataset that other tools read."""

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import duckdb

from ood_audit.actions.datasets import atlas, coco, hub, lists, yolo
from ood_audit.actions.datasets.chosen import Chosen
from ood_audit.errors import OodAuditError, UsageError
from ood_audit.findings.records import in_evaluation, selecting
from ood_audit.images.uri import is_remote
from ood_audit.progress import Progress, silent
from ood_audit.store import DEFAULT_STORE, Store, open_store
from ood_audit.store.views import connect
from ood_audit.text import printable

FORMATS: dict[str, Callable[..., tuple[int, int]]] = {
    "coco": coco.write,
    "yolo": yolo.write,
    "parquet": hub.write,
    "csv": lists.write,
    "atlas": atlas.write,
}


@dataclass(frozen=True)
class ExportedDataset:
    """What was written.

    Attributes:
        images: How many images, without boxes.
        boxes: How many boxes in them.
        left_out: How many further boxes YOLO has no place for, as they have no class.
        relabelled: How many of the images and boxes have another label than the dataset gave them, by a verdict.
        outdated: How many findings were left out, as their image has changed.
        evaluation: By split that models are judged on, how many images were selected by what a model says.

    """

    images: int
    boxes: int = 0
    left_out: int = 0
    relabelled: int = 0
    outdated: int = 0
    evaluation: dict[str, int] = field(default_factory=dict)


def export_dataset(
    out: str | os.PathLike[str],
    store: str | os.PathLike[str] | Store = DEFAULT_STORE,
    *,
    format: str,
    kinds: Collection[str] = (),
    images: Collection[str] | None = None,
    keep: bool = False,
    copy: bool = False,
    report: str | None = None,
    on_progress: Progress = silent,
) -> ExportedDataset:
    """Write all images of a store, those with findings, or those without, as a dataset with labels, splits and boxes.

    Labels are those that were given, or that a verdict corrected; what a verdict removed is left out. Without `kinds`
    and `images` all readable images are written.

    Args:
        out: The file or the new folder to write: `….json` or a folder for `coco`, a folder for `yolo`, `….parquet` or a
            folder for `parquet`, a file for `csv` and `atlas`.
        store: A store or its folder.
        format: `coco`, `yolo`, `parquet` (as the Hugging Face Hub has it, with the bytes of the images), `csv` (path,
            label, split and uri), or `atlas` (a Parquet file for embedding-atlas, with a row for each image and box).
        kinds: The kinds of finding whose images are written.
        images: The ids of images in place of kinds.
        keep: Write the images that are left without these.
        copy: Copy the images into the folder of a `coco` or `yolo` dataset. Otherwise COCO names the files where they
            are, and YOLO's folder has links to them.
        report: The report's name; by default the current one.
        on_progress: Called with the stages of the work, see `ood_audit.progress.Progress`.

    Raises:
        UsageError: There is no such format or kind, or the format can't hold what was asked for.
        StoreError: There are no findings yet.
        OodAuditError: Nothing is left to write, or an image can't be read any more.

    Example:
        >>> import ood_audit
        >>> _ = ood_audit.embed("examples/images", store="audit", device="cpu")
        >>> ood_audit.export_dataset("all.csv", "audit", format="csv").images
        189

    """
    if format not in FORMATS:
        raise UsageError(f"format {printable(format)}: choose {', '.join(FORMATS)}")
    if not isinstance(store, Store):
        store = open_store(store)
    everything = not kinds and images is None
    if keep and everything:
        raise UsageError("`keep` leaves out what was found; select kinds of findings")
    on_progress("writing the dataset")
    with _selected(store, kinds, images, report) as (db, outdated, evaluation):
        chosen = Chosen(db, store, keep=keep, everything=everything)
        if not chosen.splits:
            raise OodAuditError("no image is left to write")
        pictures, boxes = FORMATS[format](chosen, _target(out, chosen.sources), copy=copy)
        return ExportedDataset(pictures, boxes, chosen.left_out, len(chosen.relabelled), outdated, evaluation)


def _target(out: str | os.PathLike[str], sources: list[str]) -> Path:
    """Where to write; UsageError for a source of the images, and for what is neither a file nor a folder."""
    target = os.path.realpath(out)
    if os.path.lexists(target) and not os.path.isfile(target) and not os.path.isdir(target):
        raise UsageError(f"`out` {printable(str(out))} is not a regular file; name another one")
    if target in {os.path.realpath(source) for source in sources if not is_remote(source)}:
        raise UsageError(f"`out` {printable(str(out))} is a source of these images; name another file")
    return Path(target)


@contextmanager
def _selected(
    store: Store, kinds: Collection[str], images: Collection[str] | None, report: str | None
) -> Iterator[tuple[duckdb.DuckDBPyConnection, int, dict[str, int]]]:
    """A connection, with the table `selected` where something is; see `records.selecting` and `in_evaluation`."""
    if kinds or images is not None:
        with selecting(store, kinds, report, images=images) as (db, outdated):
            yield db, outdated, in_evaluation(db)
    else:
        with connect(store) as db:
            yield db, 0, {}
