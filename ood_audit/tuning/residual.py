"""A residual on the class features, learned from labelled images without any text tower.

TaskRes (Yu et al., CVPR 2023): t_k = normalise(t⁰_k + α r_k), t⁰ the text features as they are, r learned. It works on
stored features alone, for any encoder and for imported vectors.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ood_audit.encoders.identity import ScoreDefaults
from ood_audit.tuning.settings import DEFAULTS, TuneSettings
from ood_audit.tuning.trainer import Figures, Floats, Ints, Learner, Tuned, train

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
) -> Tuned:
    """Learn the residual, on the CPU. The same seed gives the same result.

    Args:
        features: (M, D) float32 unit image features.
        labels: (M,) the class of each, a row of `text`. Classes without images are learned against; they themselves
            keep their text feature.
        text: (K, D) float32 unit text features of the classes.
        defaults: the ΔEnergy settings by which epochs are judged.
        settings: how.
        on_progress: called after every epoch with its figures and the number of epochs at most.

    Returns:
        The class features of the epoch that `trainer.choose` takes; after a Ctrl-C, of those so far.

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
        return Learner(residual, lambda: class_features(own, with_images * residual), optimizer)

    return train(features, labels, words, learner, _SCALE, defaults, settings, on_progress)
