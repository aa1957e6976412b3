"""The cards of the page: a picture, a sentence that says why it is there, and a record for the dialog."""

import base64
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

from markupsafe import Markup

from ood_audit.images.uri import in_picture
from ood_audit.reports.charts import number
from ood_audit.reports.model import Finding, Group, Image, Kind, Page, Scored, Section
from ood_audit.reports.paging import file_name
from ood_audit.text import printable

# How a record refers to another image: by the number of its record, else by its path and the place of its picture.
Reference = int | tuple[str, int]
_PICTURES = 13_500_000  # characters of base64; what goes beyond is left out, and the page says so


class Pictures:
    """The thumbnails as data URLs, as far as the page has room for them."""

    def __init__(self, thumbnails: Mapping[str, bytes | None]) -> None:
        self.left_out = 0
        self.extra: list[str] = []  # those that no card shows: only the dialog
        self._thumbnails = thumbnails
        self._room = _PICTURES
        self._extra: dict[str, int] = {}

    def url(self, uri: str) -> Markup | None:
        """For an attribute; None where the file is gone, or there is no room."""
        content = self._thumbnails.get(uri, b"")
        if content is None:
            return None
        size = 4 * len(content) // 3
        if not content or size > self._room:
            self.left_out += 1
            return None
        self._room -= size
        return data_url(content)

    def add(self, uri: str) -> int:
        """The place in `extra`, each picture once; -1 where there is none, or no room."""
        if uri not in self._extra:
            url = self.url(uri)
            self._extra[uri] = -1 if url is None else len(self.extra)
            self.extra += [url] if url else []
        return self._extra[uri]

    def why_none(self, uri: str) -> str:
        """What stands in the place of a picture that there is not."""
        return "The file is gone" if self._thumbnails.get(uri, b"") is None else "No room for its picture"


def data_url(picture: bytes) -> Markup:
    """A JPEG as an address."""
    return Markup("data:image/jpeg;base64," + base64.b64encode(picture).decode())  # noqa: S704


@dataclass(frozen=True)
class Card:
    """A finding as the page shows it; `image` is the number of its image."""

    image: int
    finding: Finding
    picture: Markup | None
    no_picture: str
    sentence: Markup
    name: str
    folder: str
    file: str


@dataclass(frozen=True)
class Cards:
    """A group of cards with its title."""

    number: int
    title: Markup
    cards: list[Card]
    left_out: str


@dataclass(frozen=True)
class Part:
    """A section with its title: `short` for the line of counts, which links to `address`."""

    kind: Kind
    count: int
    address: str
    short: str
    title: str
    lead: str
    groups: list[Cards]


@dataclass
class Choices:
    """The values that cards can be filtered by, numbered, as values that differ only invisibly look the same."""

    numbers: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, value: str | None) -> int | None:
        """The number of a value."""
        if value is None:
            return None
        self.counts[value] = self.counts.get(value, 0) + 1
        return self.numbers.setdefault(value, len(self.numbers))

    def differ(self, total: int) -> bool:
        """Whether they tell any of so many cards apart."""
        return len(self.numbers) > 1 or 0 < sum(self.counts.values()) < total

    @property
    def options(self) -> list[tuple[int, str]]:
        """(number, text) in the order of the alphabet."""
        values = sorted(self.numbers, key=lambda value: (value.casefold(), value))
        return [(self.numbers[value], f"{value} ({self.counts[value]:,})") for value in values]


FILTERS = {
    "given": "Given class",
    "nearest": "Nearest class",
    "group": "Group",
    "split": "Split",
    "source": "Source",
    "folder": "Folder",
}

_Titles = tuple[str, str, str, str]
_TITLES: dict[Kind, _Titles] = {  # in the line of counts (one, many), title, lead
    "ood": (
        "belongs to no class",
        "belong to no class",
        "Belongs to no class",
        "Unlike every class, by its name and its pictures.",
    ),
    "label": (
        "looks mislabelled",
        "look mislabelled",
        "In the wrong class",
        "They look like another class than the one that they are in.",
    ),
    "leak": (
        "leaks between splits",
        "leak between splits",
        "Leaks between splits",
        "A model that is tested on these has seen them, or nearly, in training.",
    ),
    "exact-duplicate": (
        "exact duplicate",
        "exact duplicates",
        "Exact duplicates",
        "The same file as another one, which is kept.",
    ),
    "near-duplicate": (
        "near duplicate",
        "near duplicates",
        "Near duplicates",
        "The same picture as another one, which is larger and is kept.",
    ),
    "quality": (
        "is of odd quality",
        "are of odd quality",
        "Odd quality",
        "Darker, brighter, more blurred, smaller or otherwise odd among the others.",
    ),
    "covariate-shift": (
        "perhaps in another style",
        "perhaps in another style",
        "Perhaps in another style",
        "They may show a known class as the labelled pictures do not. Many of them are ordinary pictures: this is the "
        "least certain finding.",
    ),
    "text": (
        "names another class",
        "name another class",
        "Text that names another class",
        "The text in them names another class than their label. The label may be wrong, or the text misleads a model.",
    ),
    "shortcut": (
        "shows a shortcut",
        "show a shortcut",
        "Shortcuts",
        "What goes with one class or split, so that a model may learn it instead. Each picture may well be right.",
    ),
    "unusual": (
        "next most unusual",
        "next most unusual",
        "The most unusual of the others",
        "Most of these are right. They are only what comes next.",
    ),
}
_UNFLAGGED: _Titles = (  # where nothing can be flagged
    "most unusual",
    "most unusual",
    "The most unusual first",
    "Nothing is flagged: these only lead the ranking, and many of them may be right.",
)


