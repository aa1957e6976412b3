"""What the page of a report shows: `content` fills it from the store, and `html` renders it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

DEFAULT_NAME = "latest"  # of a report

Kind = Literal[
    "ood",
    "label",
    "leak",
    "exact-duplicate",
    "near-duplicate",
    "quality",
    "covariate-shift",
    "text",
    "shortcut",
    "unusual",
]


@dataclass(frozen=True)
class Image:
    """An image of the store.

    Attributes:
        image_id: Its id, as two sources may each hold an image of one path.
        uri: Where it is, as `file:///…` or `s3://…`.
        path: Its path within its source, exactly as it is, which may be hostile.
        content_hash: The hash of its bytes; None where they could not be read.
        width: In pixels.
        height: In pixels.
        size_bytes: The size of the file.
        source: The folder, list or archive that it was found in.
        split: Its split, as `train`, where the data set has splits.

    """

    image_id: str
    uri: str
    path: str
    content_hash: str | None
    width: int | None
    height: int | None
    size_bytes: int | None
    source: str = ""
    split: str | None = None


@dataclass(frozen=True)
class Scored:
    """The figures of an image.

    Attributes:
        rank: Its place in the ranking, from 1, the most out-of-distribution image first.
        ood_score: Higher for more out-of-distribution.
        delta_energy: See `ood_audit.scoring.scores.delta_energy`.
        energy: The energy before the reset.
        max_cosine: The cosine to the nearest class name.
        label: The nearest class.
        label_2: The runner-up, where there are two classes.
        margin: The similarity to the nearest class less that to the runner-up.
        given: The class that the image is labelled with, by its folder or by hand.
        p_value: The share of labelled images that are at least as unusual; None without calibration.
        p_distance: The share that lie at least as far from the pictures of their class.
        classes: Classes and the similarities to them, the nearest first; the given class is always there.
        neighbours: The images of the store that are most like it, the nearest first.
        place: x and y on the map, in 0 … 1.

    """

    rank: int
    ood_score: float
    delta_energy: float
    energy: float
    max_cosine: float
    label: str
    label_2: str | None
    margin: float | None
    given: str | None
    p_value: float | None = None
    p_distance: float | None = None
    classes: Sequence[tuple[str, float]] = ()
    neighbours: Sequence[Image] = ()
    place: tuple[float, float] | None = None


@dataclass(frozen=True)
class Finding:
    """One reason to look at one image.

    Attributes:
        kind: What is found. `unusual` is no finding: these images only lead the ranking.
        image: The image.
        severity: From 0 to 1.
        scored: Its figures.
        looks_like: What the group of images that it is in looks like, for `ood`.
        probabilities: That of the nearest class and that of the given one, for `label`.
        perhaps: The class that a flagged image may show in another style.
        twin: The duplicate to keep, for duplicates.
        evidence: The sentence of the finding, as in the view `findings`.
        shortcut: What goes with its class or split, in a sentence, for `shortcut`.

    """

    kind: Kind
    image: Image
    severity: float
    scored: Scored
    looks_like: str | None = None
    probabilities: tuple[float, float] | None = None
    perhaps: str | None = None
    twin: Image | None = None
    evidence: str = ""
    shortcut: str = ""


@dataclass(frozen=True)
class Group:
    """Findings that are looked at together.

    Attributes:
        name: What they have in common, as `("crab", "lobster")` for images in crab that look like lobster; empty for
            those that have nothing in common.
        count: How many there are in all.
        findings: Those on the page, the most severe first.
        elsewhere: How many are on other pages.

    """

    name: tuple[str, ...]
    count: int
    findings: Sequence[Finding]
    elsewhere: int = 0


@dataclass(frozen=True)
class Section:
    """All findings of a kind.

    Attributes:
        kind: The kind.
        count: How many there are in all.
        groups: The largest first, and those that have nothing in common last.
        page: The number of the page where it begins.

    """

    kind: Kind
    count: int
    groups: Sequence[Group]
    page: int = 1


@dataclass(frozen=True)
class Point:
    """A mark on the map.

    Attributes:
        image_id: The image.
        x: In 0 … 1.
        y: In 0 … 1.
        kind: What was found about the image.
        label: The nearest class.
        rank: Its place in the ranking, from 1.
        uri: Where the image is.

    """

    image_id: str
    x: float
    y: float
    kind: Literal["not flagged", "other finding", "flagged"]
    label: str | None
    rank: int = 1
    uri: str = ""


@dataclass(frozen=True)
class Sprites:
    """Small pictures in one large one, row by row.

    Attributes:
        picture: The large picture, as JPEG.
        size: The width and height of each small one, in pixels.
        columns: How many of them are in a row.
        uris: The images that they show, in order.

    """

    picture: bytes
    size: int
    columns: int
    uris: Sequence[str]


@dataclass(frozen=True)
class Page:
    """The page, or one of several pages of a long report.

    Attributes:
        name: The report's name.
        title: What the report is about: its sources, and its name unless that is the default.
        created: When it was made, as ISO time.
        store: The path of the store, by which the browser keeps what is decided.
        doubt: A sentence where the encoder seems not to know the classes; else empty.
        scored: How many images have a score.
        calibration: How many images the p-values were calibrated by; None where there are no p-values.
        calibrated_by: What these images are, as `labelled images`.
        sections: What was found, in the order of the page.
        unreadable: Path and error of files that could not be read, the first ones.
        unreadable_count: How many of them there are.
        classes: The names of all classes.
        typical: By class, the images that show it best.
        pictures: Thumbnails by URI, as JPEG; None where the file is gone, and no entry where there was no room.
        facts: Terms and values about how the report was made.
        notes: What a person should know, a sentence each.
        next_steps: Sentences, and a command for each.
        histogram: (low, high, count) of `ood_score`, over all images.
        cut: The `ood_score` from which on images are flagged, or listed where none can be.
        points: A sample of all images on the map, and all that are listed on this page.
        sprites: The pictures of the points that are not listed.
        number: The number of the page, from 1.
        pages: How many pages the report has.

    """

    name: str
    title: str
    created: str
    store: str
    doubt: str
    scored: int
    calibration: int | None
    calibrated_by: str
    sections: Sequence[Section]
    unreadable: Sequence[tuple[str, str]]
    unreadable_count: int
    classes: Sequence[str]
    typical: Mapping[str, Sequence[Image]] = field(default_factory=dict)
    pictures: Mapping[str, bytes | None] = field(default_factory=dict)
    facts: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    next_steps: Sequence[tuple[str, str]] = ()
    histogram: Sequence[tuple[float, float, int]] = ()
    cut: float | None = None
    points: Sequence[Point] = ()
    sprites: Sprites | None = None
    number: int = 1
    pages: int = 1
