"""Flags where no image is labelled, calibrated by the images in class folders.

The folders are labels with faults: some images lie in the wrong one, and some show no class at all. What tells the
images in distribution is how well each fits its own folder. The folder rank of an image is the number of classes that
it resembles more than the class of its folder, by prototypes that were made without it. With K classes that have a
folder and t = max(2, round(K / 4)), an image is *in* where its folder rank is below t, and *out* elsewhere:

- An image in distribution is nearly always in, also one that the encoder takes for a similar class.
- An out-of-distribution image resembles some classes more than others, but did not choose its folder by that: all
  folder ranks are equally likely, so it is in with probability t / K, whatever its score.

So an image that is in counts 1, and an image that is out −t / (K − t): where images are out of distribution, this is 0
on average, and where they are in distribution nearly 1. The mean of it at a score is thus the part of the images with
that score that are in distribution. It can only grow as scores get less OOD, so it is fitted by isotonic regression,
held between 0 and 1, without which single images that fit their folder by chance would count in full. Its sum over all
images with a score above θ estimates how many of these are in distribution, A(θ). N is the sum of the counts over all.
The p-value of an image with score θ is conformal, with this estimate in place of a count of labelled images:

    p = min(1, (½ + A(θ)) / (N + 1))

An image is not counted for its own p-value; of images with equal scores each is taken for the last. `false_alarms`
flags p ≤ α. `fdr` flags the largest set of most OOD images of which ½ + A is no more than the part q.

All this assumes that wrong images lie in folders by chance, and are few. Where they were put into the folder that they
resemble, they count as in distribution, and less is flagged. Where less than half of the images fit their folders, the
encoder or the folders cannot be trusted, and nothing is flagged.
"""

import math

import numpy as np
from numpy.typing import NDArray

from ood_audit.findings.calibration import DEFAULT_FALSE_ALARMS, Flags, Floats, as_written

FEWEST_CLASSES = 4
ASSUMPTION = "assuming that fewer than 20% of them are wrong"  # benchmarks/flags.py measures up to 19%
_FEWEST_FITTING = 0.5  # the least share of the images that fit their folders


def flag(
    ood_score: Floats,
    folder_rank: NDArray[np.int64],
    classes: int,
    *,
    fdr: float | None = None,
    false_alarms: float | None = None,
) -> Flags | str:
    """Flag by one of the two rules; by false alarms of 1% if neither is given.

    Args:
        ood_score: (N,) scores, higher for more OOD.
        folder_rank: (N,) how many classes each image resembles more than that of its folder; −1 for images in no class
            folder. These can be flagged, and do not count in the calibration.
        classes: K, the number of classes that have a folder.
        fdr: the false discovery rate q.
        false_alarms: the false-alarm rate α.

    Returns:
        The flags, whose `calibration` is N; or the reason why nothing can be flagged, with the remedy.

    Example:
        >>> import numpy as np
        >>> scores, ranks = np.arange(100.0), np.zeros(100, int)
        >>> ranks[95:] = 3  # the five highest scores are of images that do not fit their folders
        >>> flag(scores, ranks, classes=4, false_alarms=0.01).flagged.nonzero()[0].tolist()
        [95, 96, 97, 98, 99]

    """
    label_some = "Label some images: `ood-audit labels add FOLDER`"
    in_folders = int((folder_rank >= 0).sum())
    if not in_folders:
        return (
            f"the images are not in class folders. Put known images into folders named as their classes. {label_some}"
        )
    if classes < FEWEST_CLASSES:
        folders = "1 class folder is" if classes == 1 else f"{classes} class folders are"
        return f"{folders} too few to calibrate by, {FEWEST_CLASSES} are needed. {label_some}"
    weights = _weights(folder_rank, classes)
    count = float(weights.sum())  # N
    if count < _FEWEST_FITTING * in_folders:
        return (
            "fewer than half of the images look like the class of their folder: either the folders are named wrongly, "
            f"or this encoder does not know these classes (another --model). {label_some}"
        )
    others, above = _inside_above(ood_score, weights)
    p = np.minimum(1.0, (0.5 + others) / (count + 1))
    rule = "false-alarms" if fdr is None else "fdr"
    level = fdr if fdr is not None else DEFAULT_FALSE_ALARMS if false_alarms is None else false_alarms
    inside = count * len(p) / in_folders  # images in distribution, also of those that are in no class folder
    if rule == "false-alarms":
        if 0.5 / (count + 1) > level:
            needed = math.ceil(0.5 / as_written(level)) - 1
            return (
                f"{in_folders} images in class folders are too few for a false-alarm rate of {level:g}: about {needed} "
                "must look like their class. Add images, or ask for a higher rate"
            )
        return Flags(p, p <= level, "false-alarms", level, level * inside, round(count), True)
    as_ood = len(p) - np.searchsorted(np.sort(ood_score), ood_score)  # how many images are at least as OOD as each
    passing = (above + 0.5) * len(p) / in_folders <= level * as_ood
    flagged = ood_score >= ood_score[passing].min(initial=np.inf)
    return Flags(p, flagged, "fdr", level, level * int(flagged.sum()), round(count), True)


def _inside_above(ood_score: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """How many images at least as OOD as each are in distribution, without it and with it: (N,) each.

    Args:
        ood_score: (N,), higher for more OOD.
        weights: (N,) what each image counts before the fit; 0 for images that do not calibrate, which are not all.

    """
    from scipy.optimize import isotonic_regression

    scores, place = np.unique(-ood_score, return_inverse=True)
    counts = np.bincount(place, weights != 0)
    there = counts > 0
    mean = np.bincount(place, weights)[there] / counts[there]
    rate = np.zeros(len(scores))
    rate[there] = np.clip(isotonic_regression(mean, weights=counts[there]).x, 0, 1)
    above = (rate * counts).cumsum()
    more = np.concatenate([[0.0], above[:-1]])  # what images with a higher score count
    return (more + rate * np.maximum(0, counts - 1))[place], above[place]


def _weights(folder_rank: NDArray[np.int64], classes: int) -> Floats:
    """(N,): 1 for images that are in, −t / (K − t) for those that are out, 0 for those in no class folder."""
    limit = max(2, round(classes / 4))
    out = -limit / (classes - limit)
    return np.where(folder_rank < 0, 0.0, np.where(folder_rank < limit, 1.0, out))
