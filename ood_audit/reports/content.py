"""What a report's page shows, gathered from the store and the findings; `html` renders it."""

from pathlib import Path
from typing import Any

from duckdb import DuckDBPyConnection

from ood_audit.findings import copies
from ood_audit.reports import ranking
from ood_audit.reports.cards import LIMIT
from ood_audit.reports.html import Page, Summary
from ood_audit.reports.neighbours import LISTED, Compared, Listed, look_around
from ood_audit.reports.thumbnails import MOST, thumbnails
from ood_audit.scoring.settings import described
from ood_audit.store import Store

Row = dict[str, Any]


def gather(
    store: Store,
    db: DuckDBPyConnection,
    name: str,
    meta: dict[str, Any],
    top: int,
    duplicates: Path,
    compared: Compared,
) -> Page:
    """The page of a report.

    Args:
        store: the store.
        db: the connection on which `decisions.decide` was called.
        name: the report's.
        meta: as in meta.json.
        top: how many of the most OOD images are listed, beside all that are flagged or covariate.
        duplicates: the file of `copies.current`.
        compared: what the images were scored against.

    """
    rows, total = ranking.listed(db, top, LIMIT)
    labels = _rows(
        db,
        "SELECT l.image_id, i.uri, i.path, 'label' AS kind, l.label_issue AS severity, l.given AS given_label, "
        "l.suggested_label AS suggestion, printf('labelled %s, looks like %s: probability %.2f against %.2f', l.given, "
        "l.suggested_label, l.p, l.p_given) AS evidence "
        "FROM label_issues AS l JOIN images AS i USING (image_id) "
        "JOIN (SELECT image_id, rank FROM report) AS r USING (image_id) WHERE l.found "
        f"ORDER BY severity DESC, rank LIMIT {LIMIT}",
    )
    clusters = copies.clusters(db, duplicates, LIMIT)
    around = look_around(store, _listed(rows, meta["classes"]), meta["scored"], compared)
    listed = {row["image_id"] for row in rows}
    ids = sorted({near for several in around.neighbours.values() for near in several})
    near = {
        row["image_id"]: row
        for row in _rows(db, "SELECT image_id, uri, path FROM images WHERE list_contains($ids, image_id)", {"ids": ids})
    }
    # The pictures of all neighbours of thousands of images would take minutes to make, and more room than there is.
    first = {near for row in rows[:LISTED] for near in around.neighbours.get(row["image_id"], ())}
    beside = [row for image_id, row in near.items() if image_id in first or image_id in listed]
    wanted = [*rows, *labels, *(copy for cluster in clusters for copy in cluster), *beside]
    uris = list(dict.fromkeys(row["uri"] for row in wanted))
    pictures = dict(zip(uris, thumbnails(uris[:MOST]), strict=False))
    for row in wanted:
        row["thumbnail"] = pictures.get(row["uri"], b"")  # no room for it
    found = dict(
        db.execute(
            "SELECT image_id, CASE WHEN flagged THEN 'flagged' WHEN shift = 'covariate' THEN 'covariate-shift' "
            "ELSE 'label' END FROM report WHERE flagged OR shift = 'covariate' OR suggested_label IS NOT NULL"
        ).fetchall()
    )
    shown = [
        {
            **row,
            "measure": "similarity" if compared.prototypes else "cosine",
            "kind": found.get(row["image_id"], "in-distribution"),
            "top_classes": [(meta["classes"][k], cosine) for k, cosine in around.classes[row["image_id"]]],
            "xy": around.places.get(row["image_id"]),
            "neighbours": [near[i] for i in around.neighbours.get(row["image_id"], ()) if i in near],
        }
        for row in rows
    ]
    flags, shift = meta["flags"], meta["shift"]
    return Page(
        title=f"ood-audit: {name}",
        created=meta["created"],
        facts=[
            ("Classes", f"{len(meta['classes']):,}"),
            ("Score", described(meta["method"], meta["parameters"])),
            ("Prompts", meta["prompts"]),
            *([("Expected AUROC", f"{meta['forecast']:.2f}")] if meta["forecast"] is not None else []),
            ("Flags", meta["unflagged"] or f"calibrated {flags['calibrated']}"),
            ("Model", meta["model"]),
        ],
        rows=shown,
        histogram=ranking.histogram(db),
        cut=next((row["ood_score"] for i, row in enumerate(reversed(rows)) if row["rank"] == len(rows) - i), None),
        listed=total,
        doubt=meta["doubt"],
        scored=meta["scored"],
        unreadable=ranking.unreadable(db, LIMIT),
        unreadable_count=meta["unreadable"],
        summary=Summary(
            flagged=flags["flagged"] if flags else None,
            semantic=shift["semantic"] if shift else None,
            covariate=shift["covariate"] if shift else None,
            flagged_covariate=shift["flagged_covariate"] if shift else None,
            false_alarms=flags["expected"] if flags else None,
            label_issues=meta["labels"]["found"],
            duplicate_clusters=meta["duplicates"]["clusters"],
            superfluous_copies=meta["duplicates"]["extra"],
        ),
        findings=labels,
        duplicates=clusters,
        map_points=[
            (x, y, found.get(image_id, "in-distribution"), -1)
            for image_id, (x, y) in around.places.items()
            if image_id not in listed
        ],
        next_steps=list(_steps(meta)),
    )