class _Described(TypedDict):
    kind: Kind
    hash: str
    uri: str
    suggestion: str
    guess: str
    facts: list[tuple[str, str]]
    bars: list[tuple[str, str, float]]
    given: int
    compare: list[int]
    values: dict[str, int | None]


class Record(_Described, total=False):
    """What the dialog shows of a finding besides the picture and the sentence, and what a decision is kept by.

    Classes are numbers, -1 for none, and so are the options of the filters in `values`, None for none. `near` (the
    neighbours), `twin` (the picture that is kept of duplicates) and `around` (the place of the picture that a box is
    in) follow when all cards are made.
    """

    near: list[Reference]
    twin: Reference
    twinIs: str
    around: int


@dataclass(frozen=True)
class Contents:
    """All cards of a page.

    Attributes:
        parts: The sections that have cards, and those that have them on other pages.
        records: What the dialog shows of each card, in their order.
        filters: Name, title, and the numbers and texts of the options of each filter.
        orders: The numbers of the records in each order that is not that of the page.
        first: By image id, the number of its first record.
        typical: By the number of a class, references to the pictures that show it best.

    """

    parts: list[Part]
    records: list[Record]
    filters: list[tuple[str, str, list[tuple[int, str]]]]
    orders: dict[str, list[int]]
    first: dict[str, int]
    typical: dict[int, list[Reference]]


def contents(page: Page, pictures: Pictures) -> Contents:
    """The cards of a page; their pictures come first where there is not room for all."""
    made = _Maker(page, pictures)
    parts = [made.part(section) for section in page.sections]
    typical = made.typical()
    made.add_neighbours()
    chosen = {name: choices for name, choices in made.choices.items() if choices.differ(len(made.records))}
    return Contents(
        parts=parts,
        records=made.records,
        filters=[(name, FILTERS[name], choices.options) for name, choices in chosen.items()],
        orders=made.orders(),
        first=made.first,
        typical=typical,
    )


