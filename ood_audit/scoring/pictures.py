"""The ranking of a folder where pictures show what the classes look like: three kinds of evidence, joined by ranks.

The pictures are labelled images, or those in class folders whose nearest class is that of their folder. Each piece of
evidence is higher for more out-of-distribution images. With the similarities s(β) of an image to the classes, where β
is the weight of the class prototypes (see `classes.prototypes`):

    energy    −ΔE, its settings chosen by leaving classes out, see `scoring.selection`
    distance  −max_k s_k(½): how far the image is from every class, by name and pictures alike
    nearest   −cosine to the nearest picture, near duplicates and the image itself apart

    ood_score = P(energy) + ½ P(distance) + ½ P(nearest)

P is the normal quantile of the rank among the images under audit. Whether it is that or −ΔE alone is chosen by leaving
classes out as well: whichever tells the classes that are left out better. Few pictures of many classes that the encoder
knows by name add noise, and are not joined; `benchmarks/pictures.py` measures both.

Labelled images can be held against this score like any image: P looks their evidence up in the same ranks.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ood_audit.scoring import selection
from ood_audit.scoring.joining import auroc, quantiles_within
from ood_audit.scoring.scores import Options

if TYPE_CHECKING:
    import torch

    from ood_audit.classes.pools import Pool
    from ood_audit.scoring.selection import Round, Sample
    from ood_audit.scoring.similarity import Chunk

Numbers = NDArray[np.float64]
Floats = NDArray[np.float32]

WEIGHT = 0.5  # of each piece of evidence beside the energy
_DISTANCE_WEIGHT = 0.5  # of the prototypes in `distance`


@dataclass(frozen=True)
class Pictures:
    """What the evidence is computed with.

    Attributes:
        features: (M, D) float32 of length 1, of images that show the classes.
        duplicate: the cosine above which two images are near duplicates.

    """

    features: Floats
    duplicate: float


@dataclass(frozen=True)
class PictureEvidence:
    """The evidence about some images, (N,) float64 each; see the module."""

    energy: Numbers
    distance: Numbers
    nearest: Numbers


def forecasts(
    sample: "Sample", text: Floats, settings: Options, background: "Pool | None", duplicate: float, *, seed: int
) -> tuple[float, float]:
    """How well classes that are left out are told from the others, as a mean AUROC: by −ΔE alone, and by all evidence.

    Args:
        sample: images of known classes.
        text: (K, D) text features of the classes.
        settings: those of ΔEnergy.
        background: the background names, where the settings have them.
        duplicate: the cosine above which two images are near duplicates.
        seed: of the choice of classes.

    """
    grid, found = selection.Grid.only(settings), []
    for played in selection.play(sample, text, {}, grid, background=background, seed=seed):
        evidence = _evidence_in(played, settings, duplicate)
        is_ood = played.is_ood
        found.append([auroc(values[~is_ood], values[is_ood]) for values in (evidence.energy, join(evidence))])
    alone, joined = np.mean(found, axis=0)
    return float(alone), float(joined)


def _evidence_in(played: "Round", settings: Options, duplicate: float) -> PictureEvidence:
    """The evidence about the judged images of a round, by pictures of the kept classes that are of another part."""
    import torch

    similarities = torch.lerp(played.to_text, played.to_prototypes, _DISTANCE_WEIGHT)
    cosines = torch.from_numpy(played.features @ played.references.T)
    cosines[torch.from_numpy(played.part_of[:, None] == played.reference_part_of)] = -1.0
    found = -played.delta_energy(settings), -similarities.amax(dim=1), _nearest(cosines, duplicate)
    return PictureEvidence(*(values.double().numpy() for values in found))


def evidence_of(chunk: "Chunk", pictures: Pictures) -> tuple[Numbers, Numbers]:
    """`distance` and `nearest` of the images of a chunk, (N,) each; `energy` is what the score gives."""
    import torch

    distance = -chunk.largest(_DISTANCE_WEIGHT, 1)[0][:, 0]
    features = torch.from_numpy(pictures.features).to(chunk.images.device)
    nearest = _nearest(chunk.images @ features.T, pictures.duplicate)
    return distance.cpu().double().numpy(), nearest.cpu().double().numpy()


def _nearest(cosines: "torch.Tensor", duplicate: float) -> "torch.Tensor":
    """(N, M) cosines to the pictures → (N,) `nearest`."""
    return -cosines.masked_fill(cosines > duplicate, -1.0).amax(dim=1)


def join(images: PictureEvidence, of: PictureEvidence | None = None) -> Numbers:
    """Join the evidence about images by their ranks.

    Args:
        images: the evidence about all images under audit, among which ranks are taken.
        of: the evidence about the images to score, where these are others.

    Returns:
        (N,) float64, the ood_score of each image, higher for more out-of-distribution.

    """
    own = images if of is None else of
    score = quantiles_within(own.energy, images.energy)
    score += WEIGHT * quantiles_within(own.distance, images.distance)
    score += WEIGHT * quantiles_within(own.nearest, images.nearest)
    return score
