"""Which pictures show what the classes look like, and which of them can judge a setting."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ood_audit.arrays import log_sum_exp
from ood_audit.classes import prototypes
from ood_audit.classes.prototypes import DEFAULT_WEIGHT, FOLDS, Floats, Prototypes, References
from ood_audit.classes.vocabulary import Vocabulary
from ood_audit.scoring.scores import Options
from ood_audit.scoring.selection import FEWEST_CLASSES, FEWEST_IMAGES, MOST_IMAGES, Sample, presume
from ood_audit.store import Store
from ood_audit.store.parts import has_looks, iter_features, iter_looks
from ood_audit.store.views import count_readable

if TYPE_CHECKING:
    from ood_audit.classes.labelled import Labelled
    from ood_audit.scoring.similarity import Target

_COSINES = 1 << 26  # the largest number of cosines of images to classes: 256 MiB
_SHARPNESS: list[float] = np.geomspace(0.003, 1.0, 40).tolist()


@dataclass(frozen=True)
class Calibration:
    """Labelled in-distribution images to hold a threshold to, and prototypes that have not seen them.

    Attributes:
        names: their paths or made up, so that `prototypes.fold_of` gives the fold of each.
        features: (M, D) float32 of length 1.
        labels: (M,) int.
        prototypes: one a fold.
        looks: (M, L) float32 of length 1, see `encoders.looks`; None where one of them has none.

    """

    names: list[str]
    features: Floats
    labels: NDArray[np.int64]
    prototypes: "Sequence[Prototypes | None]"
    looks: Floats | None = None

    def target(self, other: "Target") -> "Target":
        """`other` with these prototypes."""
        return replace(other, prototypes=self.prototypes)


def apart(store: Store, references: References, labelled: "Labelled", text: Floats) -> Calibration | None:
    """The labelled images that no prompt was tuned on, or 1,000 of them; None where there are none.

    They are references as well, so each is scored by prototypes made without a fifth of them, its own.
    """
    rows = labelled.held_out[prototypes.sample(len(labelled.held_out), most=MOST_IMAGES)]
    if len(rows) == 0:
        return None
    seen = None if labelled.looks is None else labelled.looks[rows]
    names = [f"{i:08x}" for i in range(len(rows))]
    if references.source == "presumed":  # in the folds of their paths, where they are under audit
        paths = _paths(store, labelled)
        names = [paths[row] or made_up for row, made_up in zip(rows, names, strict=True)]
        made = prototypes.fit_folds(references, text)
        return Calibration(names, labelled.features[rows], labelled.labels[rows], made, seen)
    folds = np.full(len(references.labels), -1)
    folds[rows] = prototypes.fold_of(names)  # the labelled images come first, see `collect`
    made = prototypes.fit_folds(replace(references, folds=folds), text)
    return Calibration(names, labelled.features[rows], labelled.labels[rows], made, seen)


def sharpness(sample: Sample, text: Floats) -> float:
    """The temperature at which the softmax of the similarities fits the sample's labels best, by likelihood."""
    rows = np.flatnonzero(sample.trusted & (sample.labels >= 0))
    if len(rows) < FEWEST_IMAGES:
        return 0.05
    folds = np.arange(len(rows)) % FOLDS
    those = References(sample.features[rows], sample.labels[rows], folds, "labelled")
    to_text = those.features @ text.T
    joined = prototypes.joined(to_text, _cosines(those.features, folds, those, to_text, text), DEFAULT_WEIGHT)
    own = joined[np.arange(len(rows)), those.labels]
    losses = [float((log_sum_exp(joined, t) - own / t).mean()) for t in _SHARPNESS]
    return _SHARPNESS[int(np.argmin(losses))]


