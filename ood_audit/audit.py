"""One object for one audit: `open` gives an `Audit`, whose methods are the functions of the package on one store."""

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ood_audit.errors import UsageError
from ood_audit.findings.records import read as read_findings
from ood_audit.frames import Tabular
from ood_audit.progress import bars
from ood_audit.store import DEFAULT_STORE, Store, open_store, schema
from ood_audit.store.files import shown
from ood_audit.store.findings import COLUMNS, KINDS, Finding
from ood_audit.store.store import store_root
from ood_audit.text import printable

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

    from ood_audit.actions.datasets.write import ExportedDataset
    from ood_audit.actions.export import Exported
    from ood_audit.actions.quarantine import Result
    from ood_audit.actions.verdicts import Applied
    from ood_audit.classes.labelled import LabelledSource
    from ood_audit.embedding.run import EmbedResult
    from ood_audit.findings.comparison import Comparison
    from ood_audit.reports.run import Report
    from ood_audit.store.sources import Source
    from ood_audit.tuning.tune import TuneResult

StrPath = str | os.PathLike[str]


@dataclass(frozen=True, repr=False)
class Findings(Tabular):
    """What a report found, the most severe first.

    Attributes:
        rows: The findings.

    """

    rows: list[Finding]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.rows)

    def __repr__(self) -> str:
        kinds = [kind for kind in KINDS if any(row.kind == kind for row in self.rows)]
        counts = ", ".join(f"{kind}: {sum(row.kind == kind for row in self.rows)}" for kind in kinds)
        return f"Findings({counts})"

    def to_arrow(self) -> "pa.Table":
        """All findings as an Arrow table."""
        import pyarrow as pa

        columns = schema.arrow(COLUMNS)
        return pa.table(
            {name: [getattr(row, name) for row in self.rows] for name in columns.names},
            schema=columns,
        )

    def _shown_columns(self) -> tuple[str, ...]:
        return ("kind", "path", "severity", "evidence", "suggestion")


@dataclass(frozen=True)
class Status:
    """What a store holds.

    Attributes:
        images: How many readable images it has.
        unreadable: How many images could not be read.
        model: The encoder, as `--model` names it; None before the first `embed`.
        classes: How many classes the last list of classes has.
        scored: How many images have a score.
        labelled: How many labelled images are registered.
        reports: The names of the reports.

    """

    images: int
    unreadable: int
    model: str | None
    classes: int
    scored: int
    labelled: int
    reports: list[str]


