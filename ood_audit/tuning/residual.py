"""A residual on the class features, learned from labelled images without any text tower.

TaskRes (Yu et al., CVPR 2023): t_k = normalise(t⁰_k + α r_k), t⁰ the text features as they are, r learned. It works on
stored features alone, for any encoder and for imported vectors.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ood_audit.encoders.identity import ScoreDefaults
from ood_audit.tuning.settings import DEFAULTS, TuneSettings
from ood_audit.tuning.trainer import NOTHING, Beside, Figures, Floats, Ints, Learner, Problem, Tuned, train

_FEWEST_EPOCHS = 5
_STEPS = 60  # so many are enough, which a large set makes in fewer epochs
_FEW = 200  # with so few classes, threads lose more by waiting for each other than they save
_ALPHA = 0.5
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

    def learner(kept: Sequence[int]) -> Learner:
        own, with_images = words[list(kept)], shown[list(kept)]
        residual = torch.zeros_like(own, requires_grad=True)
        optimizer = torch.optim.Adam([residual], lr=settings.lr)
        return Learner(residual, lambda learned: class_features(own, shared(learned, with_images)), optimizer)

    problem = Problem(features, labels, words, _SCALE, defaults, beside)
    if settings.epochs is None:
        batches = max(1, len(features) // settings.batch_size)
        settings = replace(settings, epochs=max(_FEWEST_EPOCHS, _STEPS // batches))
    threads = torch.get_num_threads()
    if len(text) <= _FEW:
        torch.set_num_threads(1)
    try:
        return train(problem, learner, settings, on_progress)
    finally:
        torch.set_num_threads(threads)


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
