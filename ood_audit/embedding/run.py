"""`embed`: bring a store into step with folders of images."""

import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from ood_audit._version import __version__
from ood_audit.embedding.settings import EmbedSettings
from ood_audit.encoders.identity import EncoderIdentity
from ood_audit.encoders.warn import log_once, warnings_to
from ood_audit.errors import OodAuditError, StoreError, UsageError
from ood_audit.images.access import is_gone
from ood_audit.images.found import image_id
from ood_audit.images.sources import ImageRef, ScanNotes, listing, resolve, scan
from ood_audit.images.splits import canonical
from ood_audit.images.splits import of_folders as splits_of
from ood_audit.images.uri import file_uri, image_and_box, is_remote
from ood_audit.progress import Progress, counting, silent
from ood_audit.store import DEFAULT_STORE, Store, annotations, create_store, open_store, writing
from ood_audit.store.files import shown, write_json
from ood_audit.store.store import store_root
from ood_audit.store.views import connect
from ood_audit.text import printable, storable
from ood_audit.values import RowValues

if TYPE_CHECKING:
    from ood_audit.embedding import local, ray
    from ood_audit.embedding.work import Engine, Work
    from ood_audit.encoders.clip import ClipEncoder

    Encoder = ClipEncoder | local.Workers | ray.Workers

OUTCOMES = ("added", "unchanged", "changed", "moved", "relabelled", "removed", "unreadable")
_SAMPLE = 32  # images on which a precision is tried
_MOST_COUNTED = 32_768  # images: more make no difference to where the encoder is loaded
_BOXES = 8192  # rows at a time
_SCAN_MEMORY = "1GB"  # beyond it, DuckDB keeps the listing on disk
_FOLDER = "left(f.path, -(length(split_part(f.path, '/', -1)) + 1))"  # of an image in the listing


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
    found: dict[str, str | None] = dict.fromkeys(_resolved(source, root) for source in sources)
    found |= _with_splits(splits, root)
    before = sorted(root.glob("images/part-*"))
    scans = [_begun(source, root, split, pictures) for source, split in found.items()]
    notes: list[str] = []

    def add_note(note: str) -> None:
        if note not in notes:
            notes.append(note)
            (on_note or log_once)(note)

    with writing(root, "images"), warnings_to(add_note):
        if sorted(root.glob("images/part-*")) != before:  # another run came between, and may know of newer files
            scans = [_begun(source, root, split, pictures) for source, split in found.items()]
        existing, encoder = _open(root, scans, settings, on_progress)
        result = EmbedResult(existing, notes=notes)
        run = _Run(result, scans, settings, on_progress, add_note)
        try:
            with connect(existing) as run.db:
                run.bring_into_step(encoder, on_start)
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


@dataclass
class _Scan:
    """A source that has been looked into as far as its first image, and goes on from there."""

    source: str
    split: str | None  # of all its images, as the user says
    images: str | None  # the folder of its images, as the user says
    tables: Iterator[pa.Table]
    notes: ScanNotes

    def count(self) -> int:
        """How many images there are, or, where they are more than `_MOST_COUNTED`, how many have been counted."""
        tables, count = [], 0
        while count < _MOST_COUNTED and (table := next(self.tables, None)) is not None:
            tables.append(table)
            count += len(table)
        self.tables = chain(tables, self.tables)
        return count


def _with_splits(
    splits: Mapping[str, str | os.PathLike[str]] | Iterable[tuple[str, str | os.PathLike[str]]], root: Path
) -> dict[str, str | None]:
    """Resolved sources with the splits that they hold; UsageError where one is said to hold two."""
    found: dict[str, str | None] = {}
    for name, source in splits.items() if isinstance(splits, Mapping) else splits:
        if not name.strip():
            raise UsageError("a split needs a name: `splits=NAME=SOURCE`")
        resolved, split = _resolved(source, root), canonical(storable(name.strip()))
        if found.setdefault(resolved, split) != split:
            raise UsageError(
                f"{printable(os.fspath(source))} is given as the split {printable(str(found[resolved]))} and as "
                f"{printable(split)}; name it once"
            )
    return found


