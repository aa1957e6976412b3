"""How alike the images under audit and the labelled ones are: what the labelled ones teach holds for images like them.

Prompts that were tuned on photos, and prototypes of photos, tell drawings apart worse than the class names do. It shows
without labels: the drawing of a dog is farther from the labelled photos of dogs than these are from each other. Images
whose predicted class is surer than that of half of the images are compared, so that those out of distribution, which
are far from everything, count little.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

_FEWEST = 20  # images on either side
_MOST = 2000
_QUANTILE = 0.1  # the share of the labelled images that count as far from their class
_FAR = (0.15, 0.2, 0.5)  # shares of the images under audit that are as far,
_COUNTS = (1.0, 0.3, 0.0)  # and what the labelled images count for then


def kinship(labelled: Floats, labels: Ints, audited: Floats, text: Floats) -> float:
    """How much labelled images, and what was learned from them, shall count for images under audit: from 0 to 1.

    Args:
        labelled: (M, D) unit features of the labelled images.
        labels: (M,) their classes.
        audited: (N, D) unit features of images under audit.
        text: (K, D) unit text features of the classes, as they were before any tuning.

    Returns:
        1 where up to 15% of the sure half of the images are farther from the labelled images of their class than nine
        tenths of those are from each other, 0.3 at a fifth, falling to 0 at a half. 1, too, where there are too few
        images to tell. Paintings gain a little from photos, and lose by them at full weight.

    """
    similar = audited @ text.T
    if min(len(labelled), len(audited)) < _FEWEST or similar.shape[1] < 2:
        return 1.0
    some, others = _some(len(labelled)), _some(len(audited))
    labelled, labels, audited, similar = labelled[some], labels[some], audited[others], similar[others]
    first, second = -np.sort(-similar, axis=1)[:, :2].T
    sure = first - second >= np.median(first - second)
    own = _nearest(labelled, labels, labelled, labels, itself=True)
    near = _nearest(audited[sure], similar[sure].argmax(1), labelled, labels)
    if min(len(own), len(near)) < _FEWEST // 2:
        return 1.0
    far = float((near < np.quantile(own, _QUANTILE)).mean())
    return float(np.interp(far, _FAR, _COUNTS))


def between(text: Floats, tuned: Floats, weight: float) -> Floats:
    """(K, D) unit class features between those of the text and the tuned ones; 1 is the tuned ones."""
    if weight == 1:
        return tuned
    joined = (1 - weight) * text + weight * tuned
    found: Floats = (joined / np.linalg.norm(joined, axis=1, keepdims=True)).astype(np.float32)
    return found


def _nearest(images: Floats, classes: Ints, labelled: Floats, labels: Ints, *, itself: bool = False) -> Floats:
    """The cosine of each image to the nearest labelled one of its class; images whose class has none are left out."""
    cosines = images @ labelled.T
    if itself:
        np.fill_diagonal(cosines, -np.inf)
    cosines[classes[:, None] != labels[None]] = -np.inf
    nearest: Floats = cosines.max(axis=1)
    return nearest[np.isfinite(nearest)]


def _some(count: int) -> Ints:
    """At most 2,000 rows of so many, evenly from all of them."""
    return np.linspace(0, count - 1, min(_MOST, count)).astype(np.int64)
