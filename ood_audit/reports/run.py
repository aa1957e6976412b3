"""`report`: score, rank, and write the report in all its formats."""

import gc
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from duckdb import DuckDBPyConnection

from ood_audit._version import __version__
from ood_audit.actions import verdicts
from ood_audit.classes import prompts as tuned
from ood_audit.classes import texts
from ood_audit.classes.vocabulary import cached_features
from ood_audit.encoders.cpu import share_freed_memory
from ood_audit.errors import StoreError, UsageError
from ood_audit.findings import copies, leaks, naming, overlays, quality, records, shortcuts, written
from ood_audit.findings import decide as decisions
from ood_audit.findings.decide import Decisions
from ood_audit.findings.settings import TURNED_MOST, FindingSettings
from ood_audit.findings.shortcuts import Shortcut
from ood_audit.findings.written import Misnamed
from ood_audit.frames import Tabular
from ood_audit.images import ocr
from ood_audit.progress import Progress, counting, silent
from ood_audit.reports import content, paging, ranking, writers
from ood_audit.reports.html import render
from ood_audit.reports.model import DEFAULT_NAME, Page, Section
from ood_audit.reports.neighbours import Compared
from ood_audit.reports.thumbnails import thumbnails
from ood_audit.scoring.run import Scores, prototypes_of, score
from ood_audit.scoring.settings import ScoreSettings
from ood_audit.store import DEFAULT_STORE, Store, findings, open_store, writing
from ood_audit.store.files import replacing
from ood_audit.store.locks import COMMIT_SECONDS, computing
from ood_audit.store.views import connect, limit_memory
from ood_audit.text import printable
from ood_audit.values import JsonObject, Row

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, repr=False)
class Report(Tabular):
    """A written report.

    `to_arrow`, `to_pandas` and `to_polars` have the rows of all images, as long as the report is not replaced.

    Attributes:
        folder: Where it is.
        rows: The top N images, with the columns of the view `report`.
        scores: The scores that it was made from.
        decisions: What was concluded, in figures.
        sections: What was found, by kind, with the number of images in each group, but without the findings themselves.
        unreadable: How many files could not be read.

    """

    folder: Path
    rows: list[Row]
    scores: Scores
    decisions: Decisions
    sections: list[Section]
    unreadable: int

    @property
    def html(self) -> Path:
        """The page to open; a long report goes on in `report-2.html` and so on, beside it."""
        return self.folder / "report.html"

    @property
    def open_flags(self) -> int:
        """How many images are flagged and not decided about; see `ood_audit.apply`."""
        return sum(section.count for section in self.sections if section.kind == "ood")

    def __repr__(self) -> str:
        flagged = self.decisions.flags["flagged"] if self.decisions.flags else None
        return f"Report({self.folder.name!r}, images={self.scores.images}, flagged={flagged})"

    def to_arrow(self) -> "pa.Table":
        """The rows of all images as an Arrow table, the most out-of-distribution first."""
        import pyarrow.parquet as pq

        return pq.read_table(self.folder / "report.parquet")

    def _shown_columns(self) -> tuple[str, ...]:
        return ("rank", "path", "label", "ood_score", "p_value", "shift")