def _begun(source: str, root: Path, split: str | None, images: str | None) -> _Scan:
    """Begin a scan; OodAuditError where the source holds no image."""
    notes = ScanNotes()
    tables = listing(source, notes, exclude=_store_in(source, root), images=images)
    first = next(tables, None)
    if first is None:
        raise OodAuditError(_nothing_found(source, notes) + _if_it_moved(source, root))
    return _Scan(source, split, images, chain([first], tables), notes)


def _resolved(source: str | os.PathLike[str], root: Path) -> str:
    """`resolve`; where nothing is there any more, the error says what to do about the images in the store."""
    try:
        return resolve(source)
    except UsageError as error:
        name = os.fspath(source)
        hint = "" if not name or is_remote(name) else _if_it_moved(os.path.realpath(name), root)
        raise UsageError(f"{error}{hint}") from error


def _if_it_moved(source: str, root: Path) -> str:
    """What to do about a source that has nothing in it, where the store has images of it; else nothing."""
    from ood_audit.store.sources import forgetting

    if not (root / "store.json").exists():
        return ""
    with connect(open_store(root)) as db:
        if not db.execute("SELECT 1 FROM images WHERE source = ? LIMIT 1", [storable(source)]).fetchall():
            return ""
    return f"; if it moved, embed its new place instead, or drop its images with `{forgetting(source)}`"


def _store_in(source: str, root: Path) -> str:
    """What names the store where the source is, not to be searched for images."""
    return shown(root) if is_remote(source) else os.path.realpath(root)