def _listed(rows: list[Row], classes: list[str]) -> list[Listed]:
    """The images with the numbers of their nearest classes."""
    number_of = {name: number for number, name in enumerate(classes)}
    return [
        Listed(
            row["image_id"],
            row["path"],
            tuple(number_of[row[name]] for name in ("label", "label_2") if row[name] is not None),
        )
        for row in rows
    ]


def _steps(meta: dict[str, Any]) -> list[tuple[str, str]]:
    """What to do next, and the command for it."""
    flags, labels, extra = meta["flags"], meta["labels"]["found"], meta["duplicates"]["extra"]
    steps = []
    if flags is None:
        steps.append(
            (
                "Look at the first images below. To have them flagged, with a known rate of false alarms, give some "
                "labelled images, in FOLDER/CLASS/, and report again:",
                "ood-audit labels add FOLDER",
            )
        )
    elif flags["flagged"]:
        steps.append(
            (
                f"Look at the {_plural(flags['flagged'], 'flagged image')}. What belongs here after all is a class to "
                "add to the list, or a style to label. See where the others would be moved (leave out --dry-run to do "
                "it, --undo takes it back):",
                "ood-audit quarantine ../aside --flagged --dry-run",
            )
        )
    if meta["shift"] and meta["shift"]["covariate"]:
        steps.append(
            (
                "Look at the known classes in another style. Where the style belongs to your data, add some of these "
                "images to the labelled ones and run tune again; where it does not, take them out:",
                "ood-audit export --shifted --format csv",
            )
        )
    if labels:
        steps.append(
            (
                f"Compare the {_plural(labels, 'label')} that may be wrong with the pictures, under Label issues. "
                "Correct them from a list:",
                "ood-audit export --label-issues --format csv",
            )
        )
    if extra:
        steps.append(
            (
                f"See where {_plural(extra, 'superfluous copy', 'superfluous copies')} would be moved (leave out "
                "--dry-run to do it):",
                "ood-audit quarantine ../aside --duplicates --dry-run",
            )
        )
    if meta["unreadable"]:
        steps.append(
            (
                f"Replace or remove {_plural(meta['unreadable'], 'unreadable file')}, and run `ood-audit embed` again:",
                "ood-audit export --unreadable --format csv",
            )
        )
    return steps


def _plural(count: int, one: str, many: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _rows(db: DuckDBPyConnection, sql: str, values: dict[str, Any] | None = None) -> list[Row]:
    answer = db.execute(sql, values) if values else db.execute(sql)
    names = [column[0] for column in answer.description or []]
    return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]