def collect(
    store: Store,
    vocabulary: Vocabulary,
    text: Floats,
    labelled: "Labelled | None",
    defaults: Options,
    *,
    seed: int = 0,
) -> tuple[References, Sample]:
    """The references of a store, and the images that settings can be chosen with.

    These are all references, see `thinned`; or, where labels are presumed, 1,000 images of all.

    They are the images that `tune` was given and those whose folder is named as a class; where these are fewer than 60,
    or of fewer than 6 classes, the most confident half of the images, as the text features label them.

    Args:
        store: its readable images, or 20,000 of them; fewer where there are very many classes.
        vocabulary: the classes.
        text: (K, D) their text features.
        labelled: what `tune` was given.
        defaults: ΔEnergy's settings for the encoder, to presume by.
        seed: of the sampling.

    """
    most = max(MOST_IMAGES, _COSINES // len(text))
    parts = store.parts  # of one moment: images may be added in the meantime
    ids, paths, features, folders = _sampled(store, parts, seed, most)
    seen = _looks(store, parts, seed, most)
    folds = prototypes.fold_of(paths)
    labels = np.array([-1 if (k := vocabulary.class_of(folder)) is None else k for folder in folders], np.int64)
    to_text = features @ text.T
    in_folders = labels >= 0
    source: Literal["labelled", "folders", "labelled and folders", "presumed"] = "folders"
    references = References(features[in_folders], labels[in_folders], folds[in_folders], source)
    of_references = None if seen is None else seen[in_folders]
    given = np.zeros(0, bool)
    if labelled is not None:
        own = set(labelled.image_ids) - {""}
        apart = in_folders & ~np.fromiter((i in own for i in ids), bool, len(ids))
        named = _paths(store, labelled)
        theirs = np.where(np.array(named, dtype=object) == "", -1, prototypes.fold_of(named)).astype(np.int64)
        references = References(
            np.concatenate([labelled.features, features[apart]]),
            np.concatenate([labelled.labels, labels[apart]]),
            np.concatenate([theirs, folds[apart]]),
            "labelled and folders" if apart.any() else "labelled",
        )
        both = None if seen is None or labelled.looks is None else (labelled.looks, seen[apart])
        of_references = None if both is None else np.concatenate(both)
        given = np.arange(len(references.labels)) < len(labelled.labels)
    if len(references.labels) >= FEWEST_IMAGES and len(np.unique(references.labels)) >= min(FEWEST_CLASSES, len(text)):
        agrees = _predicted(references, text) == references.labels
        trusted = agrees | given if given.any() else agrees
        sample = Sample(references.features, references.labels, trusted, False, of_references)
        return references, sample
    rows, guessed = presume(to_text, defaults)
    references = References(features[rows], guessed, folds[rows], "presumed")
    some = prototypes.sample(len(features), seed, MOST_IMAGES)
    features, to_text = features[some], to_text[some]
    by_prototypes = _cosines(features, folds[some], references, to_text, text)
    joined = prototypes.joined(to_text, by_prototypes, DEFAULT_WEIGHT)
    trusted = to_text.argmax(axis=1) == by_prototypes.argmax(axis=1)
    return references, Sample(features, joined.argmax(axis=1), trusted, presumed=True)


def _predicted(references: References, text: Floats) -> NDArray[np.int64]:
    """(M,) the nearest class of each reference, by text and prototypes that have not seen it."""
    folds = np.where(references.folds < 0, np.arange(len(references.folds)) % FOLDS, references.folds)
    apart = References(references.features, references.labels, folds, references.source)
    to_text = references.features @ text.T
    by_prototypes = _cosines(references.features, folds, apart, to_text, text)
    result: NDArray[np.int64] = prototypes.joined(to_text, by_prototypes, DEFAULT_WEIGHT).argmax(axis=1)
    return result


def _cosines(
    features: Floats, folds: NDArray[np.int64], references: References, to_text: Floats, text: Floats
) -> Floats:
    found: Floats = prototypes.unseen_cosines(prototypes.fit_folds(references, text), features, folds, to_text)
    return found


def _sampled(store: Store, parts: list[Path], seed: int, most: int) -> tuple[list[str], list[str], Floats, list[str]]:
    """Ids, paths, features and folders of all readable images, or of about as many as teach anything."""
    start, share = _part_of(store, parts, seed, most)
    ids, paths, features, folders = [], [], [], []
    for batch in iter_features(store, parts=parts, start=start, share=share):
        ids += batch.image_ids.to_pylist()
        paths += batch.paths.to_pylist()
        folders += batch.folders.to_pylist()
        features.append(batch.features)
    return ids, paths, np.concatenate(features), folders


def _looks(store: Store, parts: list[Path], seed: int, most: int) -> Floats | None:
    """(N, L) the looks of the images that `_sampled` gives; None where one has none."""
    if not has_looks(parts):
        return None
    start, share = _part_of(store, parts, seed, most)
    return np.concatenate(list(iter_looks(store, parts=parts, start=start, share=share)))


def _part_of(store: Store, parts: list[Path], seed: int, most: int) -> tuple[float, float]:
    """Where the sample of the images begins, and its share of them."""
    share = min(most, prototypes.MOST) / max(1, count_readable(store, parts))
    return float(np.random.default_rng(seed).random()), share


def features_of(store: Store, seed: int, most: int = MOST_IMAGES) -> Floats:
    """(N, D) features of all readable images, or of about `most`."""
    return _sampled(store, store.parts, seed, most)[2]


def _paths(store: Store, labelled: "Labelled") -> list[str]:
    """The paths of labelled images that are under audit; "" for others."""
    if not any(labelled.image_ids):
        return [""] * len(labelled.image_ids)
    by_id = dict(store.query("SELECT image_id, path FROM images WHERE status = 'ok'").rows)
    return [by_id.get(image_id, "") for image_id in labelled.image_ids]


def thinned(sample: Sample, seed: int) -> Sample:
    """1,000 images of a sample, or all of fewer: more do not choose better settings."""
    rows = prototypes.sample(len(sample.labels), seed, MOST_IMAGES)
    seen = None if sample.looks is None else sample.looks[rows]
    return Sample(sample.features[rows], sample.labels[rows], sample.trusted[rows], sample.presumed, seen)