class Audit:
    """An audit of one store of images; `ood_audit.open` makes one.

    Args:
        path: The store's folder, or `s3://BUCKET/FOLDER`. The first `embed` makes it.

    Example:
        >>> import ood_audit
        >>> audit = ood_audit.open("audit")
        >>> audit.embed("examples/images", device="cpu")
        EmbedResult(added=189, unreadable=1)
        >>> report = audit.report(classes="examples/classes.txt", top=3, auto=False)
        >>> len(report.rows), report.html.name
        (3, 'report.html')
        >>> audit.sql("SELECT count(*) AS images FROM images WHERE status = 'ok'").fetchall()
        [(189,)]

    """

    def __init__(self, path: StrPath = DEFAULT_STORE) -> None:
        self.path = os.fspath(path)

    def __repr__(self) -> str:
        if not self._exists():
            return f"Audit({self.path!r}, not embedded yet)"
        status = self.status
        return f"Audit({self.path!r}, images={status.images}, model={status.model!r})"

    @property
    def store(self) -> Store:
        """The store on disk.

        Raises:
            StoreError: There is none yet, or it is of another version.

        """
        return open_store(self.path)

    @property
    def status(self) -> Status:
        """What the store holds; all zero before the first `embed`.

        Example:
            >>> import ood_audit
            >>> ood_audit.open("nowhere").status.images
            0

        """
        from ood_audit.classes.labelled import registered
        from ood_audit.store.totals import scored, totals

        if not self._exists():
            return Status(0, 0, None, 0, 0, 0, [])
        store = self.store
        found = totals(store)
        return Status(
            images=sum(total.images for total in found),
            unreadable=sum(total.unreadable for total in found),
            model=store.encoder.model,
            classes=len(store.classes()),
            scored=scored(store),
            labelled=sum(own.images for own in registered(store)),
            reports=sorted(path.name for path in store.reports.glob("[!.]*")),
        )

    @property
    def sources(self) -> "list[Source]":
        """The folders, lists and archives that the images came from, and whether they are still there."""
        from ood_audit.store.sources import sources

        return sources(self.store)

    @property
    def labelled(self) -> "list[LabelledSource]":
        """The registered labelled images."""
        from ood_audit.classes.labelled import registered

        return registered(self.store)

    def embed(self, sources: StrPath | Sequence[StrPath], **options: Any) -> "EmbedResult":
        """Embed images and sync the store with their sources.

        Args:
            sources: Folders, archives, image files or lists of these; paths or URIs.
            **options: Fields of `ood_audit.EmbedSettings`, such as `model`, `device` and `batch_size`; and further
                arguments of `ood_audit.embed`, such as `splits` and `on_progress`.

        Raises:
            UsageError: A source does not exist, or an argument makes no sense.
            StoreError: The store is locked, can't be written, or is of another encoder.
            OodAuditError: A source holds no image, or none of the images could be read.

        """
        from ood_audit.embedding.run import embed

        with _reporting(options):
            return embed(sources, store=self.path, **options)

    def add_labelled(self, source: StrPath, *, device: str = "auto") -> "LabelledSource":
        """Register labelled images, which calibrate flags, show what the classes look like, and teach `tune`.

        Args:
            source: A folder with one folder of images for each class, or a CSV, JSON or Parquet file with the columns
                `path` (of an image in the store) and `label`.
            device: Where a folder's images are embedded: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.

        Raises:
            UsageError: There is no such source, or it can't be read.

        Example:
            >>> import ood_audit
            >>> audit = ood_audit.open("audit")
            >>> _ = audit.embed("examples/images", device="cpu")
            >>> added = audit.add_labelled("labelled.csv")
            >>> added.classes
            {'cup': 2, 'sunflower': 2}
            >>> audit.remove_labelled("labelled.csv").images
            4

        """
        from ood_audit.classes.labelled import add

        with bars() as on_progress:
            return add(self.store, source, device=device, on_progress=on_progress)

    def remove_labelled(self, source: StrPath) -> "LabelledSource":
        """Take registered labelled images out of the store; their files are left alone.

        Raises:
            UsageError: No such source is registered.

        """
        from ood_audit.classes.labelled import remove

        return remove(self.store, source)

    def tune(self, classes: StrPath | Sequence[str] | None = None, **options: Any) -> "TuneResult":
        """Tune prompts on the labelled images; the encoder stays as it is.

        Args:
            classes: A file with the classes, or their names; None for those last used.
            **options: Fields of `ood_audit.TuneSettings`, such as `method`, `shots` and `epochs`; and further arguments
                of `ood_audit.tune`, such as `folder` and `name`.

        Raises:
            UsageError: A setting makes no sense, or there are too few labelled images.

        """
        from ood_audit.tuning.settings import TuneSettings, settings_of
        from ood_audit.tuning.tune import best_method, tune

        given = {field.name: options.pop(field.name) for field in fields(TuneSettings) if field.name in options}
        given.setdefault("method", best_method(self.store))
        with _reporting(options):
            return tune(self.store, labels=_listed(classes), **{"settings": settings_of(**given), **options})

    def report(
        self,
        classes: StrPath | Sequence[str] | None = None,
        *,
        top: int = 100,
        name: str = "latest",
        **options: Any,
    ) -> "Report":
        """Score every image, rank the images and write a report.

        Args:
            classes: A file with the classes, or their names; None for those last used, else the names of the folders.
            top: How many of the most out-of-distribution images to list.
            name: The name of the report. An older report of that name is replaced.
            **options: Fields of `ood_audit.ScoreSettings`, such as `method` and `prompts`; fields of
                `ood_audit.FindingSettings`, such as `false_alarms`; `templates`, `device`, `note` and `on_progress`.

        Raises:
            UsageError: The classes or a setting make no sense.
            StoreError: There is no store, or another process is writing to it.
            OodAuditError: The store holds no readable image.

        Example:
            >>> import ood_audit
            >>> audit = ood_audit.open("audit")
            >>> _ = audit.embed("examples/images", device="cpu")
            >>> report = audit.report(["butterfly", "chair", "cup"], top=5, auto=False)
            >>> report
            Report('latest', images=189, flagged=...)
            >>> report.to_arrow().num_rows
            189

        """
        from ood_audit.findings.settings import FindingSettings
        from ood_audit.reports.run import report
        from ood_audit.scoring.settings import ScoreSettings, taken

        settings, find = taken(ScoreSettings, options), taken(FindingSettings, options)
        with _reporting(options):
            return report(
                self.store,
                labels=_listed(classes),
                top=top,
                name=name,
                **{"settings": settings, "find": find, **options},
            )

    def findings(self, kind: str | None = None, *, report: str | None = None) -> Findings:
        """What a report found.

        Args:
            kind: One kind of finding: `ood`, `covariate-shift`, `label`, `leak`, `exact-duplicate`, `near-duplicate`,
                `quality`, `text`, `shortcut` or `unreadable`; `duplicate` for both kinds of duplicates. None for all.
            report: The report's name; None for the last one.

        Raises:
            UsageError: There is no such kind.
            StoreError: There is no such report.

        Example:
            >>> import ood_audit
            >>> audit = ood_audit.open("audit")
            >>> _ = audit.embed("examples/images", device="cpu")
            >>> _ = audit.report("examples/classes.txt", auto=False)
            >>> [finding.path for finding in audit.findings(kind="unreadable")]
            ['chair/img_9999.jpg']

        """
        wanted = _kinds([kind]) if kind is not None else list(KINDS)
        return Findings([row for row in read_findings(self.store, report) if row.kind in wanted])

    def compare(self, reference: StrPath, other: StrPath, **options: Any) -> "Comparison":
        """Compare a set of images with a reference: drift, shares of classes, words, and images unlike the reference.

        Args:
            reference: The name of a split, a source, a folder in one, or another store of the same encoder.
            other: The images to compare with it, named in the same way.
            **options: Further arguments of `ood_audit.compare`, such as `labels` and `top`.

        Raises:
            UsageError: A name means no images, or fewer than 10, the two sets share images, or the encoders differ.
            StoreError: There is no store, or it can't be read.

        Example:
            >>> import ood_audit
            >>> audit = ood_audit.open("audit")
            >>> _ = audit.embed("examples/images", device="cpu")
            >>> found = audit.compare("cup", "sunflower")
            >>> found.drift, found.images
            (True, (18, 16))
            >>> sorted(row.name for row in found.of("class") if row.p_value < 0.05)
            ['cup', 'sunflower']

        """
        from ood_audit.reports.comparison import compare

        with _reporting(options):
            return compare(reference, other, self.store, **options)

    def sql(self, query: str) -> "duckdb.DuckDBPyRelation":
        """Query the views `images`, `scores`, `labels`, `report` and `findings` with one SELECT.

        Args:
            query: One SELECT statement; it can read the store and nothing else.

        Returns:
            A DuckDB relation, which is computed when it is asked for: `.df()`, `.pl()`, `.fetchall()`, `.show()`. It
            shows the store as it is now.

        Raises:
            UsageError: The statement is not a SELECT, or DuckDB refuses it.

        """
        from ood_audit.store.views import relation

        return relation(self.store, query)

    def quarantine(
        self,
        dest: StrPath,
        *,
        kinds: Collection[str],
        report: str | None = None,
        dry_run: bool = False,
    ) -> "Result":
        """Move the images with a finding to a folder, from which `restore` takes them back.

        Args:
            dest: The folder; it is made where there is none.
            kinds: The kinds of finding, see `findings`.
            report: The report's name; None for the last one.
            dry_run: Only say what would be moved.

        Raises:
            UsageError: `dest` lies where `embed` would find the images again, or there is no such kind.
            OodAuditError: The quarantine is in use, damaged or can't be written.

        """
        from ood_audit.actions.quarantine import quarantine

        with bars() as on_progress:
            return quarantine(
                dest, self.store, kinds=_kinds(kinds), report=report, dry_run=dry_run, on_progress=on_progress
            )

    def restore(self, dest: StrPath, *, dry_run: bool = False) -> "Result":
        """Move all images of a quarantine back to where they were.

        Args:
            dest: The folder that `quarantine` moved them to.
            dry_run: Only say what would be moved.

        Raises:
            OodAuditError: The quarantine is in use, damaged or can't be written.

        """
        from ood_audit.actions.quarantine import restore

        with bars() as on_progress:
            return restore(dest, dry_run=dry_run, on_progress=on_progress)

    def apply(
        self,
        decisions: StrPath,
        *,
        to: StrPath | None = None,
        labels: StrPath = "labels.csv",
        move: bool = False,
        dry_run: bool = False,
    ) -> "Applied":
        """Act on what was decided on the page of a report, and remember it; `undo` reverts it.

        Args:
            decisions: The file `decisions.csv` that the page saves.
            to: A folder for images that are to be removed, with a journal of all moves.
            labels: A CSV file with the columns `path` and `label`, which gets the new labels.
            move: Move images with a new label into the folder of that class instead.
            dry_run: Only say what would be done.

        Raises:
            UsageError: The decisions make no sense, or images are to be moved and there is no `to`.
            OodAuditError: The folder `to` is in use, damaged or can't be written.

        Example:
            >>> import pathlib
            >>> import ood_audit
            >>> audit = ood_audit.open("audit")
            >>> _ = audit.embed("examples/images", device="cpu")
            >>> ((path, content_hash),) = audit.sql("SELECT path, content_hash FROM images LIMIT 1").fetchall()
            >>> row = f"{path},{content_hash},ood,keep,,2026-01-01T00:00:00Z"
            >>> _ = pathlib.Path("decisions.csv").write_text(f"path,content_hash,kind,decision,label,when\\n{row}")
            >>> audit.apply("decisions.csv")
            Applied(kept=1)
            >>> audit.undo("decisions.csv")
            Applied(kept=1)

        """
        from ood_audit.actions.verdicts import apply

        with bars() as on_progress:
            return apply(
                decisions, self.store, to=to, labels=labels, move=move, dry_run=dry_run, on_progress=on_progress
            )

    def undo(self, decisions: StrPath, *, dry_run: bool = False) -> "Applied":
        """Revert what `apply` did with the same decisions, and forget them.

        Args:
            decisions: The file that was applied, unchanged.
            dry_run: Only say what would be done.

        Raises:
            UsageError: These decisions were not applied to this store.
            OodAuditError: The folder that images were moved to is in use, damaged or can't be written.

        """
        from ood_audit.actions.verdicts import undo

        with bars() as on_progress:
            return undo(decisions, self.store, dry_run=dry_run, on_progress=on_progress)

    def export(
        self,
        path: StrPath,
        *,
        kinds: Collection[str] = (),
        format: str = "paths",
        null: bool = False,
        report: str | None = None,
    ) -> "Exported":
        """Write the images with a finding to a file, or the images without one.

        Args:
            path: The file; an older one is replaced.
            kinds: The kinds of finding, see `findings`.
            format: `paths`; `csv`, with the evidence; `keep-list`, the images without a finding; or `split`,
                the splits of all images anew, so that they share nothing.
            null: End each path with a null byte instead of a line break.
            report: The report's name; None for the last one.

        Raises:
            UsageError: There is no such kind or format.
            OodAuditError: A path holds a line break and `null` is not set; nothing is written.

        Example:
            >>> import ood_audit
            >>> audit = ood_audit.open("audit")
            >>> _ = audit.embed("examples/images", device="cpu")
            >>> _ = audit.report("examples/classes.txt", auto=False)
            >>> audit.export("keep.txt", kinds=["unreadable"], format="keep-list").lines
            189

        """
        from ood_audit.actions.export import export
        from ood_audit.store.files import replacing

        with replacing(Path(path)) as temporary, temporary.open("wb") as out:
            return export(self.store, out=out, kinds=_kinds(kinds), format=format, null=null, report=report)

    def export_dataset(
        self,
        path: StrPath,
        *,
        format: str,
        kinds: Collection[str] = (),
        keep: bool = False,
        copy: bool = False,
        report: str | None = None,
    ) -> "ExportedDataset":
        """Write all images, those with a finding, or those without, as a dataset with labels, splits and boxes.

        Args:
            path: The file or the new folder to write.
            format: `coco`, `yolo`, `parquet`, `csv` or `atlas`, see `ood_audit.export_dataset`.
            kinds: The kinds of finding, see `findings`; without any, all images are written.
            keep: Write the images that are left without those of these kinds.
            copy: Copy the images into the folder of a `coco` or `yolo` dataset.
            report: The report's name; None for the last one.

        Raises:
            UsageError: There is no such kind or format, or it can't hold what was asked for.
            OodAuditError: Nothing is left to write, or an image can't be read any more.

        Example:
            >>> import ood_audit
            >>> audit = ood_audit.open("audit")
            >>> _ = audit.embed("examples/images", device="cpu")
            >>> audit.export_dataset("all.json", format="coco").images
            189

        """
        from ood_audit.actions.datasets.write import export_dataset

        with bars() as on_progress:
            return export_dataset(
                path,
                self.store,
                format=format,
                kinds=_kinds(kinds),
                keep=keep,
                copy=copy,
                report=report,
                on_progress=on_progress,
            )

    def _exists(self) -> bool:
        return (store_root(self.path) / "store.json").is_file()

    def _repr_html_(self) -> str:
        from html import escape

        status = self.status
        rows = "".join(
            f"<tr><th>{name}</th><td>{escape(printable(str(value)))}</td></tr>" for name, value in vars(status).items()
        )
        return f"<p>Audit of {escape(shown(store_root(self.path)))}</p><table>{rows}</table>"


