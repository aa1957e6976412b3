"""How well a score tells OOD images from ID ones, and how sure that is.

`is_ood` is (N,) bool and `ood_score` (N,) float, higher for more OOD, throughout.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

Bools = NDArray[np.bool_]
Floats = NDArray[np.floating]


def auroc(is_ood: Bools, ood_score: Floats) -> float:
    """The chance that an OOD image scores above an ID one."""
    return float(roc_auc_score(is_ood, ood_score))


def aupr_ood(is_ood: Bools, ood_score: Floats) -> float:
    """Average precision with the OOD images as the positives."""
    return float(average_precision_score(is_ood, ood_score))


def aupr_id(is_ood: Bools, ood_score: Floats) -> float:
    """Average precision with the ID images as the positives."""
    return float(average_precision_score(~is_ood, -ood_score))


def fpr95(is_ood: Bools, ood_score: Floats) -> float:
    """The share of OOD images kept at the threshold whose ID recall is closest to 95%, as in MCM, NegLabel and CSP.

    Thresholds are the distinct scores, so that ties are kept or dropped together. As in the authors' code they are
    tried from the strictest one that keeps every ID image on to stricter ones, and the first of the closest counts:
    of several with the same recall below 1, the one that keeps the most OOD images.
    """
    kept, recall, _ = roc_curve(~is_ood, -ood_score, drop_intermediate=False)
    last = int(np.argmax(recall == 1))
    kept, recall = kept[last::-1], recall[last::-1]
    return float(kept[np.argmin(np.abs(recall - 0.95))])


def fpr95_ood(is_ood: Bools, ood_score: Floats) -> float:
    """The share of ID images flagged where 95% of the OOD images are caught, as in OpenOOD and pytorch-ood."""
    flagged, caught, _ = roc_curve(is_ood, ood_score, drop_intermediate=False)
    return float(flagged[np.argmax(caught >= 0.95)])


METRICS: dict[str, Callable[[Bools, Floats], float]] = {
    "auroc": auroc,
    "aupr_ood": aupr_ood,
    "aupr_id": aupr_id,
    "fpr95": fpr95,
    "fpr95_ood": fpr95_ood,
}


def bootstrap(
    metric: Callable[[Bools, Floats], float],
    is_ood: Bools,
    ood_score: Floats,
    *,
    rounds: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile interval of a metric over resamples of the images, ID and OOD apart (so that neither runs out)."""
    generator = np.random.default_rng(seed)
    groups = [np.flatnonzero(is_ood), np.flatnonzero(~is_ood)]
    values = []
    for _ in range(rounds):
        rows = np.concatenate([generator.choice(group, len(group)) for group in groups])
        values.append(metric(is_ood[rows], ood_score[rows]))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
