"""Shortcuts: conditions that go with one class, or one split, so that a model may learn them instead of it.

With s the cosine of an image to a condition name (`classes.conditions`), or a measure of the picture such as its
brightness, μ its mean over the images of a group and over all others, and σ² its variance within the groups,

    d = (μ_group − μ_others) / σ

The p-values of these differences are adjusted over all groups and conditions by Benjamini and Hochberg's rule. Only
strong ones are found: d ≥ 5 for names and ≥ 2 for measures, and three quarters of the group (for measures 60%) above
the value that 5% of the others reach. A name that means the class is left out: by WordNet (synonyms, kinds and what it
is a kind of), by a word that both have in common, and where the text of the class is far nearer to it than those of the
other classes are.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.special import ndtr

from ood_audit.arrays import unit
from ood_audit.classes import texts, wordnet
from ood_audit.classes.prototypes import sample
from ood_audit.classes.vocabulary import Vocabulary
from ood_audit.findings.drift import adjusted
from ood_audit.findings.words import LEVEL, USUAL, Names, conditions
from ood_audit.names import key
from ood_audit.store.findings import Finding
from ood_audit.store.parts import iter_features
from ood_audit.store.store import Store

Floats = NDArray[np.float32]
Floats64 = NDArray[np.float64]
FEWEST = 10  # images of a group, and of the others
MOST = 20_000  # images that the effects are measured on
LOOKS = (  # how pictures look that have much of a measure, or little; see `images.quality.Quality`
    ("dark", "highlights", -1),
    ("dark", "brightness", -1),
    ("bright", "shadows", 1),
    ("bright", "brightness", 1),
    ("blurred", "sharpness", -1),
    ("sharp", "sharpness", 1),
    ("plain", "entropy", -1),
    ("full of detail", "entropy", 1),
    ("colourful", "saturation", 1),
    ("grey", "saturation", -1),
)
MEASURES = tuple(dict.fromkeys(column for _, column, _ in LOOKS))
# Photographs of 30, of 12 and of 7 classes differ in many ways that are no fault of the data: with the starter, names
# reach a d of 3.0, 4.5 and 4.5, and measures 1.9, but for the grey cars among the 12, which are indeed grey.
_STRONG, _SHARE = 5.0, 0.75  # the least effect d of a name, and the least share of the group that shows it
_STRONG_LOOK, _SHARE_LOOK = 2.0, 0.6  # the same two for a measure of how pictures look
_GREY = 2 / 255  # the saturation below which a picture is grey
_MEANT = 2.0  # a condition so many standard deviations nearer to a class than to the average one belongs to it
_FEW_CLASSES = 8  # with fewer classes that can't be told


@dataclass(frozen=True)
class Shortcut:
    """A condition that goes with one group.

    Attributes:
        group: The name of a class or of a split.
        is_split: Whether it is a split.
        shows: What its images do: `look like snow`, `look dark`, or `have the text "dog"`.
        effect: d; for an overlay its strength, see `overlays`; for a text the share that has it.
        share: The share of the group that does.
        share_others: The share of the other images that do.
        images: The ids of the images of the group that do, the most similar first.

    """

    group: str
    is_split: bool
    shows: str
    effect: float
    share: float
    share_others: float
    images: tuple[str, ...] = ()

    @property
    def evidence(self) -> str:
        """`92% of wolf look like snow, against 4% of the other images`."""
        whole = f"the split {self.group}" if self.is_split else self.group
        return f"{self.share:.0%} of {whole} {self.shows}, against {self.share_others:.0%} of the other images"


@dataclass(frozen=True)
class Strong:
    """A strong effect: the rows of the group and of the condition; an image shows it above `threshold`."""

    group: int
    condition: int
    effect: float
    share: float
    share_others: float
    threshold: float


def find(
    store: Store,
    images: pa.Table,
    vocabulary: Vocabulary,
    text: Floats,
    encoder: Callable[[], texts.TextEncoder] | None,
    note: Callable[[str], None],
) -> list[Shortcut]:
    """The strongest shortcut of each class and of each split, the strongest first.

    Args:
        store: The store.
        images: The columns image_id, given_label, split and `MEASURES` of the readable images.
        vocabulary: The classes.
        text: (K, D) their text features.
        encoder: Encodes the condition names where that was not done yet; None to do without.
        note: Told where the condition names have no text features, so that only measures of the pictures count.

    """
    columns = [name for name in ("given_label", "split") if pc.count_distinct(images[name]).as_py() > 1]
    if not columns:
        return []
    if (names := conditions(store, encoder)) is None:
        why = "they are not encoded in the cache" if encoder is None else "the model that encodes them is not there"
        note(f"shortcuts: none looked for by the names of conditions, as {why}")
        names = Names([], np.zeros((0, text.shape[1]), np.float32), 0.0)
    ids, features = _sampled(store, len(images))
    sampled = images.take(pc.index_in(ids, value_set=images["image_id"].combine_chunks()))
    words = [*(f"look like {name}" for name in names.names), *(f"look {word}" for word, _, _ in LOOKS)]
    values = np.hstack([features @ names.features.T, looks(sampled)])
    share = np.repeat([_SHARE, _SHARE_LOOK], [len(names.names), len(LOOKS)])
    found: list[Shortcut] = []
    for column in columns:
        groups = sampled[column].combine_chunks().cast(pa.string()).dictionary_encode()
        codes = groups.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        labels = groups.dictionary.to_pylist()
        least = np.full((len(labels), len(words)), _STRONG)
        least[:, len(names.names) :] = _STRONG_LOOK
        if column == "given_label":
            least[:, : len(names.names)][meant(labels, vocabulary, text, names)] = np.inf
        for one in strongest(values[codes >= 0], codes[codes >= 0], least, share):
            own = images.filter(pc.equal(images[column], labels[one.group]))
            if one.condition < len(names.names):
                showing = _like(store, own["image_id"].combine_chunks(), names.features[one.condition], one.threshold)
            else:
                showing = _above(own, looks(own)[:, one.condition - len(names.names)], one.threshold)
            word, is_split = words[one.condition], column == "split"
            found.append(Shortcut(labels[one.group], is_split, word, one.effect, one.share, one.share_others, showing))
    return sorted(found, key=lambda one: -one.effect)


def findings(found: Sequence[Shortcut], images: Mapping[str, tuple[str, str]], report: str) -> Iterator[Finding]:
    """A finding for each image that shows a shortcut.

    Args:
        found: The shortcuts.
        images: The URI and the path of each of these images by its id.
        report: The report's name.

    """
    for one in found:
        severity = min(1.0, max(0.0, (one.share - one.share_others) / 2))  # the image itself may well be right
        todo = f"add images of {one.group} that do not {one.shows}, and others that do"
        for image_id in one.images:
            yield Finding(image_id, *images[image_id], "shortcut", severity, one.evidence, todo, report)


def strongest(values: Floats, groups: NDArray[np.int64], least: Floats64, share: Floats64) -> Iterator[Strong]:
    """The strongest effect of each group that has one.

    Args:
        values: (N, M) how much each image shows each condition; NaN where that is not known.
        groups: (N,) the group of each image, in 0 … G − 1.
        least: (G, M) the effect from which on a condition is a shortcut of a group.
        share: (M,) the share of the group that must show it.

    """
    known = ~np.isnan(values)
    usual = np.where(known, values, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    values = np.where(known, values, usual)
    counts = np.bincount(groups, minlength=len(least))
    sums = np.zeros(least.shape)
    np.add.at(sums, groups, values)
    means = sums / np.maximum(counts, 1)[:, None]
    others = (sums.sum(axis=0) - sums) / np.maximum(len(groups) - counts, 1)[:, None]
    effect = (means - others) / np.sqrt(np.maximum(((values - means[groups]) ** 2).mean(axis=0), 1e-12))
    enough = (counts >= FEWEST) & (len(groups) - counts >= FEWEST)
    spread = np.sqrt(1 / np.maximum(counts, 1) + 1 / np.maximum(len(groups) - counts, 1))
    p = adjusted(ndtr(-effect[enough] / spread[enough, None]).ravel()).reshape(-1, values.shape[1])
    strong = np.full(effect.shape, -np.inf)
    strong[enough] = np.where((p <= LEVEL) & (effect[enough] >= least[enough]), effect[enough], -np.inf)
    for group, effects in enumerate(strong):
        those = groups == group
        for condition in np.argsort(-effects, kind="stable")[: np.isfinite(effects).sum()].tolist():
            own = values[:, condition]
            threshold = float(np.quantile(own[~those], 1 - USUAL))
            inside, outside = (float((own[rows] > threshold).mean()) for rows in (those, ~those))
            if inside >= share[condition]:
                yield Strong(group, condition, float(effects[condition]), inside, outside, threshold)
                break


def meant(labels: Sequence[str], vocabulary: Vocabulary, text: Floats, names: Names) -> NDArray[np.bool_]:
    """(G, M): which names mean which classes."""
    places = [vocabulary.position(label) for label in labels]
    found = np.zeros((len(labels), len(names.names)), bool)
    words = [set(key(name).split()) for name in names.names]
    for row, k in enumerate(places):
        if k is not None:
            own = vocabulary.spoken[k]
            same = set().union(*map(wordnet.same_thing, own))
            spoken = {word for name in own for word in key(name).split()}
            found[row] = [name in same or bool(parts & spoken) for name, parts in zip(names.names, words, strict=True)]
    if len(text) >= _FEW_CLASSES:
        cosines = text @ names.features.T
        near = (cosines - cosines.mean(axis=0)) / np.maximum(cosines.std(axis=0), 1e-6) >= _MEANT
        for row, k in enumerate(places):
            found[row] |= near[k] if k is not None else False
    return found


def _sampled(store: Store, total: int) -> tuple[pa.Array, Floats]:
    """The ids and features of a random sample of the images."""
    chosen = sample(total, most=MOST)
    ids, features, start = [], [], 0
    for batch in iter_features(store):
        rows = chosen[(chosen >= start) & (chosen < start + len(batch.codes))] - start
        start += len(batch.codes)
        if len(rows):
            ids.append(batch.image_ids.take(pa.array(rows)))
            features.append(unit(batch.codes[rows]))
    return pa.concat_arrays(ids), np.concatenate(features)


def looks(images: pa.Table) -> Floats:
    """(N, L): how much the images look like each of `LOOKS`; NaN where that is not known."""
    measures = {name: images[name].cast(pa.float32()).to_numpy() for name in MEASURES}
    grey = measures["saturation"]
    columns = [
        np.where(np.isnan(grey), grey, grey < _GREY) if word == "grey" else sign * measures[name]
        for word, name, sign in LOOKS
    ]
    return np.stack(columns, axis=1).astype(np.float32)


def _above(images: pa.Table, values: Floats, threshold: float) -> tuple[str, ...]:
    """The ids of the images with a value above the threshold, the largest first."""
    rows = np.flatnonzero(values > threshold)
    return tuple(images["image_id"].take(pa.array(rows[np.argsort(-values[rows], kind="stable")])).to_pylist())


def _like(store: Store, own: pa.Array, name: Floats, threshold: float) -> tuple[str, ...]:
    """The ids of those images that look like a name, the most similar first."""
    found: list[tuple[float, str]] = []
    for batch in iter_features(store):
        similar = batch.features @ name
        rows = np.flatnonzero((similar > threshold) & pc.is_in(batch.image_ids, value_set=own).to_numpy(False))
        found += zip((-similar[rows]).tolist(), batch.image_ids.take(pa.array(rows)).to_pylist(), strict=True)
    return tuple(image_id for _, image_id in sorted(found))
