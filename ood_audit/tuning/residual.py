"""A residual on the class features, learned from labelled images without any text tower.

TaskRes (Yu et al., CVPR 2023): t_k = normalise(t⁰_k + α r_k), t⁰ the text features, r learned. It works on stored
features alone, for any encoder and for imported vectors.

CLIP's images and texts lie apart (Liang et al., "Mind the gap", NeurIPS 2022), and names that happen to lie towards the
images are similar to all of them. In some directions images differ much from their names, whatever they show, and there
a similarity tells little. So class names and background names are moved before anything is learned, see `alignment`:
by half of the way from names to images where there is a background, and so that directions with much spread count less.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ood_audit.encoders.identity import ScoreDefaults
from ood_audit.tuning.settings import DEFAULTS, TuneSettings
from ood_audit.tuning.trainer import (
    NOTHING,
    Beside,
    Figures,
    Floats,
    Ints,
    Learner,
    Problem,
    Tuned,
    train,
)

_FEWEST_EPOCHS = 5
_STEPS = 60  # so many are enough, which a large set makes in fewer epochs
_FEW = 200  # with so few classes, threads lose more by waiting for each other than they save
_ALPHA = 0.5
_OWN = 0.4  # the share of a covariance that is kept when it is shrunk
_SCALE = 100.0  # CLIP's; imported vectors come without one


def class_features(text: Tensor, residual: Tensor, alpha: float = _ALPHA) -> Tensor:
    """normalise(t⁰ + α r), (K, D), of (K, D) unit text features and their residuals."""
    return functional.normalize(text + alpha * residual, dim=1)


def fit(
    features: Floats,
    labels: Ints,
    text: Floats,
    defaults: ScoreDefaults,
    settings: TuneSettings = DEFAULTS["residual"],
    on_progress: Callable[[Figures, int], None] | None = None,
    beside: Beside = NOTHING,
) -> Tuned:
    """Learn the residual, on the CPU. The same seed gives the same result.

    Args:
        features: (M, D) float32 unit image features.
        labels: (M,) the class of each, a row of `text`. Classes without images are learned against, see `shared`.
        text: (K, D) float32 unit text features of the classes.
        defaults: the ΔEnergy settings by which epochs are judged.
        settings: how.
        on_progress: called after every epoch with its figures and the number of epochs at most.
        beside: the background names and the images under audit.

    Returns:
        The class features of the epoch that `trainer.foremost` takes; after a Ctrl-C, of those so far.

    Raises:
        UsageError: a setting makes no sense or the training diverges by it, or there are fewer than two classes with
            images.

    """
    words = torch.from_numpy(np.ascontiguousarray(text, dtype=np.float32))
    shown = torch.zeros(len(text), 1)
    shown[np.unique(labels)] = 1.0

    has_background = settings.background and beside.background is not None and len(beside.background) > 0
    gap = settings.gap * has_background

    def move(rows: Ints) -> Tensor | None:
        if gap == settings.evened == 0:
            return None
        return alignment(torch.from_numpy(features[rows]), words[labels[rows]], gap, settings.evened)

    def learner(kept: Sequence[int], own: Tensor) -> Learner:
        with_images = shown[list(kept)]
        residual = torch.zeros_like(own, requires_grad=True)
        optimizer = torch.optim.Adam([residual], lr=settings.lr)
        return Learner(residual, lambda learned: class_features(own, shared(learned, with_images)), optimizer)

    if settings.epochs is None:
        batches = max(1, len(features) // settings.batch_size)
        settings = replace(settings, epochs=max(_FEWEST_EPOCHS, _STEPS // batches))
    threads = torch.get_num_threads()
    if len(text) <= _FEW:
        torch.set_num_threads(1)
    try:
        problem = Problem(features, labels, words, _SCALE, defaults, beside, move)
        return train(problem, learner, replace(settings, gap=gap), on_progress)
    finally:
        torch.set_num_threads(threads)


def alignment(images: Tensor, names: Tensor, gap: float, power: float) -> Tensor:
    """How names are to be moved towards images, (D + 1, D) for `moved`: normalise((t + gap · g) C^−p).

    Args:
        images: z, (N, D) unit features.
        names: t_y, (N, D), the text features of their classes.
        gap: how far to go along g, the mean of z − t_y.
        power: p. C is the covariance of z − t_y, of mean variance 1, and shrunk towards the identity.

    """
    way = (images - names).mean(0)
    away = images - names - way
    variances, directions = torch.linalg.eigh(away.T @ away)
    variances = _OWN * variances / variances.mean().clamp(min=1e-12) + (1 - _OWN)
    matrix = (directions * variances**-power) @ directions.T
    return torch.cat([matrix, gap * way[None] @ matrix])


def shared(residual: Tensor, shown: Tensor) -> Tensor:
    """r_k of the classes with images, and their mean for the others.

    What all residuals have in common brings a class nearer to every image or farther from it, also to those of a class
    without images, which would be taken for another one if it did not have its part in that.

    Args:
        residual: r, (K, D).
        shown: (K, 1), 1 for the classes with images and 0 for the others.

    """
    mean = (shown * residual).sum(0) / shown.sum().clamp(min=1)
    return shown * residual + (1 - shown) * mean
