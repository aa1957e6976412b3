"""The ranking of a folder where pictures show what the classes look like: three kinds of evidence, joined by ranks.

The pictures are labelled images, or those in class folders whose nearest class is that of their folder. Each piece of
evidence is higher for more out-of-distribution images. With the similarities s(β) of an image to the classes, where β
is the weight of the class prototypes (see `classes.prototypes`):

    energy    −ΔE, its settings chosen by leaving classes out, see `scoring.selection`
    distance  −max_k s_k(½): how far the image is from every class, by name and pictures alike
    nearest   −cosine to the nearest picture, near duplicates and the image itself apart. All pictures count, so that in
              a folder where images have siblings, such as frames or crops, one without any stands out

    ood_score = P(energy) + ½ P(distance) + w P(nearest)

w is 1 where `nearest` is by the looks of the images (see `encoders.looks`), which tell it best, and ½ where there are
none and it is by their features.

P is the normal quantile of the rank among the images under audit. Whether it is that or −ΔE alone is chosen by leaving
classes out as well: whichever tells the classes that are left out better. Few pictures of many classes that the encoder
knows by name add noise, and are not joined; `benchmarks/pictures.py` measures both.

Labelled images can be held against this score like any image: P looks their evidence up in the same ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ood_audit.arrays import Array, beside, namespace, to_numpy
from ood_audit.classes import prototypes
from ood_audit.scoring.joining import quantiles_within
from ood_audit.scoring.ranks import auroc

if TYPE_CHECKING:
    from ood_audit.scoring.selection import Outcome, Round, Sample
    from ood_audit.scoring.similarity import Chunk

Numbers = NDArray[np.float64]
Floats = NDArray[np.float32]

_WEIGHT, _LOOKS_WEIGHT = 0.5, 1.0
_DISTANCE_WEIGHT = 0.5  # of the prototypes in `distance`
_MOST_COSINES = 1_000_000_000  # of all images to the pictures: of 100,000 images to 10,000
_FEWEST = 1000  # pictures that are compared with however many images there are
_BLOCK = 512
_COPIES = 4  # the image itself and a few copies; those with more are compared with all pictures


@dataclass(frozen=True)
class Pictures:
    """What the evidence is computed with.

    Attributes:
        features: (M, D) float32 of length 1, of images that show the classes.
        labels: (M,) their classes.
        duplicate: the cosine above which two images are near duplicates.
        looks: (M, L) float32 of length 1; None where `nearest` is by features.

    """

    features: Floats
    labels: NDArray[np.int64]
    duplicate: float
    looks: Floats | None = None

    @property
    def weight(self) -> float:
        """w of the module."""
        return _WEIGHT if self.looks is None else _LOOKS_WEIGHT


@dataclass(frozen=True)
class PictureEvidence:
    """The evidence about some images, (N,) float64 each; see the module."""

    energy: Numbers
    distance: Numbers
    nearest: Numbers


def shown(sample: "Sample", duplicate: float, audited: int) -> Pictures:
    """The images of a sample whose label is sure; a part of them where all would take long to compare.

    Args:
        sample: images of known classes.
        duplicate: the cosine above which two images are near duplicates.
        audited: how many images are to be compared with them.

    """
    rows = np.flatnonzero(sample.trusted & (sample.labels >= 0))
    rows = rows[prototypes.sample(len(rows), most=max(_FEWEST, _MOST_COSINES // max(1, audited)))]
    looks = None if sample.looks is None else sample.looks[rows]
    return Pictures(sample.features[rows], sample.labels[rows], duplicate, looks)


def forecast(rounds: Sequence["Outcome"], weight: float) -> float:
    """How well all evidence tells classes that are left out from the others, as a mean AUROC.

    Args:
        rounds: as `selection.select` gives them, with `evidence_in` to look at each.
        weight: of `nearest`.

    """
    found = []
    for one in rounds:
        score = join(PictureEvidence(-one.raw.astype(np.float64), *one.beside), weight)
        found.append(auroc(score[~one.is_ood], score[one.is_ood]))
    return float(np.mean(found))


def evidence_in(played: "Round", pictures: Pictures) -> tuple[Numbers, Numbers]:
    """`distance` and `nearest` of the judged images of a round, (J,) each, by pictures of the kept classes."""
    similarities = prototypes.joined(played.to_text, played.to_prototypes, _DISTANCE_WEIGHT)
    rows = played.kept[pictures.labels]
    looks = None if pictures.looks is None else pictures.looks[rows]
    kept = Pictures(pictures.features[rows], pictures.labels[rows], pictures.duplicate, looks)
    return -similarities.max(axis=1).astype(np.float64), nearest(played.features, kept, played.looks)


def evidence_of(chunk: "Chunk", pictures: Pictures) -> tuple[Numbers, Numbers]:
    """`distance` and `nearest` of the images of a chunk, (N,) each; `energy` is what the score gives.

    Where `nearest` is by looks, which chunks do not have, it is NaN here.
    """
    distance = -to_numpy(chunk.largest(_DISTANCE_WEIGHT, 1)[0][:, 0]).astype(np.float64)
    if pictures.looks is not None:
        return distance, np.full(len(distance), np.nan)
    return distance, nearest(chunk.images, pictures)


def nearest(images: Array, pictures: Pictures, looks: Floats | None = None) -> Numbers:
    """`nearest` of (N, D) images; by their (N, L) looks where `pictures` have any."""
    found = []
    for start in range(0, len(images), _BLOCK):
        rows = slice(start, start + _BLOCK)
        if looks is None or pictures.looks is None:
            largest = to_numpy(_most_alike(images[rows], pictures))
        else:
            largest = _most_alike_by_looks(images[rows], looks[rows] @ pictures.looks.T, pictures)
        found.append(-largest.astype(np.float64))
    return np.concatenate(found) if found else np.empty(0)


def _most_alike(images: Array, pictures: Pictures) -> Array:
    """(N,) the largest cosine of each image to pictures that are no near duplicates of it; −1 where all are."""
    cosines = images @ beside(pictures.features, images).T
    cosines[cosines > pictures.duplicate] = -1.0
    return namespace(images).max(cosines, axis=1)


def _most_alike_by_looks(images: Floats, cosines: Floats, pictures: Pictures) -> Floats:
    """As `_most_alike`, by the (N, M) cosines between looks, which are overwritten.

    Only the pictures with the largest are compared by their features, which takes a third of the time.
    """
    largest, rows = np.empty(len(images), np.float32), np.arange(len(images))
    for _ in range(_COPIES):
        at = cosines[rows].argmax(axis=1)
        largest[rows] = cosines[rows, at]
        copies = np.einsum("nd,nd->n", images[rows], pictures.features[at]) > pictures.duplicate
        rows, at = rows[copies], at[copies]
        cosines[rows, at] = -1.0
        if not len(rows):
            return largest
    rest = cosines[rows]
    rest[images[rows] @ pictures.features.T > pictures.duplicate] = -1.0
    largest[rows] = rest.max(axis=1)
    return largest


def join(images: PictureEvidence, weight: float, of: PictureEvidence | None = None) -> Numbers:
    """Join the evidence about images by their ranks.

    Args:
        images: the evidence about all images under audit, among which ranks are taken.
        weight: of `nearest`, see `Pictures.weight`.
        of: the evidence about the images to score, where these are others.

    Returns:
        (N,) float64, the ood_score of each image, higher for more out-of-distribution.

    """
    own = images if of is None else of
    score = quantiles_within(own.energy, images.energy)
    score += _WEIGHT * quantiles_within(own.distance, images.distance)
    score += weight * quantiles_within(own.nearest, images.nearest)
    return score