def report(
    store: str | os.PathLike[str] | Store = DEFAULT_STORE,
    *,
    top: int = 100,
    name: str = DEFAULT_NAME,
    settings: ScoreSettings | None = None,
    find: FindingSettings | None = None,
    labels: str | Path | Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    device: str = "auto",
    note: Callable[[str], None] = lambda message: None,
    on_progress: Progress = silent,
) -> Report:
    """Score every image, rank the images, and write `reports/NAME/`.

    That folder then holds report.parquet (all images), report.csv and report.json (the top N), report.html (one page
    that opens from disk) and meta.json (how it was made). An older report of the name is replaced as a whole.

    Args:
        store: The store, or its folder.
        top: How many of the most out-of-distribution images to list. The page also shows everything that was found, up
            to 10,000 of each kind; what is beyond 5,000 pictures follows on further pages.
        name: The name of the report.
        settings: How to score, see `ood_audit.score`.
        find: Which images to flag, and which duplicates to look for.
        labels: A file with the classes, or their names; None for those last used with this store, else the names of the
            folders.
        templates: Prompts with `{}` for the class name, which are averaged; None for `a photo of a {}.`.
        device: Where to compute: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        note: Called with a sentence for each choice that the caller did not make.
        on_progress: Called with the stages of the work, see `ood_audit.progress.Progress`.

    Raises:
        UsageError: The vocabulary or a setting makes no sense.
        StoreError: There is no store, or another process is writing to it.
        OodAuditError: The store holds no readable image.

    """
    if not 1 <= top < 2**31:
        raise UsageError(f"`top` {top}: choose 1 or more, below 2,147,483,648")
    if not re.fullmatch(r"[\w-][\w.-]{0,60}", name):
        raise UsageError(f"`name` {printable(name)}: use at most 61 letters, digits, '-', '_' and '.'")
    if not isinstance(store, Store):
        store = open_store(store)
    find = find or FindingSettings()
    reader = ocr.TextReader() if find.read_text else None
    share_freed_memory()
    with computing(store.root), _no_collection():
        generation = store.generation
        scores = score(
            store,
            settings=settings,
            labels=labels,
            templates=templates,
            device=device,
            note=note,
            on_progress=on_progress,
        )
        on_pairs = counting(on_progress, "looking for duplicates")
        duplicates = copies.current(store, find.near_duplicates, on_pairs, device=device, on_note=note)
        run = _Run(store, scores, name, top, find, *duplicates, generation, device, on_progress, reader)
        with ExitStack() as lock:
            with replacing(store.reports / name) as folder:
                folder.mkdir()
                made = run.write(folder)
                lock.enter_context(writing(store.root, "scores", wait=COMMIT_SECONDS))
            store.set_current(**run.current, report=name, decided=scores.path.stem)
    return made


@dataclass(frozen=True)
class _Run:
    """A report in the making: what it is made from."""

    store: Store
    scores: Scores
    name: str
    top: int
    find: FindingSettings
    duplicates: Path
    counts: dict[str, int]
    generation: int
    device: str
    on_progress: Progress
    read_text: written.Read | None

    @property
    def current(self) -> dict[str, str]:
        """This report's own scores: another report, of other classes, may be made at the same time."""
        return {"vocabulary": self.scores.vocabulary.id, "scores": self.scores.path.stem}

    def write(self, folder: Path) -> Report:
        """Write the report's files."""
        import pyarrow.parquet as pq

        parts, ranked = self.store.parts, folder / "report.parquet"
        with self._connected(parts) as db:
            table, decided = self._decide(db)
            self.on_progress("looking for shortcuts")
            compared = _compared(self.scores, self.device)
            shown, misnamed = self._shortcuts(db, compared, decided)
            decisions.save(table, folder)
            ranking.write_all(db, table, ranked)
        with self._connected(parts, ranked) as db:
            passed = _passed(self.store, db)
            self.on_progress("looking for leaks")
            leaked = leaks.find(db, self.store, self.duplicates)
            pq.write_table(leaked.table(), folder / leaks.FILE, compression="zstd")
            decided.notes.extend([*leaked.about(), *_about_quality(db)])
            self.on_progress("writing the report")
            asked = bool(self.find.near_duplicates)
            made = decisions.findings(
                db, decided, self.duplicates, leaked, shown, misnamed, self.name, look_alikes=asked
            )
            found = verdicts.unsettled(made, passed)
            records.write(folder / findings.FILE, found, generation=self.generation)
            if passed:
                decided.notes.append(f"decided before, and not listed again: {len(passed)} findings")
            rows = ranking.top(db, self.top)
            meta = _meta(self.store, self.scores, decided, len(rows), ranking.counts(db))
            writers.write_csv(folder / "report.csv", rows)
            writers.write_json(folder / "report.json", rows)
            writers.write_json(folder / "meta.json", meta)
            belongs = [image_id for image_id, question in passed if question == verdicts.question("unusual")]
            listed = content.Found(db, folder / findings.FILE, self.top, belongs, shown)
            whole = content.gather(self.store, listed, self.name, meta, self.duplicates, compared, decided.notes)
        _write_pages(whole, folder)
        place = self.store.reports / self.name
        return Report(place, rows, self.scores, decided, content.summarised(whole), meta["unreadable"])

    def _decide(self, db: DuckDBPyConnection) -> tuple["pa.Table", Decisions]:
        """Decide about each image, and name what is flagged."""
        self.on_progress("deciding what to flag")
        recipe = decisions.read_recipe(self.scores.path)
        table, decided = decisions.decide(db, recipe, self.counts, self.find)
        self.on_progress("naming what is flagged")
        table, notes = naming.group(db, table, self.store, self.scores.images, self.top)
        if not self.counts["near"]:
            notes.append("duplicates: only exact ones were looked for; add --near-duplicates for near ones")
        elif self.scores.images > TURNED_MOST:
            notes.append(
                f"duplicates: of more than {TURNED_MOST:,} images, those that were turned or mirrored are found only "
                "where their features are near each other"
            )
        return table, replace(decided, notes=[*decided.notes, *notes])

    def _shortcuts(
        self, db: DuckDBPyConnection, compared: Compared, decided: Decisions
    ) -> tuple[list[Shortcut], list[Misnamed]]:
        """The shortcuts, each with a note, and images whose text names another class.

        Where the scores were there, the model is not loaded.
        """
        columns = ", ".join(("image_id", "uri", "size_bytes", "width", "height", "split", *shortcuts.MEASURES))
        images = db.sql(
            f"SELECT * FROM (SELECT image_id, given_label FROM scores) JOIN (SELECT {columns} FROM images) "
            "USING (image_id)"
        ).to_arrow_table()
        encoder = None if self.scores.reused else texts.encoder_of(self.store, self.device)
        found = shortcuts.find(self.store, images, self.scores.vocabulary, compared.text, encoder, decided.notes.append)
        misnamed: list[Misnamed] = []
        if self.read_text:
            on_read = counting(self.on_progress, "reading text in pictures")
            text = written.find(images, self.scores.vocabulary, self.read_text, on_read)
            decided.notes.append(text.about())
            found, misnamed = [*text.shortcuts, *found], text.misnamed
        told = {one.group for one in found if not one.is_split}
        found += [one for one in overlays.find(images) if one.group not in told]
        decided.notes.extend(f"shortcut: {one.evidence}" for one in found)
        return found, misnamed

    @contextmanager
    def _connected(self, parts: list[Path], ranked: Path | None = None) -> Iterator[DuckDBPyConnection]:
        """A connection whose views show these scores; StoreError where others have replaced them."""
        try:
            with connect(self.store, parts, current=self.current, ranked=ranked) as db:
                limit_memory(db, self.store)
                yield db
        except (OSError, StoreError) as error:
            if self.scores.path.exists():
                raise
            raise StoreError(
                "another process added and scored images in the meantime; run the command again"
            ) from error


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without Python's search for cyclic garbage: there is none, and it takes a second and a half of 100,000 images."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _write_pages(whole: Page, folder: Path) -> None:
    """Write each page of a report with its pictures."""
    for page in paging.split(whole, paging.LENGTH):
        uris = paging.wanted(page)
        shown = replace(page, pictures=dict(zip(uris, thumbnails(uris), strict=True)))
        (folder / paging.file_name(page.number)).write_text(render(shown), encoding="utf-8")


