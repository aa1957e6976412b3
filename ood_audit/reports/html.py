"""The report as one HTML file: opens from disk, asks nothing of the network, readable without JavaScript.

This module renders what it is given, and knows no store. What a card shows is in the document, so that it is there
without JavaScript; what only the dialog and the map show is in a block of JSON.
"""

import base64
import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup, escape

from ood_audit._version import __version__
from ood_audit.reports import cards, charts
from ood_audit.reports.charts import number
from ood_audit.text import printable

Row = dict[str, Any]


@dataclass(frozen=True)
class Summary:
    """The figures at the top; None is not known, and not shown.

    Attributes:
        flagged: images flagged as OOD, of all that were scored.
        semantic: how many of these show an unknown class.
        covariate: how many of all that were scored show a known class in another style.
        flagged_covariate: how many of these are flagged.
        false_alarms: how many of those flagged are expected to be in distribution.
        label_issues: by default, counted in `Page.findings`.
        duplicate_clusters: by default, counted in `Page.duplicates`.
        superfluous_copies: likewise.

    """

    flagged: int | None = None
    semantic: int | None = None
    covariate: int | None = None
    flagged_covariate: int | None = None
    false_alarms: float | None = None
    label_issues: int | None = None
    duplicate_clusters: int | None = None
    superfluous_copies: int | None = None


@dataclass(frozen=True)
class Page:
    """What the report shows.

    Attributes:
        title: the name of the report.
        created: ISO time.
        facts: (term, value), shown in the header.
        rows: the listed images, most OOD first, of which `cards.LIMIT` are shown: the first of the ranking, then others
            with a finding. Each: rank, path, folder, uri (`file:///…`),
            ood_score, delta_energy, energy, max_cosine, label, label_2 (or None), margin (or None), width, height, and
            thumbnail: WebP bytes, or None when the file is gone. If known also: image_id, given_label, flagged (bool),
            p_value, shift (in-distribution, covariate or semantic), kind (as of `map_points`), cluster (what its group
            of OOD images looks like), neighbours (numbers of rows, from 0, or {image_id, path, thumbnail}; the nearest
            first), top_classes ((label, similarity), the best first, which is `label`), measure (what
            a similarity is; a cosine by default), and xy (place on the map,
            0 … 1).
        histogram: (low, high, count) of `ood_score`, over all images.
        cut: `ood_score` of the last image that is listed for its rank.
        doubt: a sentence where the encoder seems not to know the classes, shown first.
        listed: how many images are listed in all; by default as many as there are rows.
        scored: the number of all images that have a score.
        unreadable: (path, error), the first of them.
        unreadable_count: how many there are in all.
        summary: figures that can't be counted here.
        findings: as `ood_audit.store.findings.Issue`, the worst first: image_id, path, kind, severity, evidence,
            suggestion; those of kind `label` also with uri, given_label and thumbnail, if known. None: not looked for.
        duplicates: clusters, each a list of copies: path, keep (bool), kind (exact or near), width, height,
            size_bytes, and if known uri, thumbnail and copies (how many the cluster has, if not all are given). None:
            not looked for.
        map_points: (x, y, kind, row) of a sample of the images: x and y 0 … 1, kind in-distribution, flagged or that of
            another finding, and the number of its row from 0, or -1. Rows with xy are added to it.
        next_steps: (sentence, command).

    """

    title: str
    created: str
    facts: list[tuple[str, str]]
    rows: list[Row]
    histogram: list[tuple[float, float, int]]
    cut: float | None
    scored: int
    unreadable: list[tuple[str, str]]
    unreadable_count: int
    summary: Summary = field(default_factory=Summary)
    findings: list[Row] | None = None
    duplicates: list[list[Row]] | None = None
    map_points: list[tuple[float, float, str, int]] = field(default_factory=list)
    next_steps: list[tuple[str, str]] = field(default_factory=list)
    listed: int | None = None
    doubt: str = ""


