"""`embed`: embed images and sync the store with their sources."""

import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow.parquet as pq

from ood_audit._version import __version__
from ood_audit.embedding.changes import Changes, compare
from ood_audit.embedding.scan import Scan, begin, resolved, store_in, with_splits
from ood_audit.embedding.settings import EmbedSettings
from ood_audit.encoders.identity import EncoderIdentity
from ood_audit.encoders.warn import log_once, warnings_to
from ood_audit.errors import OodAuditError, StoreError, UsageError
from ood_audit.images.sources import ScanNotes, scan
from ood_audit.progress import Progress, counting, silent
from ood_audit.store import DEFAULT_STORE, Store, create_store, open_store, totals, writing
from ood_audit.store.files import write_json
from ood_audit.store.store import store_root
from ood_audit.store.views import connect
from ood_audit.text import printable, storable

if TYPE_CHECKING:
    from ood_audit.embedding import local, ray
    from ood_audit.embedding.work import Engine
    from ood_audit.encoders import loading

    Encoder = loading.Encoder | local.Workers | ray.Workers

OUTCOMES = ("added", "unchanged", "changed", "moved", "relabelled", "removed", "unreadable")
_SAMPLE = 32  # images on which a precision is tried


@dataclass
class EmbedResult:
    """What a run did.

    `counts` has every outcome; each image that was looked at, or is gone, is counted once. An image is `moved` if its
    file is gone and a new file has the same bytes: it keeps its feature. It is `relabelled` if nothing but its label or
    its split is new. `skipped` counts files that are no images, by
    extension. `unreadable_folders` gives the reason by folder; their images are left alone.
    `notes` are sentences on what went otherwise than planned: memory that ran out, a process that died.
    """

    store: Store
    counts: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    unreadable_folders: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    interrupted: bool = False

    def __repr__(self) -> str:
        return f"EmbedResult({', '.join(f'{name}={self.counts[name]}' for name in OUTCOMES if self.counts[name])})"


def embed(
    sources: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
    *,
    store: str | os.PathLike[str] = DEFAULT_STORE,
    settings: EmbedSettings | None = None,
    splits: Mapping[str, str | os.PathLike[str]] | Iterable[tuple[str, str | os.PathLike[str]]] = (),
    images: str | os.PathLike[str] | None = None,
    on_start: Callable[["Encoder"], None] | None = None,
    on_progress: Progress = silent,
    on_note: Callable[[str], None] | None = None,
    **options: Any,
) -> EmbedResult:
    """Embed images and sync the store with their sources.

    New and changed images are embedded, removed ones leave the view, unreadable ones are rows with `status='error'`
    and are tried again next time. A file that was moved or renamed since the last run, or restored, keeps its feature
    if its bytes are the same. To resume an interrupted run, call `embed` again.

    Args:
        sources: folders, tar files, image files, or lists of these (.txt, .csv, .parquet with a column `path`, and
            perhaps `label` and `split`); paths, or URIs (`s3://…`, `gs://…`, `hdfs://…`, `https://…`). Also datasets:
            a COCO file (.json), a YOLO file (.yaml), a folder of Pascal VOC, Parquet with images as the Hugging Face
            Hub has it, and an ImageFolder with metadata.csv or metadata.jsonl.
        store: the store's folder, or its URI; made where there is none.
        settings: the encoder, and where it runs; None for the defaults.
        splits: further sources by the name of their split. Other images have the split that their folders say.
        images: the folder of the images of a dataset, where it is not beside the annotations.
        on_start: called with the encoder before the first image, if there is one to embed.
        on_progress: called with the stages of the work, see `ood_audit.progress.Progress`.
        on_note: called with each of the result's `notes`, as soon as there is one; by default they are logged.
        **options: fields of `EmbedSettings`, such as `model` and `device`, in place of those of `settings`.

    Raises:
        UsageError: a source does not exist, or an argument makes no sense.
        StoreError: the store is locked, can't be written, or is of another encoder.
        EncoderError: the model could not be loaded.
        OodAuditError: no image was found, or none could be read.

    """
    started = time.monotonic()
    settings = replace(settings or EmbedSettings(), **options)
    pictures = _pictures(images)
    if isinstance(sources, (str, os.PathLike)):
        sources = [sources]
    root = store_root(store)
    on_progress("looking for images")
    found: dict[str, str | None] = dict.fromkeys(resolved(source, root) for source in sources)
    found |= with_splits(splits, root)
    before = sorted(root.glob("images/part-*"))
    scans = [begin(source, root, split, pictures) for source, split in found.items()]
    notes: list[str] = []

    def add_note(note: str) -> None:
        if note not in notes:
            notes.append(note)
            (on_note or log_once)(note)

    with writing(root, "images"), warnings_to(add_note):
        if sorted(root.glob("images/part-*")) != before:  # another run came between, and may know of newer files
            scans = [begin(source, root, split, pictures) for source, split in found.items()]
        existing, encoder = _open(root, scans, settings, on_progress)
        result = EmbedResult(existing, notes=notes)
        run = _Run(result, scans, settings, on_progress, add_note)
        try:
            with connect(existing) as db:
                run.bring_into_step(db, encoder, on_start)
        except KeyboardInterrupt:
            result.interrupted = True
            raise
        finally:
            result.seconds = round(time.monotonic() - started, 3)
            run.record()
    run.check_readable()
    return result