def _passed(store: Store, db: DuckDBPyConnection) -> set[verdicts.Key]:
    """The images about which a person has decided, other than to remove them, and the question that is settled."""
    by_hash: dict[str, list[str]] = {}
    for content_hash, question in verdicts.settled(store):
        by_hash.setdefault(content_hash, []).append(question)
    rows = db.execute(
        "SELECT image_id, content_hash FROM images WHERE content_hash IN (SELECT unnest($hashes::VARCHAR[]))",
        {"hashes": [*by_hash]},
    )
    return {(image_id, question) for image_id, content_hash in rows.fetchall() for question in by_hash[content_hash]}


def _about_quality(db: DuckDBPyConnection) -> list[str]:
    known, images = quality.known(db)
    if known == images:
        return []
    return [
        f"quality is known for {known:,} of {images:,} images, and so are turned and mirrored duplicates; the others "
        "were embedded by an older version, or imported: embed them into a new store"
    ]


def _compared(scores: Scores, device: str) -> Compared:
    """What the classes were compared by; in the store since they were scored."""
    encoder = texts.encoder_of(scores.store, device)
    found = tuned.choose(scores.store, scores.vocabulary, scores.prompts, lambda message: None)
    text = found.class_features if found else cached_features(scores.store, scores.vocabulary, encoder)
    return Compared(text, prototypes_of(scores), scores.parameters["prototypes"])


def _meta(store: Store, scores: Scores, decided: Decisions, top: int, counts: dict[str, int]) -> JsonObject:
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "version": __version__,
        "method": scores.method,
        "parameters": scores.parameters,
        "prompts": scores.prompts,
        "doubt": scores.doubt,
        "forecast": scores.forecast,
        "references": scores.references,
        "flags": decided.flags,
        "unflagged": decided.unflagged,
        "shift": decided.shift,
        "labels": decided.labels,
        "duplicates": decided.duplicates,
        "classes": scores.vocabulary.names,
        "templates": scores.vocabulary.templates,
        "model": store.encoder.model,
        "top": top,
        **counts,
    }