class _Run:
    """One run of `embed` on an open, locked store."""

    def __init__(
        self,
        result: EmbedResult,
        scans: list[_Scan],
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
        self.db: duckdb.DuckDBPyConnection

    def check_readable(self) -> None:
        """Raise an OodAuditError if there are images, and none of them could be read."""
        counts = self.result.counts
        read = sum(counts[outcome] for outcome in ("added", "unchanged", "changed", "moved", "relabelled"))
        if counts["unreadable"] and not read:
            raise OodAuditError(
                f"none of the {counts['unreadable']} images could be read; the first, {self.first_unreadable}"
            )

    def bring_into_step(self, encoder: "Encoder | None", on_start: Callable[["Encoder"], None] | None) -> None:
        from ood_audit.embedding import adoption
        from ood_audit.store.index import BUILD_NOW_BYTES, build_index
        from ood_audit.store.parts import PartWriter

        self.db.execute(f"SET memory_limit = '{_SCAN_MEMORY}'")
        self.db.execute("SET temp_directory = ?", [str(self.store.images / ".scan.tmp")])
        self.on_progress("looking for images")
        self._scan()
        counts, settings = self.result.counts, self.settings
        unchanged, to_do = self._count()
        counts["unchanged"] += unchanged
        compared, replaced = 0, list[ImageRef]()
        relabelled = self._number("SELECT count(*) FROM difference WHERE state = 'relabelled'")
        if to_do and self.store.parts:
            compared, replaced = adoption.find(self.db, counting(self.on_progress, "comparing files with the store"))
        with PartWriter(self.store, self.id, gps=settings.gps) as writer:
            for image in replaced:
                writer.remove(image)
            for image in self._removed():
                writer.remove(image)
                counts["removed"] += 1
            for done, _ in enumerate(adoption.relabel(self.db, writer) if relabelled else (), start=1):
                counts["relabelled"] += 1
                self.on_progress("writing labels and splits", done, relabelled)
            adopted = 0
            for adopted, outcome in enumerate(adoption.adopt(self.db, writer) if compared else (), start=1):
                counts[outcome] += 1
                self.on_progress("taking over moved files", adopted)
            if to_do > adopted:
                if encoder is None:
                    self.on_progress("loading the model")
                    images, identity = to_do - adopted, self.store.encoder
                    encoder = _load(settings, "load_same_encoder", identity, images=images)
                if on_start is not None:
                    on_start(encoder)
                self.on_progress("embedding", 0, to_do - adopted)
                done_images = _engine(settings.engine).embed_images(
                    self._work(), encoder, writer, batch_size=settings.batch_size, on_note=self.on_note
                )
                for done, (outcome, image, error) in enumerate(done_images, start=1):
                    counts[outcome] += 1
                    if error is not None and not self.first_unreadable:
                        self.first_unreadable = f"{printable(image.path)}: {error}"
                    self.on_progress("embedding", done, to_do - adopted)
        self.on_progress("building the index")
        images = sum(pq.read_metadata(part).num_rows for part in self.store.parts)
        if 2 * self.store.encoder.dimension * images <= BUILD_NOW_BYTES:  # else it would read so much, and give up
            build_index(self.store, limit_bytes=BUILD_NOW_BYTES)

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

    def _scan(self) -> None:
        """List the sources, and compare them with the store: the table `difference` has what is not unchanged.

        The table `kept` has the prefixes of the URIs in folders that can't be read now.
        """
        self.db.execute(
            "CREATE TABLE listing (source INTEGER, uri VARCHAR, path VARCHAR, size_bytes BIGINT, mtime_ns BIGINT, "
            "label VARCHAR, split VARCHAR, box STRUCT(id VARCHAR, x DOUBLE, y DOUBLE, width DOUBLE, height DOUBLE))"
        )
        self.db.execute("CREATE TABLE sources (id INTEGER, source VARCHAR, prefix VARCHAR)")
        listed = 0
        for number, one in enumerate(self.scans):
            # A folder also answers for what other sources found inside of it.
            uri = one.source.partition("?")[0] if is_remote(one.source) else file_uri(one.source)
            prefix = uri.rstrip("/") + "/"
            self.db.execute("INSERT INTO sources VALUES (?, ?, ?)", [number, storable(one.source), prefix])
            for batch in one.tables:
                self.db.register("batch", batch)
                self.db.execute(
                    "INSERT INTO listing SELECT ?, * REPLACE (coalesce(?, split) AS split) FROM batch",
                    [number, one.split],
                )
                self.db.unregister("batch")
                listed += len(batch)
                self.on_progress("looking for images", listed)
            self.result.skipped.update(one.notes.skipped)
            self.result.unreadable_folders.update(one.notes.unreadable)
        self.db.execute("CREATE TABLE kept (prefix VARCHAR)")
        for folder in self.result.unreadable_folders:
            uri = folder if is_remote(folder) else file_uri(folder)
            self.db.execute("INSERT INTO kept VALUES (?), (?)", [uri + "/", uri + "#"])
        self._find_splits()
        self._keep_annotations()
        if len(self.scans) > 1 or not os.path.isdir(self.scans[0].source):  # else no image is found twice
            self._merge_labels()
            self.db.execute(
                "CREATE OR REPLACE TABLE listing AS SELECT DISTINCT ON (uri) * FROM listing "
                "ORDER BY uri, coalesce(label, '') = '', label IS NULL, split IS NULL, source, path"
            )
        # What folders say never overrules the split that a store has. A label or a split that is given does.
        self.db.execute(
            f"""
            CREATE TABLE difference AS
            SELECT coalesce(f.uri, i.uri) AS uri, f.source, i.source AS old_source,
                   coalesce(f.path, i.path) AS path, coalesce(f.size_bytes, i.size_bytes) AS size_bytes,
                   coalesce(f.mtime_ns, i.mtime_ns) AS mtime_ns, i.error AS known_error,
                   f.label, coalesce(f.split, i.split, s.split) AS split,
                   CASE WHEN f.uri IS NULL THEN 'not found' WHEN i.uri IS NULL THEN 'new'
                        WHEN i.status = 'error' THEN 'retry'
                        WHEN f.size_bytes >= 0 AND (i.size_bytes <> f.size_bytes OR i.mtime_ns <> f.mtime_ns)
                        THEN 'changed'
                        WHEN f.size_bytes < 0 AND f.mtime_ns > 0 AND i.mtime_ns <> f.mtime_ns THEN 'changed'
                        WHEN f.label <> i.folder OR coalesce(f.split, i.split, s.split) IS DISTINCT FROM i.split
                        THEN 'relabelled'
                        ELSE 'unchanged' END AS state
            FROM listing AS f LEFT JOIN folder_splits AS s ON s.source = f.source AND s.folder = {_FOLDER}
            FULL JOIN images AS i ON i.uri = f.uri
            WHERE state <> 'unchanged'
            """
        )

    def _keep_annotations(self) -> None:
        """Write what datasets say to the store, and drop their boxes from the listing where they are not wanted."""
        boxes = "FROM listing AS f LEFT JOIN folder_splits AS s ON s.source = f.source AND s.folder = " + _FOLDER
        boxes = f"{boxes} WHERE f.source = ? AND f.box IS NOT NULL"
        for number, one in enumerate(self.scans):
            notes = one.notes
            for kind, (count, first) in notes.problems.items():
                name = printable(os.path.basename(one.source.rstrip(os.sep)))
                self.on_note(f"{name}: {kind}: {count:,}; the first: {printable(first)}")
            if not notes.format and not notes.classes:
                annotations.forget(self.store, one.source)
                continue
            sql = (
                "SELECT f.uri, f.box.id AS box_id, f.label, f.box.x AS x, f.box.y AS y, f.box.width AS width, "
                f"f.box.height AS height, coalesce(f.split, s.split) AS split {boxes} ORDER BY f.path, f.uri"
            )
            reader: pa.RecordBatchReader = self.db.cursor().sql(sql, params=[number]).to_arrow_reader(_BOXES)
            annotations.write_boxes(self.store, one.source, map(_boxes, reader))
            annotations.describe(self.store, one.source, notes.format, notes.classes, notes.problems)
        if self.settings.crops == "on" and not self._number("SELECT count(*) FROM listing WHERE box IS NOT NULL"):
            raise UsageError("`crops=on` needs a dataset with boxes, such as a COCO or YOLO file; leave it out")
        if self.settings.crops == "off":
            self.db.execute("DELETE FROM listing WHERE box IS NOT NULL")

    def _merge_labels(self) -> None:
        """Take the labels of images that a source labels in several ways away, and say so."""
        several = (
            "FROM listing WHERE label <> '' GROUP BY source, uri HAVING count(DISTINCT label) > 1"  # of one source
        )
        rows = self.db.execute(f"SELECT count(*), min(path) FROM (SELECT uri, min(path) AS path {several})").fetchall()
        count, first = rows[0]
        if count:
            self.on_note(f"images with several labels, which have none: {count:,}; the first: {printable(first)}")
            self.db.execute(f"UPDATE listing SET label = '' WHERE (source, uri) IN (SELECT source, uri {several})")

    def _find_splits(self) -> None:
        """Make the table `folder_splits`: the splits of the folders of each source that say one."""
        self.db.execute("CREATE TABLE folder_splits (source INTEGER, folder VARCHAR, split VARCHAR)")
        for number, one in enumerate(self.scans):
            sql = f"SELECT DISTINCT {_FOLDER} FROM listing AS f WHERE source = ? AND split IS NULL"
            folders = [folder for (folder,) in self.db.execute(sql, [number]).fetchall()]
            found = splits_of(folders, storable(os.path.basename(one.source.partition("?")[0].rstrip("/"))))
            if found:
                table = pa.table({"source": [number] * len(found), "folder": [*found], "split": [*found.values()]})
                self.db.register("found", table)
                self.db.execute("INSERT INTO folder_splits FROM found")
                self.db.unregister("found")

    def _count(self) -> tuple[int, int]:
        """How many images are unchanged, and how many are to be embedded."""
        found = self._number("SELECT count(*) FROM listing")
        known = self._number("SELECT count(*) FROM difference WHERE state = 'relabelled'")
        to_do = self._number("SELECT count(*) FROM difference WHERE state NOT IN ('not found', 'relabelled')")
        return found - to_do - known, to_do

    def _number(self, sql: str) -> int:
        row = self.db.execute(sql).fetchone()
        return int(row[0]) if row else 0

    def _work(self) -> Iterator["Work"]:
        from ood_audit.embedding.work import Work

        sql = (
            "SELECT d.uri, s.source, d.path, d.size_bytes, d.mtime_ns, d.label, d.split, d.state, d.known_error "
            "FROM difference AS d JOIN sources AS s ON d.source = s.id WHERE d.state <> 'relabelled' "
            "ORDER BY s.source, d.path, d.uri"
        )
        for *image, state, known_error in _stream(self.db, sql):
            yield Work(ImageRef(*image), state == "new", known_error)

    def _removed(self) -> Iterator[ImageRef]:
        """Images of the sources that are no longer there. Those in folders that can't be read now are kept."""
        sql = """
            SELECT d.uri, d.old_source, d.path, d.size_bytes, d.mtime_ns, d.old_source IN (SELECT source FROM sources)
            FROM difference AS d
            WHERE d.state = 'not found'
              AND EXISTS (FROM sources AS s WHERE s.source = d.old_source OR starts_with(d.uri, s.prefix))
              AND NOT EXISTS (FROM kept AS k WHERE starts_with(d.uri, k.prefix))
            ORDER BY d.uri
        """
        for *row, is_own in _stream(self.db, sql):
            image = ImageRef(*row)
            # What another source named (a hidden folder, a file of any name) this one passes over: it may be there.
            if is_own or is_gone(image.uri):
                yield image


def _boxes(batch: pa.RecordBatch) -> pa.Table:
    """Boxes with the ids of their images, with the columns of `schema.ANNOTATIONS`."""
    images = [image_id(image_and_box(uri)[0]) for uri in batch["uri"].to_pylist()]
    return pa.Table.from_batches([batch]).append_column("image_id", pa.array(images, pa.string()))


def _stream(db: duckdb.DuckDBPyConnection, sql: str) -> Iterator[RowValues]:
    cursor = db.cursor()  # of its own, so that other statements don't end it
    cursor.execute(sql)
    while rows := cursor.fetchmany(1024):
        yield from rows


def _open(
    root: Path, scans: Sequence[_Scan], settings: EmbedSettings, on_progress: Progress
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
    from ood_audit.encoders import clip

    return local.load(partial(getattr(clip, name), *arguments, **options), settings.device, images)


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


def _try_bf16(encoder: "Encoder", scans: Sequence[_Scan], root: Path) -> None:
    """Try it on some of the first images of each source; of those that can be read."""
    from ood_audit.embedding import local, ray
    from ood_audit.images.decode import decode

    if isinstance(encoder, (local.Workers, ray.Workers)) or not encoder.may_use_bf16:
        return
    pixels = []
    for one in scans:
        images = scan(one.source, ScanNotes(), exclude=_store_in(one.source, root), images=one.images)
        for image in islice(images, _SAMPLE):
            found = decode(image.uri, encoder.prepare, at_least=encoder.decode_size).pixels
            if found is not None:
                pixels.append(found)
    encoder.try_bf16(pixels[:: max(1, len(pixels) // _SAMPLE)])


def _nothing_found(source: str, notes: ScanNotes) -> str:
    where = printable(source)
    if notes.unreadable:
        return f"cannot read {where}: {next(iter(notes.unreadable.values())).lower()}"
    passed = ", ".join(f"{n} {printable(kind)}" for kind, n in notes.skipped.most_common(5))
    return f"no images in {where}" + (f" (passed over: {passed})" if passed else "") + "; the store is left as it was"
