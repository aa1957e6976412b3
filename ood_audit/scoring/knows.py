"""Whether the encoder knows the classes at all: where it does not, no ranking by their names means anything.

Each of the more confident 70% of a sample of images loses the name that it is nearest to, and so plays an image of an
unknown class. An encoder that knows the classes tells such images from all others by ΔEnergy (c = 1, v = 0). One that
does not know them, such as the starter on sketches, hardly does: no name fits much better than the next. Names that it
does not know also attract few images, or none.
"""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from ood_audit.arrays import Spanned
from ood_audit.classes import prototypes
from ood_audit.scoring import outside
from ood_audit.scoring.joining import energy_of
from ood_audit.scoring.ranks import auroc, ranks
from ood_audit.scoring.selection import FEWEST_CLASSES, FEWEST_IMAGES
from ood_audit.text import printable

Floats = NDArray[np.float32]
_MOST_IMAGES = 500
_CONFIDENT = 0.7
# Chosen on photos, paintings, cartoons and sketches of seven classes, everyday and aerial pictures.
_LEAST_AUROC, _LEAST_AUROC_ALONE = 0.70, 0.65  # with background names, and without
_LEAST_SHARE = 0.08  # the classes are known, however alike, if each name is nearest to more of the images
_ATTRACTS = 0.2  # a name is unknown that attracts a smaller part of its even share of the images
_SHOWN = 5


class Doubt(TypedDict):
    """Why the encoder seems not to know the classes.

    Attributes:
        auroc: How well images without their name are told from all images, 0.5 for not at all.
        unknown: The numbers of the classes whose names attract next to no images.

    """

    auroc: float
    unknown: list[int]


def doubt(images: Floats, text: Floats, background: Spanned | None, temperature: float) -> Doubt | None:
    """Why the encoder seems not to know the classes; None where it seems to, or where there is too little to tell.

    Args:
        images: (N, D) image features, a fair sample.
        text: (K, D) text features of the classes.
        background: the text features of the background names, or None.
        temperature: τ of ΔEnergy.

    """
    if len(images) < FEWEST_IMAGES or len(text) < FEWEST_CLASSES:
        return None
    images = images[prototypes.sample(len(images), most=_MOST_IMAGES)]
    cosines = (images @ text.T).astype(np.float64)
    others = np.full(len(images), -np.inf)
    if background is not None:
        others = outside.sums(images, background, temperature)[0].astype(np.float64)
    nearest = cosines.argmax(axis=1)
    energy = energy_of(cosines, others, temperature)
    confident = ranks(energy) < _CONFIDENT
    cosines[np.arange(len(cosines)), nearest] = -np.inf
    told = auroc(energy, energy_of(cosines[confident], others[confident], temperature))
    share = np.bincount(nearest, minlength=len(text)) / len(images)
    least = _LEAST_AUROC_ALONE if background is None else _LEAST_AUROC
    if told >= least or share.min() >= _LEAST_SHARE:
        return None
    return {"auroc": told, "unknown": np.flatnonzero(share < _ATTRACTS / len(text)).tolist()}


def sentence(found: Doubt, names: Sequence[str]) -> str:
    """What a person should know and do about a `doubt`."""
    unknown = [printable(names[k]) for k in found["unknown"]]
    which = ""
    if unknown:
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        which = f" Next to no image resembles {', '.join(unknown[:_SHOWN])}{more}."
    return (
        f"This encoder does not know these classes, so that the ranking says little.{which} Use another --model, or "
        "label some images: `ood-audit labels add FOLDER`."
    )
