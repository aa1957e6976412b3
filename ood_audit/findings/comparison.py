"""What a comparison of two sets of images finds: drift, classes, words, measures, and images that stand out."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ood_audit.classes import texts, vocabulary
from ood_audit.errors import UsageError
from ood_audit.findings import drift, sides, words
from ood_audit.findings.sides import Side
from ood_audit.findings.words import EXAMPLES, USUAL
from ood_audit.frames import Tabular
from ood_audit.progress import Progress
from ood_audit.store.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

LEVEL = 0.01  # the p-value up to which two sets differ
FDR = 0.05  # the false discovery rate of classes and measures
_LEAST = 0.2  # rank-biserial correlation of a measure that is worth a line
_COLUMNS = ("kind", "name", "reference", "other", "effect", "low", "high", "p_value", "evidence")


@dataclass(frozen=True)
class Difference:
    """One difference between the two sets.

    Attributes:
        kind: `drift` (the test of all features), `class` (the share of a class), `word` (a name that the other images
            look more like), `measure` (a property such as the brightness) or `image` (one that is unlike the
            reference).
        name: The class, the word, the measure, or the path of the image.
        reference: The share, or the median of the measure, in the reference; None for drift and images.
        other: The same for the other set.
        effect: The AUROC of the test; the change of a share; for words the difference of the mean similarities in
            standard deviations; for measures the rank-biserial correlation; for images the cosine to the nearest image
            of the reference.
        low: The lower end of the 95% interval of a change of a share; None elsewhere.
        high: The upper end.
        p_value: Adjusted by Benjamini and Hochberg's rule for classes, words and measures; conformal for images.
        evidence: The difference in a sentence.
        examples: URIs of images of the other set that show it.
        nearest: The URI of the image of the reference that is most like this one, for images.

    """

    kind: str
    name: str
    effect: float
    p_value: float
    evidence: str
    reference: float | None = None
    other: float | None = None
    low: float | None = None
    high: float | None = None
    examples: tuple[str, ...] = ()
    nearest: str = ""


@dataclass(frozen=True, repr=False)
class Comparison(Tabular):
    """How one set of images differs from another, the reference.

    Attributes:
        reference: The name of the reference, as it was given.
        other: The name of the other set.
        images: How many images of the reference and of the other set were compared.
        auroc: How well a classifier tells the two sets apart: 0.5 not at all, 1 without an error.
        p_value: Of the two-sample test.
        unlike: How many of the other images are as far from the reference as only 5% of it are.
        rows: The differences; the first is the test, and the images unlike the reference come last.
        notes: What a person should know, a sentence each.
        html: The page; None where none was written.

    """

    reference: str
    other: str
    images: tuple[int, int]
    auroc: float
    p_value: float
    unlike: int
    rows: list[Difference]
    notes: list[str]
    html: Path | None = None

    @property
    def expected(self) -> float:
        """How many images would be `unlike` where the two sets do not differ, at most."""
        return USUAL * self.images[1]

    @property
    def drift(self) -> bool:
        """Whether the two sets differ, at a level of 1%."""
        return self.p_value <= LEVEL

    def __repr__(self) -> str:
        return f"Comparison({self.reference!r}, {self.other!r}, auroc={self.auroc:.2f}, p_value={self.p_value:.3g})"

    def of(self, kind: str) -> list[Difference]:
        """The differences of a kind."""
        return [row for row in self.rows if row.kind == kind]

    def to_arrow(self) -> "pa.Table":
        """All differences as an Arrow table."""
        import pyarrow as pa

        kinds = dict.fromkeys(_COLUMNS, pa.float64()) | dict.fromkeys(("kind", "name", "evidence"), pa.string())
        schema = pa.schema([*kinds.items(), ("examples", pa.list_(pa.string()))])
        return pa.table({name: [_plain(getattr(row, name)) for row in self.rows] for name in schema.names}, schema)

    def _shown_columns(self) -> tuple[str, ...]:
        return ("kind", "name", "p_value", "evidence")


def find(
    store: Store,
    reference: str,
    other: str,
    *,
    labels: str | Path | Sequence[str] | None,
    top: int,
    seed: int,
    device: str,
    note: Callable[[str], None],
    on_progress: Progress,
) -> Comparison:
    """Compare two sets of images; see `reports.comparison.compare`."""
    on_progress("reading the features")
    a, b = sides.both(store, reference, other)
    notes = [f"{_sampled(side)} are compared, drawn at random" for side in (a, b) if side.total > len(side)]
    on_progress("testing for drift")
    tested = _tested(a, b, seed, notes)
    encoder = texts.encoder_of(store, device, on_progress)
    classes = _classes(store, a, b, labels, encoder, note, notes)
    named: list[Difference] = []
    if tested.p_value <= LEVEL:
        on_progress("finding words")
        named = _words(store, a, b, encoder, notes)
    else:
        notes.append("no words are looked for, as the two sets do not differ by the test")
    unlike, images = _unlike(a, b, top)
    rows = [_drift(a, b, tested), *named, *measures(a, b), *classes, *images]
    return Comparison(a.name, b.name, (len(a), len(b)), tested.auroc, tested.p_value, unlike, rows, notes)


def _sampled(side: Side) -> str:
    """`10,000 of the 52,000 images of train`."""
    return f"{len(side):,} of the {side.total:,} images of {side.name}"


def _tested(a: Side, b: Side, seed: int, notes: list[str]) -> drift.TwoSample:
    """The two-sample test, of images that are independent of each other."""
    own, theirs = sides.independent(a, b, seed)
    if len(own) == len(a) and len(theirs) == len(b):
        return drift.two_sample(a.features, b.features, seed)
    there = f"{len(own):,} of {a.name} and {len(theirs):,} of {b.name}"
    if min(len(own), len(theirs)) >= drift.FEWEST:
        notes.append(f"one picture of each recording is tested for drift, {there}")
        return drift.two_sample(a.features[own], b.features[theirs], seed)
    notes.append(
        f"the recordings are too few to be tested for drift, {there}; their pictures are, as if each was taken by "
        "itself: two recordings differ, whatever they show"
    )
    return drift.two_sample(a.features, b.features, seed)


def _drift(a: Side, b: Side, tested: drift.TwoSample) -> Difference:
    if tested.p_value <= LEVEL:
        text = f"the two sets differ: a classifier tells them apart with an AUROC of {tested.auroc:.2f}"
    else:
        text = f"no difference is found: a classifier that tells them apart has an AUROC of {tested.auroc:.2f}"
    return Difference("drift", f"{b.name} against {a.name}", tested.auroc, tested.p_value, text)


def _classes(
    store: Store,
    a: Side,
    b: Side,
    labels: str | Path | Sequence[str] | None,
    encoder: Callable[[], texts.TextEncoder],
    note: Callable[[str], None],
    notes: list[str],
) -> list[Difference]:
    """The classes whose share changes most, the surest first: by the folders where all images are in one of a class."""
    try:
        own = vocabulary.choose(store, labels, None, note)
    except UsageError:
        if labels is not None:
            raise
        notes.append("no shares of classes, as there is no list of classes")
        return []
    given = [[own.class_of(folder) for folder in side.values("folder")] for side in (a, b)]
    by_folder = not any(k is None for side in given for k in side)
    if not by_folder:
        text = vocabulary.cached_features(store, own, encoder)
        given = [(side.features @ text.T).argmax(axis=1).tolist() for side in (a, b)]
    notes.append(f"the class of an image is {'that of its folder' if by_folder else 'the one whose name is nearest'}")
    counts = [Counter(side) for side in given]
    there = [k for k in range(len(own.names)) if counts[0][k] + counts[1][k]]
    found = [drift.change_of_share(counts[0][k], len(a), counts[1][k], len(b)) for k in there]
    p = drift.adjusted([row[3] for row in found])
    rows = []
    for k, (change, low, high, _), p_value in zip(there, found, p.tolist(), strict=True):
        before, after = counts[0][k] / len(a), counts[1][k] / len(b)
        evidence = f"{after:.1%} against {before:.1%} ({low:+.1%} to {high:+.1%})"
        examples = tuple(uri for uri, own_k in zip(b.values("uri"), given[1], strict=True) if own_k == k)[:EXAMPLES]
        name = own.names[k]
        rows.append(Difference("class", name, change, p_value, evidence, before, after, low, high, examples))
    return sorted(rows, key=lambda row: (row.p_value, -abs(row.effect), row.name))


def _words(
    store: Store, a: Side, b: Side, encoder: Callable[[], texts.TextEncoder], notes: list[str]
) -> list[Difference]:
    families = [names for names in (words.conditions(store, encoder), words.things(store)) if names is not None]
    if not families:
        notes.append("no words, as no names are encoded for this model")
        return []
    uris = b.values("uri")
    return [
        Difference(
            "word",
            word.name,
            word.effect,
            word.p_value,
            f"{word.share:.0%} look like {word.name}, against {word.share_reference:.0%}",
            word.share_reference,
            word.share,
            examples=tuple(uris[row] for row in word.examples),
        )
        for word in words.contrast(a.features, b.features, families)
    ]


def measures(a: Side, b: Side) -> list[Difference]:
    """The measures that differ, of the images whose measures the store has; by Mann and Whitney's test."""
    from scipy.stats import mannwhitneyu

    found = []
    for name, said in sides.MEASURES.items():
        own, theirs = (side.images[name].drop_null().to_numpy().astype(np.float64) for side in (a, b))
        if len(own) and len(theirs):
            test = mannwhitneyu(theirs, own)
            effect = 2 * float(test.statistic) / (len(own) * len(theirs)) - 1
            medians = float(np.median(own)), float(np.median(theirs))
            found.append((name, said[effect < 0], effect, medians, float(test.pvalue)))
    p = drift.adjusted([row[-1] for row in found]).tolist()
    return [
        Difference(
            "measure",
            said,
            effect,
            value,
            f"the median {name} is {_short(after)} against {_short(before)}",
            before,
            after,
        )
        for (name, said, effect, (before, after), _), value in zip(found, p, strict=True)
        if value <= FDR and abs(effect) >= _LEAST
    ]


def _unlike(a: Side, b: Side, top: int) -> tuple[int, list[Difference]]:
    """How many images are as far from the reference as 5% of it are, and the first `top`."""
    p, cosines, nearest = drift.unlike(a.features, b.features)
    first = np.lexsort((cosines, p))[:top]
    paths, uris, reference = b.values("path"), b.values("uri"), a.values("uri")
    rows = [
        Difference(
            "image",
            paths[row],
            float(cosines[row]),
            float(p[row]),
            f"{p[row]:.1%} of the reference is as far from the rest of it",
            examples=(uris[row],),
            nearest=reference[nearest[row]],
        )
        for row in first
    ]
    return int((p <= USUAL).sum()), rows


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
