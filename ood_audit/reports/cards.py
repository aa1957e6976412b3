"""The pictures on the page, each with what is known of it: a card for the document, and a record for the dialog."""

import base64
import math
from collections.abc import Iterable, Sequence
from typing import Any

from markupsafe import Markup

from ood_audit.reports.charts import number
from ood_audit.text import printable

_PICTURES = 13_500_000  # characters of base64; what goes beyond is left out, and the page says so
_COPIES = {"exact": "exact copy", "near": "near copy"}
SHIFTS = {"semantic": "semantic shift", "covariate": "covariate shift", "in-distribution": "in distribution"}
LIMIT = 5_000  # of each list on the page; browsers stay smooth, and the file small enough to be sent
Row = dict[str, Any]


class Pictures:
    """The pictures as data URLs, as far as the page has room for them."""

    def __init__(self) -> None:
        self.left_out = 0
        self.extra: list[str] = []  # those that no card shows: only the dialog
        self._room = _PICTURES
        self._extra: dict[bytes, int] = {}

    def url(self, content: bytes | None) -> Markup | None:
        """For an attribute; None where there is no picture, or no room: then it may not even have been made (empty)."""
        if content is None:
            return None
        size = 4 * len(content) // 3
        if not content or size > self._room:
            self.left_out += 1
            return None
        self._room -= size
        return Markup("data:image/webp;base64," + base64.b64encode(content).decode())  # noqa: S704

    def add(self, content: bytes | None) -> int:
        """The place in `extra`, each picture once; -1 where there is none, or no room."""
        if content and content not in self._extra and (url := self.url(content)):
            self._extra[content] = len(self.extra)
            self.extra.append(url)
        return self._extra.get(content or b"", -1)


def key(image: Row) -> str:
    """What an image is known by: its id, if that is given. A path is that of two images where there are two sources."""
    return str(image.get("image_id") or image["path"])


def evidence_by_image(findings: Iterable[Row]) -> dict[str, list[str]]:
    """The sentences about each image."""
    sentences: dict[str, list[str]] = {}
    for finding in findings:
        sentences.setdefault(key(finding), []).append(printable(str(finding["evidence"])))
    return sentences


def row_card(row: Row, place: int, evidence: dict[str, list[str]], pictures: Pictures) -> dict[str, Any]:
    """A listed image; `place` is the number of its record."""
    given, shift = row.get("given_label"), row.get("shift")
    best = row.get("top_classes") or []
    similarity = best[0][1] if best and best[0][0] == row["label"] else row["max_cosine"]
    measure = row.get("measure", "cosine")
    facts = [
        ("OOD score", number(row["ood_score"])),
        ("p-value", None if row.get("p_value") is None else number(row["p_value"])),
        ("p-value of its distance", None if row.get("p_distance") is None else number(row["p_distance"])),
        ("Shift", SHIFTS.get(shift or "", shift)),
        ("Looks like", row.get("cluster")),
        ("Given label", given),
        ("Nearest class", f"{row['label']} ({measure} {number(similarity)})"),
        ("Runner-up", row["label_2"] and _runner_up(row)),
        ("ΔEnergy", number(row["delta_energy"])),
        ("Energy", number(row["energy"])),
        ("Size", f"{row['width']} × {row['height']} px"),
    ]
    return {
        "place": place,
        "key": key(row),
        "row": row,
        "similarity": similarity,
        "measure": measure,
        "path": row["path"],
        "uri": row["uri"],
        "picture": pictures.url(row["thumbnail"]),
        "gone": row["thumbnail"] is None,
        "class": row["label"],
        "group": row.get("cluster"),
        "flagged": bool(row.get("flagged")),
        "shift": shift if shift in SHIFTS else None,
        "shift_name": SHIFTS.get(shift or "", shift),
        "p_value": row.get("p_value"),
        "given": given if given != row["label"] else None,
        "record": _record(facts, evidence.get(key(row), []), row.get("top_classes")),
    }


