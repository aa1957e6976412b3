"""`compare`: how one set of images differs from another, as a result and as a page."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from itertools import chain
from pathlib import Path

from markupsafe import Markup

from ood_audit._version import __version__
from ood_audit.errors import UsageError
from ood_audit.findings import comparison
from ood_audit.findings.comparison import FDR, Comparison, Difference
from ood_audit.progress import Progress, silent
from ood_audit.reports.cards import Pictures
from ood_audit.reports.html import resource, template
from ood_audit.reports.thumbnails import MOST, thumbnails
from ood_audit.store import DEFAULT_STORE, Store, open_store
from ood_audit.store.files import replacing
from ood_audit.store.locks import computing

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class ComparisonPage:
    """The page of a comparison.

    Attributes:
        comparison: What was found.
        created: When, as ISO time.
        pictures: Thumbnails by URI, as JPEG; None where the file is gone.

    """

    comparison: Comparison
    created: str
    pictures: Mapping[str, bytes | None]


@dataclass(frozen=True)
class Shown:
    """A difference with the pictures that it shows: (data URL or None, what stands in its place, URI) each."""

    difference: Difference
    pictures: list[tuple[Markup | None, str, str]]


def compare(
    reference: StrPath,
    other: StrPath,
    store: StrPath | Store = DEFAULT_STORE,
    *,
    labels: str | Path | Sequence[str] | None = None,
    top: int = 20,
    seed: int = 0,
    device: str = "auto",
    note: Callable[[str], None] = lambda message: None,
    on_progress: Progress = silent,
) -> Comparison:
    """Compare a set of images with a reference: drift, shares of classes, words, and images unlike the reference.

    Of more than 10,000 images of a set a random sample is compared. The page is `comparison.html` in the store's
    folder; an older one is replaced.

    Args:
        reference: The reference: the name of a split, a source of the store, a folder in one, or another store of the
            same encoder.
        other: The images to compare with it, named in the same way.
        store: The store, or its folder.
        labels: A file with the classes, or their names; None for those last used with this store, else the names of the
            folders.
        top: How many of the images least like the reference to list.
        seed: Of the permutations and the sample.
        device: Where names are encoded: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        note: Called with a sentence for each choice that the caller did not make.
        on_progress: Called with the stages of the work, see `ood_audit.progress.Progress`.

    Raises:
        UsageError: A name means no images, or fewer than 10, the two sets share images, or the encoders differ.
        StoreError: There is no store, or it can't be read.

    """
    if not 1 <= top <= 1_000:
        raise UsageError(f"`top` {top}: choose 1 to 1,000")
    if not isinstance(store, Store):
        store = open_store(store)
    with computing(store.root):
        found = comparison.find(
            store,
            os.fspath(reference),
            os.fspath(other),
            labels=labels,
            top=top,
            seed=seed,
            device=device,
            note=note,
            on_progress=on_progress,
        )
        on_progress("writing the page")
        page = store.root / "comparison.html"
        with replacing(page) as temporary:
            temporary.write_text(render(_gathered(found)), encoding="utf-8")
    return replace(found, html=page)


def render(page: ComparisonPage) -> str:
    """The page as HTML, to be written as UTF-8."""
    pictures = Pictures(page.pictures)
    kinds = ("word", "measure", "class", "image")
    shown = {kind: [_shown(row, pictures) for row in _listed(page.comparison, kind)] for kind in kinds}
    return template("comparison.html.j2").render(
        page=page,
        found=page.comparison,
        shown=shown,
        kept=len(page.comparison.of("class")) - len(shown["class"]),
        style=Markup(resource("report.css")),  # noqa: S704
        version=__version__,
    )


def _gathered(found: Comparison) -> ComparisonPage:
    listed = chain(*(_listed(found, kind) for kind in ("word", "class", "image")))
    uris = list(dict.fromkeys(uri for row in listed for uri in (*row.examples, row.nearest) if uri))[:MOST]
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return ComparisonPage(found, created, dict(zip(uris, thumbnails(uris), strict=True)))


def _listed(found: Comparison, kind: str) -> list[Difference]:
    """The differences of a kind, without the classes whose share is not known to have changed."""
    return [row for row in found.of(kind) if kind != "class" or row.p_value <= FDR]


def _shown(row: Difference, pictures: Pictures) -> Shown:
    uris = [*row.examples, *([row.nearest] if row.nearest else [])]
    return Shown(row, [(pictures.url(uri), pictures.why_none(uri), uri) for uri in uris])
