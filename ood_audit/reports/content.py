"""What a report shows, gathered from the store and the findings; `paging` splits it, and `html` renders each page."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import get_args

from duckdb import DuckDBPyConnection

from ood_audit.findings.shortcuts import Shortcut
from ood_audit.reports import ranking
from ood_audit.reports.model import DEFAULT_NAME, Finding, Group, Image, Kind, Page, Point, Scored, Section
from ood_audit.reports.neighbours import Compared, Listed, Surroundings, look_around
from ood_audit.reports.thumbnails import sprites
from ood_audit.scoring.settings import described
from ood_audit.store import Store
from ood_audit.values import Row

LIMIT = 10_000  # findings of each kind on the pages; `export` lists all
TYPICAL = 6  # typical images of a class
_CLASSES = 300  # classes with typical images: those that most findings are about
_SOURCES = 3  # names of sources in the title
_FEWEST = 3  # a smaller group has no name
KINDS: tuple[Kind, ...] = get_args(Kind)

# Every finding with its image's row of the ranking, and what its group has in common. A flagged image that may be a
# known class in another style is listed as flagged, and says so.
_FOUND = """
WITH found AS (
    SELECT i.kind, i.severity, i.evidence, r.*, CASE i.kind
        WHEN 'ood' THEN [r.cluster]
        WHEN 'label' THEN [r.given_label, r.suggested_label]
        WHEN 'covariate-shift' THEN [r.label]
        WHEN 'text' THEN [r.given_label]
        WHEN 'quality' THEN [split_part(i.evidence, ':', 1)]
        ELSE [] END AS name
    FROM read_parquet($findings, hive_partitioning = false) AS i
    JOIN report AS r USING (image_id)
    WHERE i.kind <> 'unreadable' AND NOT (i.kind = 'covariate-shift' AND coalesce(r.flagged, false))
    UNION ALL
    SELECT 'unusual', 0, '', r.*, []
    FROM report AS r ANTI JOIN (
        FROM read_parquet($findings, hive_partitioning = false) WHERE kind <> 'shortcut') AS i USING (image_id)
    WHERE rank <= $top AND image_id NOT IN (SELECT unnest($passed::VARCHAR[]))
)
"""


class Found:
    """The findings of a report in SQL.

    Args:
        db: A connection whose view `report` has what was decided.
        findings: Those that are open, as `issues.parquet`.
        top: How many images to list for their rank alone.
        passed: Ids of images that a person has found to belong to the data, which are not listed for their rank.
        shortcuts: What goes with a class or a split.

    """

    def __init__(
        self,
        db: DuckDBPyConnection,
        findings: Path,
        top: int,
        passed: Collection[str],
        shortcuts: Sequence[Shortcut] = (),
    ) -> None:
        self.db = db
        self.shortcut_of = {image_id: one for one in reversed(shortcuts) for image_id in one.images}
        self._values = {"findings": str(findings), "top": top, "passed": list(passed)}

    def rows(self, kind: Kind) -> list[Row]:
        """The first `LIMIT` findings of a kind, the most severe first, with the columns of the view `report`."""
        order = "rank" if kind in ("ood", "unusual") else "severity DESC, rank"
        rows = _rows(
            self.db,
            f"{_FOUND} FROM found WHERE kind = $kind ORDER BY {order} LIMIT {LIMIT}",
            {**self._values, "kind": kind},
        )
        if kind == "shortcut":
            rows = list({row["image_id"]: row for row in rows}.values())
            return [{**row, "name": self._shortcut(row["image_id"])} for row in rows]
        return rows

    def counts(self) -> dict[Kind, Counter[tuple[str, ...]]]:
        """By kind, how many findings there are in all, by what their groups have in common."""
        counts: dict[Kind, Counter[tuple[str, ...]]] = {kind: Counter() for kind in KINDS}
        sql = f"{_FOUND} SELECT kind, name, count(*) FROM found WHERE kind <> 'shortcut' GROUP BY kind, name"
        for kind, name, count in self.db.execute(sql, self._values).fetchall():
            counts[kind][tuple(name) if count >= _FEWEST and all(name) else ()] += count
        if self.shortcut_of:
            sql = f"{_FOUND} SELECT DISTINCT image_id FROM found WHERE kind = 'shortcut'"
            shown = self.db.execute(sql, self._values).fetchall()
            counts["shortcut"].update(self._shortcut(image_id) for (image_id,) in shown)
        return counts

    def typical(self, classes: Sequence[str]) -> dict[str, list[str]]:
        """By class, the ids of the images nearest to its pictures, without those that anything was found about."""
        rows = self.db.execute(
            "WITH open AS (SELECT image_id FROM read_parquet($findings, hive_partitioning = false) "
            "WHERE kind <> 'shortcut'), "
            "fitting AS (FROM report ANTI JOIN open USING (image_id) "
            "WHERE label IN (SELECT unnest($classes::VARCHAR[])) AND coalesce(given_label, label) = label "
            "QUALIFY row_number() OVER (PARTITION BY content_hash ORDER BY path) = 1) "
            "SELECT label, image_id FROM fitting QUALIFY row_number() OVER (PARTITION BY label "
            f"ORDER BY distance, ood_score, path) <= {TYPICAL} ORDER BY label, distance, ood_score, path",
            {"findings": self._values["findings"], "classes": list(classes)},
        )
        typical = defaultdict(list)
        for label, image_id in rows.fetchall():
            typical[label].append(image_id)
        return dict(typical)

    def _shortcut(self, image_id: str) -> tuple[str, ...]:
        """The group of an image that shows a shortcut."""
        one = self.shortcut_of[image_id]
        return (one.group, one.shows)


def gather(
    store: Store,
    found: Found,
    name: str,
    meta: Row,
    duplicates: Path,
    compared: Compared,
    notes: Sequence[str],
) -> Page:
    """A report as one page without its pictures.

    Args:
        store: The store.
        found: The findings.
        name: The report's name.
        meta: As in meta.json.
        duplicates: The file of `copies.current`.
        compared: What the images were scored against.
        notes: What a person should know, a sentence each.

    """
    db, flags = found.db, meta["flags"]
    counts = found.counts()
    rows = {kind: found.rows(kind) if counts[kind] else [] for kind in KINDS}
    compared_rows = list(
        {row["image_id"]: row for kind in KINDS for row in rows[kind] if "duplicate" not in kind}.values()
    )
    around = look_around(store, _listed(compared_rows, meta["classes"]), meta["scored"], compared)
    kept = _kept(db, duplicates, [row["image_id"] for kind in KINDS if "duplicate" in kind for row in rows[kind]])
    classes = Counter(label for row in chain(*rows.values()) for label in (row["given_label"], row["label"]) if label)
    typical = found.typical([label for label, _ in classes.most_common(_CLASSES)])
    others = _images(db, {*kept.values(), *chain(*around.neighbours.values()), *chain(*typical.values())})
    findings = {
        kind: [_finding(kind, row, meta["classes"], around, others, others.get(kept.get(row["image_id"], "")))
               for row in rows[kind]]
        for kind in KINDS
    }  # fmt: skip
    findings["shortcut"] = [
        replace(finding, shortcut=found.shortcut_of[finding.image.image_id].evidence)
        for finding in findings["shortcut"]
    ]
    sections = [_section(kind, counts[kind], rows[kind], findings[kind]) for kind in KINDS]
    listed = {row["image_id"] for row in compared_rows}
    points = _points(db, around, listed)
    return Page(
        name=name,
        title=_title(db, name),
        created=meta["created"],
        store=str(store.root.resolve()),
        doubt=meta["doubt"],
        scored=meta["scored"],
        calibration=flags["calibration"] if flags else None,
        calibrated_by="labelled images" if meta["shift"] else "images that fit their folders",
        sections=[section for section in _ordered(sections, flags is not None) if section.count],
        unreadable=ranking.unreadable(db, LIMIT),
        unreadable_count=meta["unreadable"],
        classes=meta["classes"],
        typical={label: [others[image_id] for image_id in ids] for label, ids in typical.items()},
        facts=_facts(meta),
        notes=notes,
        next_steps=list(_steps(sections, meta)),
        histogram=ranking.histogram(db),
        cut=ranking.cut(db, meta["top"]),
        points=points,
        sprites=sprites([point.uri for point in points if point.image_id not in listed]),
    )


def summarised(page: Page) -> list[Section]:
    """The sections of a page by their counts alone."""
    return [
        replace(section, groups=[replace(group, findings=()) for group in section.groups]) for section in page.sections
    ]


def _ordered(sections: list[Section], flagged: bool) -> Iterable[Section]:
    """Without flags, what leads the ranking is what there is to look at first."""
    return sorted(sections, key=lambda section: section.kind == "unusual" if flagged else section.kind != "unusual")


def _section(kind: Kind, counts: Counter[tuple[str, ...]], rows: list[Row], findings: list[Finding]) -> Section:
    groups: dict[tuple[str, ...], list[Finding]] = {
        name: [] for name in sorted(counts, key=lambda name: (not name, -counts[name], name))
    }
    for row, finding in zip(rows, findings, strict=True):
        name = tuple(row["name"])
        groups[name if name in groups and all(name) else ()].append(finding)
    return Section(kind, counts.total(), [Group(name, counts[name], groups[name]) for name in groups])


def _finding(
    kind: Kind, row: Row, classes: Sequence[str], around: Surroundings, others: Mapping[str, Image], twin: Image | None
) -> Finding:
    image_id = row["image_id"]
    scored = Scored(
        rank=row["rank"],
        ood_score=row["ood_score"],
        delta_energy=row["delta_energy"],
        energy=row["energy"],
        max_cosine=row["max_cosine"],
        label=row["label"],
        label_2=row["label_2"],
        margin=row["margin"],
        given=row["given_label"],
        p_value=row["p_value"],
        p_distance=row["p_distance"],
        classes=[(classes[k], similarity) for k, similarity in around.classes.get(image_id, ())],
        neighbours=[others[near] for near in around.neighbours.get(image_id, ()) if near in others],
        place=around.places.get(image_id),
    )
    return Finding(
        kind=kind,
        image=_image(row),
        severity=row["severity"],
        scored=scored,
        looks_like=row["cluster"] if kind == "ood" else None,
        probabilities=(row["confidence"], row["given_confidence"]) if kind == "label" else None,
        perhaps=row["label"] if kind == "ood" and row["shift"] == "covariate" else None,
        twin=twin,
        evidence=row["evidence"],
    )


def _image(row: Row) -> Image:
    return Image(**{name: row[name] for name in Image.__dataclass_fields__ if name in row})


def _images(db: DuckDBPyConnection, ids: Collection[str]) -> dict[str, Image]:
    rows = _rows(db, "FROM images WHERE image_id IN (SELECT unnest($ids::VARCHAR[]))", {"ids": list(ids)})
    return {row["image_id"]: _image(row) for row in rows}


def _kept(db: DuckDBPyConnection, duplicates: Path, ids: list[str]) -> dict[str, str]:
    """By the id of a duplicate, the id of the one to keep."""
    sql = (
        "WITH d AS (FROM read_parquet($path, hive_partitioning = false)) "
        "SELECT d.image_id, any_value(k.image_id) FROM d JOIN d AS k ON k.cluster = d.cluster AND k.keep "
        "WHERE d.image_id IN (SELECT unnest($ids::VARCHAR[])) GROUP BY 1"
    )
    return dict(db.execute(sql, {"path": str(duplicates), "ids": ids}).fetchall())


def _listed(rows: list[Row], classes: list[str]) -> list[Listed]:
    """The images with the numbers of their nearest classes, and of the one that they are labelled with."""
    number_of = {name: number for number, name in enumerate(classes)}
    return [
        Listed(
            row["image_id"],
            row["path"],
            tuple(number_of[row[name]] for name in ("label", "label_2") if row[name] is not None),
            number_of.get(row["given_label"]),
        )
        for row in rows
    ]


def _points(db: DuckDBPyConnection, around: Surroundings, listed: Collection[str]) -> list[Point]:
    rows = db.execute(
        "SELECT image_id, label, rank, uri, CASE WHEN flagged THEN 'flagged' "
        "WHEN shift = 'covariate' OR suggested_label IS NOT NULL THEN 'other finding' ELSE 'not flagged' END "
        "FROM report WHERE image_id IN (SELECT unnest($ids::VARCHAR[])) ORDER BY rank DESC",
        {"ids": list(around.places)},
    ).fetchall()
    points = [
        Point(image_id, *around.places[image_id], kind, label, rank, uri) for image_id, label, rank, uri, kind in rows
    ]
    return sorted(points, key=lambda point: point.image_id in listed)


def _title(db: DuckDBPyConnection, name: str) -> str:
    """The names of the sources, those with most images first, and the report's own if it has one."""
    rows = db.execute("SELECT source FROM images WHERE status = 'ok' GROUP BY 1 ORDER BY count(*) DESC, 1").fetchall()
    names = list(dict.fromkeys(source.rstrip("/\\").replace("\\", "/").rpartition("/")[2] for (source,) in rows))
    shown = names[:_SOURCES] + ([f"{len(names) - _SOURCES} more"] if len(names) > _SOURCES else [])
    return " · ".join([", ".join(shown) or name, *([name] if name != DEFAULT_NAME and shown else [])])