def open(path: StrPath = DEFAULT_STORE) -> Audit:
    """Open an audit, or begin one.

    Args:
        path: The store's folder, or `s3://BUCKET/FOLDER`. Nothing is written before the first `Audit.embed`.

    Example:
        >>> import ood_audit
        >>> ood_audit.open("new")
        Audit('new', not embedded yet)

    """
    return Audit(path)


def _listed(classes: StrPath | Sequence[str] | None) -> str | Path | Sequence[str] | None:
    return Path(classes) if isinstance(classes, os.PathLike) else classes


def _kinds(kinds: Collection[str]) -> list[str]:
    """Kinds of finding, where `duplicate` stands for both kinds of duplicates."""
    if isinstance(kinds, str):
        kinds = [kinds]
    both = [kind for kind in KINDS if kind.endswith("-duplicate")]
    found = [one for kind in kinds for one in (both if kind == "duplicate" else [kind])]
    if strange := [kind for kind in found if kind not in KINDS]:
        raise UsageError(f"there is no kind of finding {printable(strange[0])!r}; choose from {', '.join(KINDS)}")
    return found


@contextmanager
def _reporting(options: dict[str, Any]) -> Iterator[None]:
    """Draw progress bars where the caller has no `on_progress` of their own."""
    with bars() as on_progress:
        options.setdefault("on_progress", on_progress)
        yield