def _pictures(images: str | os.PathLike[str] | None) -> str | None:
    """The real path of the folder of a dataset's images."""
    if images is not None and not os.path.isdir(images):
        raise UsageError(f"`images` {printable(os.fspath(images))}: no such folder")
    return None if images is None else os.path.realpath(images)


class _Run:
    """One run of `embed` on an open, locked store."""

    def __init__(
        self,
        result: EmbedResult,
        scans: list[Scan],
        settings: EmbedSettings,
        on_progress: Progress,
        on_note: Callable[[str], None],
    ) -> None:
        self.id = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        self.result = result
        self.store = result.store
        self.scans = scans
        self.settings = settings
        self.first_unreadable = ""
        self.on_progress = on_progress
        self.on_note = on_note

    def check_readable(self) -> None:
        """Raise an OodAuditError if there are images, and none of them could be read."""
        counts = self.result.counts
        read = sum(counts[outcome] for outcome in ("added", "unchanged", "changed", "moved", "relabelled"))
        if counts["unreadable"] and not read:
            raise OodAuditError(
                f"none of the {counts['unreadable']} images could be read; the first, {self.first_unreadable}"
            )

    def bring_into_step(
        self,
        db: duckdb.DuckDBPyConnection,
        encoder: "Encoder | None",
        on_start: Callable[["Encoder"], None] | None,
    ) -> None:
        from ood_audit.embedding import adoption
        from ood_audit.store.index import BUILD_NOW_BYTES, build_index
        from ood_audit.store.parts import PartWriter

        counts, settings = self.result.counts, self.settings
        changes = self._compare(db)
        to_do, relabelled = changes.count("new", "changed", "retry"), changes.count("relabelled")
        counts["unchanged"] += changes.listed - to_do - relabelled
        found = adoption.NOTHING
        if to_do and self.store.parts:
            found = adoption.find(changes, counting(self.on_progress, "comparing files with the store"))
        with PartWriter(self.store, self.id, gps=settings.gps) as writer:
            for image in found.replaced:
                writer.remove(image)
            for image in changes.removed():
                writer.remove(image)
                counts["removed"] += 1
            for done, _ in enumerate(adoption.relabel(changes, writer) if relabelled else (), start=1):
                counts["relabelled"] += 1
                self.on_progress("writing labels and splits", done, relabelled)
            adopted = 0
            for adopted, outcome in enumerate(adoption.adopt(found, writer), start=1):
                counts[outcome] += 1
                self.on_progress("taking over moved files", adopted)
            if to_do > adopted:
                if encoder is None:
                    self.on_progress("loading the model")
                    images, identity = to_do - adopted, self.store.encoder
                    encoder = _load(settings, "load_same_encoder", identity, images=images)
                    _begin(encoder)
                if on_start is not None:
                    on_start(encoder)
                self.on_progress("embedding", 0, to_do - adopted)
                done_images = _engine(settings.engine).embed_images(
                    changes.work(), encoder, writer, batch_size=settings.batch_size, on_note=self.on_note
                )
                for done, (outcome, image, error) in enumerate(done_images, start=1):
                    counts[outcome] += 1
                    if error is not None and not self.first_unreadable:
                        self.first_unreadable = f"{printable(image.path)}: {error}"
                    self.on_progress("embedding", done, to_do - adopted)
        totals.keep(self.store)
        self.on_progress("building the index")
        images = sum(pq.read_metadata(part).num_rows for part in self.store.parts)
        if 2 * self.store.encoder.dimension * images <= BUILD_NOW_BYTES:  # else it would read so much, and give up
            build_index(self.store, limit_bytes=BUILD_NOW_BYTES)

    def _compare(self, db: duckdb.DuckDBPyConnection) -> Changes:
        self.on_progress("looking for images")
        found = compare(
            db,
            self.store,
            self.scans,
            crops=self.settings.crops,
            on_progress=self.on_progress,
            on_note=self.on_note,
        )
        for one in self.scans:
            self.result.skipped.update(one.notes.skipped)
            self.result.unreadable_folders.update(one.notes.unreadable)
        return found

    def record(self) -> None:
        """Write what the run did to `runs/`."""
        values = {
            "run_id": self.id,
            "version": __version__,
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "seconds": self.result.seconds,
            "sources": [storable(scan.source) for scan in self.scans],
            "counts": {outcome: self.result.counts[outcome] for outcome in OUTCOMES},
            "skipped": dict(self.result.skipped),
            "unreadable_folders": {storable(k): v for k, v in self.result.unreadable_folders.items()},
            "notes": self.result.notes,
            "interrupted": self.result.interrupted,
        }
        write_json(self.store.runs / f"{self.id}.json", values)


