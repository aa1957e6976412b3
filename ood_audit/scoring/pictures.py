"""What ranks a folder where labelled images show what the classes look like: three kinds of evidence, joined by ranks.

Each piece of evidence is higher for more out-of-distribution images. With the similarities s(β) of an image to the
classes, where β is the weight of the class prototypes (see `classes.prototypes`):

    energy    −ΔE, its settings chosen by leaving classes out, see `scoring.selection`
    distance  −max_k s_k(½): how far the image is from every class, by name and pictures alike
    nearest   −cosine to the nearest labelled image, without near duplicates

    ood_score = P(energy) + G [ P(distance) + ¼ P(nearest) ]

P is the normal quantile of the rank among the images under audit. G, from 0 to 1, is how much the labelled images say
that the names do not: they are scored by prototypes that have not seen them, and G grows from 0, where the prototypes
take at most 35% off the cross-entropy of the labels, to 1 at 60%. Few pictures of many classes that the encoder
knows by name add noise, and get no weight; pictures of classes whose names it does not know get all.

Labelled images can be held against this score like any image: P looks their evidence up in the same ranks.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from ood_audit.classes import prototypes
from ood_audit.classes.prototypes import FOLDS, References
from ood_audit.scoring.joining import quantiles_within

if TYPE_CHECKING:
    from ood_audit.scoring.similarity import Chunk

Numbers = NDArray[np.float64]
Floats = NDArray[np.float32]

_DISTANCE_WEIGHT = 0.5  # of the prototypes in `distance`
_NEAREST = 0.25  # how much `nearest` counts
_FALL = (0.35, 0.6)  # shares of the cross-entropy
_WEIGHTS = (0.05, 0.1, 0.2, 0.3)
_TEMPERATURES = np.geomspace(0.003, 1.0, 25)


@dataclass(frozen=True)
class Pictures:
    """What the evidence is computed with.

    Attributes:
        gain: G, from 0 to 1.
        duplicate: the cosine above which two images are near duplicates.

    """

    gain: float
    duplicate: float


@dataclass(frozen=True)
class PictureEvidence:
    """The evidence about some images, (N,) float64 each; see the module."""

    energy: Numbers
    distance: Numbers
    nearest: Numbers


def gain_of(references: References, text: Floats) -> float:
    """G, from 0 to 1: how much labelled images say about the classes that the names do not.

    Args:
        references: labelled images, with (M, D) features of length 1 and (M,) labels.
        text: (K, D) text features of the classes.

    """
    labels, rows = references.labels, np.arange(len(references.labels))
    folds = _folds(labels)
    to_text = references.features @ text.T
    to_prototypes = to_text.copy()
    for fold in range(FOLDS):
        made = prototypes.fit(references.features[folds != fold], labels[folds != fold], text)
        if made is not None:
            those = folds == fold
            to_prototypes[those] = made.cosines_without_torch(references.features[those], to_text[those])

    def cross_entropy(weight: float) -> float:
        similarities = ((1 - weight) * to_text + weight * to_prototypes).astype(np.float64)
        own = similarities[rows, labels]
        return min(float(np.mean(logsumexp(similarities / t, axis=1) - own / t)) for t in _TEMPERATURES)

    by_name = cross_entropy(0.0)
    if by_name <= 0:
        return 0.0
    fall = 1 - min(cross_entropy(weight) for weight in _WEIGHTS) / by_name
    return float(np.clip((fall - _FALL[0]) / (_FALL[1] - _FALL[0]), 0, 1))


def evidence_of(chunk: "Chunk", pictures: Pictures) -> tuple[Numbers, Numbers]:
    """`distance` and `nearest` of the images of a chunk, (N,) each; `energy` is what the score gives."""
    distance = -chunk.largest(_DISTANCE_WEIGHT, 1)[0][:, 0]
    cosines = chunk.images @ chunk.tensors["references"].T
    nearest = -cosines.masked_fill(cosines > pictures.duplicate, -1.0).amax(dim=1)
    return distance.cpu().double().numpy(), nearest.cpu().double().numpy()


def join(pictures: Pictures, images: PictureEvidence, of: PictureEvidence | None = None) -> Numbers:
    """Join the evidence about images by their ranks.

    Args:
        pictures: what the evidence was computed with.
        images: the evidence about all images under audit, among which ranks are taken.
        of: the evidence about the images to score, where these are others.

    Returns:
        (N,) float64, the ood_score of each image, higher for more out-of-distribution.

    """
    own = images if of is None else of
    score = quantiles_within(own.energy, images.energy)
    if pictures.gain:
        beside = quantiles_within(own.distance, images.distance)
        beside += _NEAREST * quantiles_within(own.nearest, images.nearest)
        score = score + pictures.gain * beside
    return score


def _folds(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """(M,) the fold of each image: those of one class are dealt out in turn."""
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    within = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    folds = np.empty(len(labels), np.int64)
    folds[order] = within % FOLDS
    return folds