class _Maker:
    """Makes cards and their records, one after another."""

    def __init__(self, page: Page, pictures: Pictures) -> None:
        self.page = page
        self.pictures = pictures
        self.records: list[Record] = []
        self.choices = {name: Choices() for name in FILTERS}
        self.first: dict[str, int] = {}
        self._number_of = {name: k for k, name in enumerate(page.classes)}
        self._findings: list[Finding] = []
        self._images: dict[str, int] = {}  # the number of each image, which is the same in every section
        self._groups = 0

    def part(self, section: Section) -> Part:
        unflagged = section.kind == "unusual" and self.page.calibration is None
        one, many, title, lead = _UNFLAGGED if unflagged else _TITLES[section.kind]
        return Part(
            kind=section.kind,
            count=section.count,
            address=("" if section.groups else file_name(section.page)) + f"#{section.kind}",
            short=one if section.count == 1 else many,
            title=title,
            lead=lead,
            groups=[self._group(section, group) for group in section.groups],
        )

    def typical(self) -> dict[int, list[Reference]]:
        """By the number of a class, the pictures that show it best, without those that there are not."""
        found = {}
        for k, name in enumerate(self.page.classes):
            references = [self._reference(image) for image in self.page.typical.get(name, ())]
            if shown := [one for one in references if isinstance(one, int) or one[1] >= 0]:
                found[k] = shown
        return found

    def add_neighbours(self) -> None:
        """Twins, then the pictures that boxes are in, then neighbours."""
        for finding, record in zip(self._findings, self.records, strict=True):
            if finding.twin is not None:
                record |= {"twin": self._reference(finding.twin), "twinIs": "kept"}
        for finding, record in zip(self._findings, self.records, strict=True):
            if (uri := in_picture(finding.image.uri)) is not None and (place := self.pictures.add(uri)) >= 0:
                record["around"] = place
        for finding, record in zip(self._findings, self.records, strict=True):
            record["near"] = [self._reference(image) for image in finding.scored.neighbours]

    def orders(self) -> dict[str, list[int]]:
        """The numbers of the records by severity, by class, and by path."""
        keys: dict[str, Callable[[Finding], Any]] = {
            "severity": lambda finding: (-finding.severity, finding.scored.rank),
            "class": lambda finding: natural(finding.scored.given or finding.scored.label),
            "folder": lambda finding: natural(finding.image.path),
        }
        numbers = range(len(self._findings))
        return {
            name: sorted(numbers, key=[key(finding) for finding in self._findings].__getitem__)
            for name, key in keys.items()
        }

    def _group(self, section: Section, group: Group) -> Cards:
        self._groups += 1
        words = " that look like " if section.kind == "label" else " that "
        name = words.join(group.name) or None
        return Cards(
            number=self._groups,
            title=group_title(section, group),
            cards=[self._card(finding, name) for finding in group.findings],
            left_out=_left_out(group),
        )

    def _card(self, finding: Finding, group: str | None) -> Card:
        image, scored = finding.image, finding.scored
        folder, slash, file = image.path.rpartition("/")
        self.first.setdefault(image.image_id, len(self.records))
        values = {
            "given": scored.given,
            "nearest": scored.label,
            "group": group,
            "split": image.split,
            "source": image.source or None,
            "folder": folder or None,
        }
        self._findings.append(finding)
        chosen = {name: self.choices[name].add(value) for name, value in values.items()}
        self.records.append(self._record(finding, chosen))
        return Card(
            image=self._images.setdefault(image.image_id, len(self._images)),
            finding=finding,
            picture=self.pictures.url(image.uri),
            no_picture=self.pictures.why_none(image.uri),
            sentence=sentence(finding, self.page),
            name=f"{_TITLES[finding.kind][2]}: {image.path}",
            folder=folder + slash,
            file=file,
        )

    def _record(self, finding: Finding, chosen: dict[str, int | None]) -> Record:
        scored, image = finding.scored, finding.image
        bars = [(label, value) for label, value in scored.classes if math.isfinite(value)]
        longest = max((value for _, value in bars), default=0.0)
        compared = [
            label for label in dict.fromkeys((scored.given, scored.label)) if label and label in self.page.typical
        ]
        return {
            "kind": finding.kind,
            "hash": image.content_hash or "",
            "uri": image.uri,
            "suggestion": printable(suggestion(finding)),
            "guess": printable(finding.looks_like or ""),
            "facts": [(term, printable(value)) for term, value in _figures(finding, self.page)],
            "bars": [
                (printable(label), number(value), round(max(100 * value / longest, 0.0), 1) if longest > 0 else 0.0)
                for label, value in bars
            ],
            "given": self._number_of.get(scored.given or "", -1),
            "compare": [self._number_of[label] for label in compared],
            "values": chosen,
        }

    def _reference(self, image: Image) -> Reference:
        if image.image_id in self.first:
            return self.first[image.image_id]
        return printable(image.path), self.pictures.add(image.uri)


def natural(text: str) -> tuple[str | int, ...]:
    """A key by which numbers in names are in their order: `a2` before `a10`."""
    parts = re.split(r"([0-9]{1,18})", text.casefold())
    return tuple(int(part) if i % 2 else part for i, part in enumerate(parts))


def _left_out(group: Group) -> str:
    """What a group has that is not on this page."""
    missing = group.count - group.elsewhere - len(group.findings)
    elsewhere = f"{group.elsewhere:,} more are on other pages." if group.elsewhere else ""
    unlisted = f"{missing:,} more are on no page; `ood-audit export` lists them." if missing else ""
    return f"{elsewhere} {unlisted}".strip()


def suggestion(finding: Finding) -> str:
    """The label that an image should have, as far as it is known."""
    scored = finding.scored
    return scored.label if finding.kind in ("label", "covariate-shift") or scored.given is None else ""


def say(template: str, *names: str | int) -> Markup:
    """A sentence as HTML, in which names are text on one line, whatever they hold."""
    return Markup(template).format(*(printable(str(name)) for name in names))  # noqa: S704  only ours are templates