def _open(
    root: Path, scans: Sequence[Scan], settings: EmbedSettings, on_progress: Progress
) -> tuple[Store, "Encoder | None"]:
    """The store, and the encoder of a new one; StoreError where the store is of another encoder."""
    if (root / "store.json").exists():
        store = open_store(root)
        moved = _check_encoder(store, settings)
        return (store if moved is None else create_store(root, moved)), None
    on_progress("loading the model")
    images = sum(scan.count() for scan in scans)
    options = {"weights": settings.weights, "precision": settings.precision}
    encoder = _load(settings, "load_encoder", settings.model, images=images, **options)
    if settings.precision == "auto" and settings.engine == "local":
        _try_bf16(encoder, scans, root)
    _begin(encoder)
    return create_store(root, encoder.identity), encoder


def _engine(name: str) -> "Engine":
    if name == "ray":
        from ood_audit.embedding import ray

        return ray
    from ood_audit.embedding import local

    return local


def _load(settings: EmbedSettings, name: str, *arguments: object, images: int, **options: object) -> "Encoder":
    """Load an encoder for so many images by an engine's `load_encoder` or `load_same_encoder`."""
    if settings.engine == "ray":
        from ood_audit.embedding import ray

        workers: ray.Workers = getattr(ray, name)(*arguments, device=settings.device, **options)
        return workers
    from ood_audit.embedding import local
    from ood_audit.encoders import loading

    return local.load(partial(getattr(loading, name), *arguments, **options), settings.device, images)


def _begin(encoder: "Encoder") -> None:
    """Let an encoder that takes time before its first image have it while there is something else to do."""
    from ood_audit.encoders.light import StarterEncoder

    if isinstance(encoder, StarterEncoder):
        encoder.begin()


def _check_encoder(store: Store, settings: EmbedSettings) -> EncoderIdentity | None:
    """Refuse (StoreError) an encoder that is not the store's. Where it is known by another name, that is returned."""
    mine = store.encoder
    if mine.is_imported:
        raise StoreError(
            f"the store {printable(str(store.root))} holds imported vectors; add more with `ood-audit import`, or "
            "embed into another store with `store=DIR`"
        )
    remedy = (
        f"the store {printable(str(store.root))} holds features of `model` {mine.model} `precision` {mine.precision}: "
        "leave these options out, or start another store with `store=DIR`"
    )
    if settings.precision not in ("auto", mine.precision):
        raise StoreError(f"`precision` {settings.precision} would mix features; {remedy}")
    model, weights = settings.model, settings.weights
    if model == "auto" and weights is None:
        return None
    if (model, weights) == (mine.model, mine.weights):
        return None
    if weights is None and model != "starter" and not model.startswith("local-dir:"):  # not worth a download
        raise StoreError(f"`model` {printable(model)} is another encoder; {remedy}")
    options: dict[str, object] = {"weights": weights, "precision": mine.precision}
    if settings.engine == "local":  # a GPU is for those who embed
        settings, options["texts_only"] = replace(settings, device="cpu"), True
    identity = _load(settings, "load_encoder", model, images=1, **options).identity
    if differences := mine.differences(identity):
        raise StoreError(f"`model` {printable(model)} is another encoder ({differences[0]}); {remedy}")
    return identity


def _try_bf16(encoder: "Encoder", scans: Sequence[Scan], root: Path) -> None:
    """Try it on some of the first images of each source; of those that can be read. What is known needs no trial."""
    from ood_audit.embedding import local, ray
    from ood_audit.images.decode import decode

    if isinstance(encoder, (local.Workers, ray.Workers)) or not encoder.may_use_bf16:
        return
    if encoder.bf16_is_known:
        encoder.use_bf16()
        return
    from ood_audit.encoders.clip import ClipEncoder

    pixels = []
    for one in scans:
        images = scan(one.source, ScanNotes(), exclude=store_in(one.source, root), images=one.images)
        for image in islice(images, _SAMPLE):
            found = decode(image.uri, encoder.prepare, at_least=encoder.decode_size).pixels
            if found is not None:
                pixels.append(found)
    if isinstance(encoder, ClipEncoder):
        encoder.try_bf16(pixels[:: max(1, len(pixels) // _SAMPLE)])