def _runner_up(row: Row) -> str:
    return str(row["label_2"]) + ("" if row["margin"] is None else f" (margin {number(row['margin'])})")


def label_card(finding: Row, place: int, row: Row, pictures: Pictures) -> dict[str, Any]:
    """An image with a label issue; `row` is what the ranking knows of it, or empty."""
    given = finding.get("given_label") or row.get("given_label")
    thumbnail = finding.get("thumbnail") or row.get("thumbnail")
    facts = [("Given label", given), ("Suggested label", finding["suggestion"])]
    return {
        "place": place,
        "key": key(finding),
        "path": finding["path"],
        "uri": finding.get("uri") or row.get("uri"),
        "picture": pictures.url(thumbnail),
        "gone": thumbnail is None,
        "class": finding["suggestion"],
        "given": given,
        "severity": finding["severity"],
        "evidence": finding["evidence"],
        "record": _record(
            [*facts, ("Severity", f"{finding['severity']:.2f}")],
            [printable(str(finding["evidence"]))],
            finding.get("top_classes") or row.get("top_classes"),
        ),
    }


def clusters(duplicates: Sequence[list[Row]], place: int, pictures: Pictures) -> list[dict[str, Any]]:
    """The clusters as the page shows them: the one to keep first, and no more copies than LIMIT in all."""
    clusters: list[dict[str, Any]] = []
    shown = 0
    for number_of, copies in enumerate(duplicates, start=1):
        ordered = sorted(copies, key=lambda copy: not copy["keep"])[: LIMIT - shown]
        if len(ordered) < min(2, len(copies)):
            break
        cards = [_copy_card(copy, place + shown + i, pictures) for i, copy in enumerate(ordered)]
        kinds = {copy["kind"] for copy in copies if not copy["keep"]}
        size = copies[0].get("copies", len(copies))
        clusters.append({"number": number_of, "cards": cards, "size": size, "exact": kinds == {"exact"}})
        shown += len(ordered)
    return clusters


def _copy_card(copy: Row, place: int, pictures: Pictures) -> dict[str, Any]:
    what = "the one to keep" if copy["keep"] else _COPIES.get(copy["kind"], copy["kind"])
    size = f"{copy['width']} × {copy['height']} px"
    return {
        "place": place,
        "key": key(copy),
        "path": copy["path"],
        "uri": copy.get("uri"),
        "picture": pictures.url(copy.get("thumbnail")),
        "gone": copy.get("thumbnail") is None,
        "keep": bool(copy["keep"]),
        "what": what,
        "size": size,
        "bytes": _bytes(copy["size_bytes"]),
        "record": _record([("Copy", what), ("Size", size), ("File", _bytes(copy["size_bytes"]))], [], None),
    }


def _bytes(count: int) -> str:
    return f"{count:,} bytes" if count < 1000 else f"{count / 1e3:,.0f} kB" if count < 1e6 else f"{count / 1e6:,.1f} MB"


def _record(
    facts: Sequence[tuple[str, str | None]], evidence: list[str], classes: Sequence[tuple[str, float]] | None
) -> dict[str, Any]:
    """What the dialog shows besides the picture and its path; `classes` with the length of their bars in percent."""
    best = sorted((one for one in classes or [] if math.isfinite(one[1])), key=lambda one: -one[1])[:5]
    longest = max((score for _, score in best), default=0.0)
    return {
        "facts": [(term, printable(str(value))) for term, value in facts if value is not None],
        "evidence": evidence,
        "classes": [
            (printable(label), number(score), round(max(100 * score / longest, 0.0), 1) if longest > 0 else 0.0)
            for label, score in best
        ],
        "near": [],
    }


def neighbour(near: Any, rows: list[Row], places: dict[str, int], pictures: Pictures) -> int | tuple[str, int]:
    """The number of the row, where the page has it; else the path as shown, and the place of its picture."""
    image = near if isinstance(near, dict) else rows[near]
    if key(image) in places:
        return places[key(image)]
    return printable(image["path"]), pictures.add(image.get("thumbnail"))