def group_title(section: Section, group: Group) -> Markup:
    """`8 look like gun`."""
    count, one = f"{group.count:,}", group.count == 1
    if not group.name:
        others = len(section.groups) > 1
        return say("{} " + (("other" if one else "others") if others else ("image" if one else "images")), count)
    if section.kind == "label":
        return say("{} in <strong>{}</strong> look like <strong>{}</strong>", count, *group.name)
    if section.kind == "quality":
        return say("{} <strong>{}</strong>", count, *group.name)
    if section.kind == "shortcut":
        return say("{} of <strong>{}</strong> <strong>{}</strong>", count, *group.name)
    if section.kind == "text":
        return say("{} in <strong>{}</strong>", count, *group.name)
    if section.kind == "covariate-shift":
        return say("{} perhaps show <strong>{}</strong>", count, *group.name)
    return say("{} look like <strong>{}</strong>", count, *group.name)


def sentence(finding: Finding, page: Page) -> Markup:
    """Why an image is on the page, in words."""
    scored = finding.scored
    if finding.kind == "label":
        p, p_given = finding.probabilities or (0.0, 0.0)
        text = say("In <strong>{}</strong>, but looks like <strong>{}</strong>", scored.given or "", scored.label)
        return text + f": {_percent(p)} against {_percent(p_given)}."
    if finding.kind in ("leak", "quality", "text"):
        return say("{}.", finding.evidence[:1].upper() + finding.evidence[1:])
    if finding.twin is not None:
        same = "file" if finding.kind == "exact-duplicate" else "picture"
        return say("The same " + same + " as <strong>{}</strong>.", finding.twin.path)
    if finding.kind == "shortcut":
        return say("{}.", finding.shortcut)
    if finding.kind == "covariate-shift":
        return say("Perhaps <strong>{}</strong> in another style.", scored.label)
    if finding.kind == "unusual":
        text = _where(scored)
    elif finding.looks_like:
        start = say("In <strong>{}</strong>, but looks", scored.given) if scored.given else Markup("Looks")
        text = start + say(" like <strong>{}</strong>", finding.looks_like)
    elif scored.given:
        text = say("In <strong>{0}</strong>, but unlike any {0}", scored.given)
    else:
        text = say("Unlike every class; the nearest is <strong>{}</strong>", scored.label)
    text += say("; perhaps {} in another style", finding.perhaps) if finding.perhaps else ""
    return text + "; " + how_unusual(scored.p_value, scored.rank, page) + "."


def _where(scored: Scored) -> Markup:
    if scored.given is None:
        return say("Nearest to <strong>{}</strong>", scored.label)
    nearest = "" if scored.given == scored.label else say(", nearest to <strong>{}</strong>", scored.label)
    return say("In <strong>{}</strong>", scored.given) + nearest


def how_unusual(p_value: float | None, rank: int, page: Page) -> str:
    """How few images are as unusual, as in `more unusual than all 240 labelled images`."""
    if p_value is None or page.calibration is None:
        share = (page.scored - rank) / max(page.scored, 1)
        return "more unusual than " + ("all other images" if rank == 1 else f"{math.floor(100 * share)}% of the images")
    if _at_floor(p_value, page.calibration):
        return f"more unusual than all {page.calibration:,} {page.calibrated_by}"
    return f"1 in {round(1 / p_value):,} {page.calibrated_by} is as unusual"


def _at_floor(p: float, calibration: int) -> bool:
    return p * (calibration + 1) < 1.5


def _share(p: float, page: Page) -> str:
    floor = page.calibration is not None and _at_floor(p, page.calibration)
    return f"less than 1 in {round(1 / p):,}" if floor else f"1 in {round(1 / p):,}" if p < 0.1 else f"{p:.0%}"


def _percent(p: float) -> str:
    return "less than 1%" if p < 0.01 else f"{min(p, 0.99):.0%}"


def _figures(finding: Finding, page: Page) -> Iterable[tuple[str, str]]:
    """The numbers behind the words, each with its name."""
    scored, image = finding.scored, finding.image
    yield "Rank", f"{scored.rank:,} of {page.scored:,}"
    if scored.p_value is not None:
        yield "As unusual", _share(scored.p_value, page)
    if scored.p_distance is not None:
        yield "As far from its class", _share(scored.p_distance, page)
    yield "OOD score", number(scored.ood_score)
    yield "ΔEnergy", number(scored.delta_energy)
    yield "Energy", number(scored.energy)
    yield "Cosine", number(scored.max_cosine)
    if scored.margin is not None:
        yield "Margin", f"{number(scored.margin)} before {scored.label_2}"
    yield "Size", size(image)


def size(image: Image) -> str:
    """`640 × 480 px, 23 kB`."""
    count = image.size_bytes or 0
    text = f"{count:,} bytes" if count < 1000 else f"{count / 1e3:,.0f} kB" if count < 1e6 else f"{count / 1e6:,.1f} MB"
    return f"{image.width} × {image.height} px, {text}"