def render(page: Page) -> str:
    """The page as HTML, to be written as UTF-8; with thumbnails by `thumbnails.thumbnails`, below 25 MB.

    Names come from files and are hostile: everything that is shown is escaped, on one line, with its control and
    bidirectional characters made visible; only `data-path`, which is what gets copied, holds the exact path.
    """
    pictures = cards.Pictures()
    listed = page.rows[: cards.LIMIT]
    evidence = cards.evidence_by_image(page.findings or [])
    labels = [finding for finding in page.findings or [] if finding["kind"] == "label"]
    by_image = {cards.key(row): row for row in reversed(page.rows)}
    places = {cards.key(row): i for i, row in reversed(list(enumerate(listed)))}
    ranked = sum(row["rank"] == i for i, row in enumerate(page.rows, start=1))  # from the first on, with no gap

    rows = [cards.row_card(row, i, evidence, pictures) for i, row in enumerate(listed)]
    mislabelled = [
        cards.label_card(finding, len(rows) + i, by_image.get(cards.key(finding), {}), pictures)
        for i, finding in enumerate(labels[: cards.LIMIT])
    ]
    clusters = cards.clusters(page.duplicates or [], len(rows) + len(mislabelled), pictures)
    for card in rows:  # after the pictures of all cards, which come first where there is not room for all
        near = card["row"].get("neighbours") or []
        card["record"]["near"] = [cards.neighbour(one, page.rows, places, pictures) for one in near]
    copies = [card for cluster in clusters for card in cluster["cards"]]
    _number_images([*rows, *mislabelled, *copies])
    records = [card["record"] for card in [*rows, *mislabelled, *copies]]
    points = charts.points(page.map_points, listed)
    data = {
        "records": [{name: value for name, value in record.items() if value} for record in records],
        "pictures": pictures.extra,
        "kinds": charts.MAP_KINDS,
        "points": points,
    }
    return _template().render(
        page=page,
        summary=_figures(page, labels),
        rows=rows,
        classes=_numbered(rows),
        shifts=_counted(listed, "shift", cards.SHIFTS),
        flagged=sum(bool(row.get("flagged")) for row in listed),
        ranked=ranked,
        listed=len(page.rows) if page.listed is None else page.listed,
        knows_flagged=any(row.get("flagged") is not None for row in listed),
        groups=_numbered(rows, "group"),
        labels=mislabelled,
        label_count=len(labels),
        label_classes=_numbered(mislabelled),
        clusters=clusters,
        chart=charts.histogram(page.histogram, page.cut) if page.histogram else None,
        map=charts.scatter(points) if points else None,
        left_out=pictures.left_out,
        data=_json(data),
        style=Markup(_resource("report.css")),  # noqa: S704
        script=Markup(_resource("report.js")),  # noqa: S704
        version=__version__,
    )


@cache
def _template() -> Template:
    # Every value that the template prints passes `finalize`; what `exact` marks as safe is left as it is.
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    environment.filters |= {"number": number, "exact": _exact, "sha256": _sha256}
    return environment.from_string(_resource("report.html.j2"))


def _resource(name: str) -> str:
    return files("ood_audit.reports").joinpath("templates").joinpath(name).read_text(encoding="utf-8")


def _exact(text: str) -> Markup:
    """For attributes: HTML parsers, and writers of text files, change line ends that are not escaped."""
    return Markup(str(escape(text)).replace("\r", "&#13;").replace("\n", "&#10;"))  # noqa: S704


def _json(value: Any) -> Markup:
    """JSON for inside of a script element: ASCII, without the characters that could end it or begin a comment."""
    text = json.dumps(value, separators=(",", ":"))
    return Markup(text.translate({ord(c): f"\\u{ord(c):04x}" for c in "<>&"}))  # noqa: S704


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _number_images(shown: list[dict[str, Any]]) -> None:
    """Give each card the number of its image, which is the same in every list; a path may be that of two images."""
    numbers: dict[str, int] = {}
    for card in shown:
        card["image"] = numbers.setdefault(card["key"], len(numbers))


def _numbered(shown: list[dict[str, Any]], name: str = "class") -> list[tuple[int, str, int]]:
    """(number, value, count) of the values of the cards, the most frequent first; the cards get the number.

    Numbers, since values that differ only invisibly look the same in an attribute.
    """
    counts = Counter(str(card[name]) for card in shown if card[name] is not None)
    order = {value: i for i, value in enumerate(sorted(counts, key=lambda value: (value.casefold(), value)))}
    for card in shown:
        card[f"{name}_number"] = None if card[name] is None else order[str(card[name])]
    return [(order[value], value, count) for value, count in counts.most_common()]


def _counted(rows: list[Row], name: str, names: dict[str, str]) -> list[tuple[str, str, int]]:
    counts = Counter(row.get(name) for row in rows)
    return [(value, text, counts[value]) for value, text in names.items() if counts[value]]


def _figures(page: Page, labels: list[Row]) -> dict[str, Any]:
    """The figures of the page, each in one place: tiles, tabs and texts all have them from here."""
    given = page.summary
    clusters, extra, issues = given.duplicate_clusters, given.superfluous_copies, given.label_issues
    if clusters is None and page.duplicates is not None:
        clusters = len(page.duplicates)
    if extra is None and page.duplicates is not None:
        extra = sum(not copy["keep"] for cluster in page.duplicates for copy in cluster)
    if issues is None and page.findings is not None:
        issues = len(labels)
    return {
        "found": page.scored + page.unreadable_count,
        "flagged": given.flagged,
        "semantic": given.semantic,
        "covariate": given.covariate,
        "flagged_covariate": given.flagged_covariate,
        "false_alarms": None if given.false_alarms is None else f"{given.false_alarms:,.1f}",
        "label_issues": issues,
        "clusters": clusters,
        "extra": extra,
    }