def _facts(meta: Row) -> list[tuple[str, str]]:
    return [
        ("Classes", f"{len(meta['classes']):,}"),
        ("Score", described(meta["method"], meta["parameters"])),
        ("Prompts", meta["prompts"]),
        *([("Expected AUROC", f"{meta['forecast']:.2f}")] if meta["forecast"] is not None else []),
        ("Flags", meta["unflagged"] or f"calibrated {meta['flags']['calibrated']}"),
        ("Model", meta["model"]),
        ("Created", meta["created"].replace("T", " ").replace("+00:00", " UTC")),
    ]


def _steps(sections: Sequence[Section], meta: Row) -> Iterable[tuple[str, str]]:
    """What to do next, and the command for it."""
    counts = {section.kind: section.count for section in sections}
    yield (
        "Decide about the pictures with the keys k, r and l, press Finish, and apply what you decided. Leave out "
        "--dry-run to do it; --undo reverts it.",
        "ood-audit apply decisions.csv --to ../aside --dry-run",
    )
    if meta["flags"] is None:
        yield (
            "To have images flagged with a known rate of false alarms, give some labelled images, in FOLDER/CLASS/, "
            "and report again.",
            "ood-audit labels add FOLDER",
        )
    if counts["covariate-shift"]:
        yield (
            "List the images that may show a known class in another style. Where the style belongs to your data, add "
            "some of them to the labelled images.",
            "ood-audit export --shifted --format csv",
        )
    if counts["exact-duplicate"] + counts["near-duplicate"]:
        yield "Move all duplicates but the one to keep of each.", "ood-audit quarantine ../aside --duplicates --dry-run"
    if counts["leak"]:
        yield (
            "Write the splits anew, so that they share nothing.",
            "ood-audit export --format split --output s.csv",
        )
    if meta["unreadable"]:
        yield (
            "Replace or remove the unreadable files, and run `ood-audit embed` again.",
            "ood-audit export --unreadable --format csv",
        )


def _rows(db: DuckDBPyConnection, sql: str, values: Row) -> list[Row]:
    answer = db.execute(sql, values)
    names = [column[0] for column in answer.description or []]
    return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]
