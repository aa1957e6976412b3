"""OGEN: features of unknown classes, generated from known ones near by, as a regulariser of `tune`.

Zang et al., "Overcoming the pitfalls of vision-language model finetuning for OOD generalization", ICLR 2024, arXiv
2401.15914. A generator learns to extrapolate the image feature of a class from its text and from classes like it:

    g(Q, K, V) = normalise(FFN(Q) + attention(Q, K, V))

The class features are then trained on what it generates as well. The published code takes the names of unknown classes
from the held-out half of the data set. Here no name of an unknown class is needed: at every step a random 30% of the
classes play unknown ones to the images of the others, and so do background names near a class. The mean and the spread
of the image features of a class are those of the images trained on.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

NEAR = 3  # classes and background names for each class
_LEFT_OUT = 0.3  # of the classes, at each step
_WARM_UP = 0.2  # of the epochs, in which the generator alone learns
_LR = 1e-3
_DROPOUT = 0.1


class Generator(nn.Module):
    """Extrapolates unit image features from those of similar classes."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        heads = next(heads for heads in (4, 2, 1) if dimension % heads == 0)
        self.attention = nn.MultiheadAttention(dimension, heads, dropout=_DROPOUT, batch_first=True)
        self.own = nn.Sequential(nn.Linear(dimension, dimension), nn.ReLU(), nn.Linear(dimension, dimension))

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, q, D) queries and (B, k, D) keys and values → (B · q, D) unit features, in the order of the queries."""
        found, _ = self.attention(query, key, value, need_weights=False)
        return functional.normalize((self.own(query) + found).flatten(0, 1), dim=1)


class Regulariser:
    """The loss of generated features for one learner, and the generator that makes them.

    Args:
        images: (N, D) unit image features that are trained on.
        labels: (N,) their classes.
        words: (K, D) unit text features of the classes.
        names: (M, D) unit text features of background names; M may be 0.
        scale: what cosines are multiplied by in a cross-entropy.
        epochs: how long the training is.

    """

    def __init__(
        self, images: Tensor, labels: Tensor, words: Tensor, names: Tensor, *, scale: float, epochs: int
    ) -> None:
        self.scale, self.warm_up = scale, _WARM_UP * epochs
        self.mean, self.spread = statistics(images, labels, len(words))
        self.near = nearest(self.mean, torch.bincount(labels, minlength=len(words)) > 0)
        chosen = (words @ names.T).topk(min(NEAR, len(names)), dim=1).indices
        rows, positions = torch.unique(chosen.flatten(), return_inverse=True)
        self.names, self.unknown = names[rows], positions.reshape(chosen.shape)
        self.generator = Generator(images.shape[1]).to(images.device)
        self.optimizer = torch.optim.Adam(self.generator.parameters(), lr=_LR)

    def loss(self, images: Tensor, classes: Tensor, labels: Tensor, epoch: int) -> Tensor:
        """How far generated features are from real ones; after the warm-up, how badly the classes tell them apart, too.

        Args:
            images: (B, D) unit image features.
            classes: (K, D) unit class features. Gradients reach them through the classifier, and those that play
                unknown ones through what is generated for them, too.
            labels: (B,) the classes of the images.
            epoch: from 0.

        """
        words, near = classes.detach(), self.near[labels]
        own, others = words[labels][:, None], words[near]
        values = self.mean[near] + torch.randn(others.shape).to(others.device) * self.spread[near]
        same = self.generator(own, others, values)
        beside = self.generator(others, own, images[:, None])
        loss: Tensor = (same - images).square().sum(1).mean() + (beside - values.flatten(0, 1)).square().sum(1).mean()
        if epoch < self.warm_up:
            return loss
        count = near.shape[1]
        loss = loss + 0.25 * self._cross_entropy(same, classes, labels)
        loss = loss + 0.25 / count * self._cross_entropy(beside, classes, near.flatten())
        unknown = [self._left_out(images, classes, labels)]
        if len(self.names):
            unknown.append(self._beyond(images, classes, labels))
        return loss + 0.5 / NEAR * torch.stack(unknown).mean()

    def _left_out(self, images: Tensor, classes: Tensor, labels: Tensor) -> Tensor:
        """How badly some classes, drawn anew, are told apart by what is generated for them from images of others."""
        out, unknown = left_out(classes.detach(), labels)
        those = (unknown >= 0).all(1)
        if unknown.shape[1] == 0 or not those.any():
            return images.new_zeros(())
        own = classes.detach()[labels[those]][:, None]
        strange = self.generator(classes[out][unknown[those]], own, images[those][:, None])
        return self._cross_entropy(strange, classes[out], unknown[those].flatten())

    def _beyond(self, images: Tensor, classes: Tensor, labels: Tensor) -> Tensor:
        """How badly classes and background names are told apart by what is generated for the names near a class."""
        unknown = self.unknown[labels]
        strange = self.generator(self.names[unknown], classes.detach()[labels][:, None], images[:, None])
        return self._cross_entropy(strange, torch.cat([classes, self.names]), len(classes) + unknown.flatten())

    def _cross_entropy(self, images: Tensor, classes: Tensor, labels: Tensor) -> Tensor:
        mean: Tensor = functional.cross_entropy(self.scale * images @ classes.T, labels)
        return mean


def statistics(images: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """(K, D) mean and standard deviation of each class; a class of one image has the mean spread of the others."""
    counts = torch.bincount(labels, minlength=classes)[:, None]
    zeros = images.new_zeros(classes, images.shape[1])
    mean = zeros.index_add(0, labels, images) / counts.clamp(min=1)
    squares = zeros.index_add(0, labels, (images - mean[labels]).square())
    spread = (squares / (counts - 1).clamp(min=1)).sqrt()
    several = counts[:, 0] > 1
    typical = spread[several].mean(0) if several.any() else spread.mean(0)
    return mean, torch.where(several[:, None], spread, typical)


def left_out(classes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """A random 30% of the classes, and for each image of another class those of them that are nearest to its class.

    Args:
        classes: (K, D) unit class features.
        labels: (B,) the classes of the images.

    Returns:
        (L,) the classes left out, and (B, k) positions among them, -1 for the images of a class that is left out; k is
        3, or L where these are fewer. Nothing where fewer than two can be left out, as one alone is told from no other.

    """
    count = round(_LEFT_OUT * len(classes))
    out = torch.randperm(len(classes))[: count if count > 1 else 0].to(labels.device)
    alike = (classes[labels] @ classes[out].T).topk(min(NEAR, len(out)), dim=1).indices
    return out, alike.masked_fill(torch.isin(labels, out)[:, None], -1)


def nearest(mean: Tensor, shown: Tensor) -> Tensor:
    """(K, k) the classes with images whose means are nearest, never the class itself; k is 3, or all with fewer."""
    unit = functional.normalize(mean, dim=1)
    alike = (unit @ unit.T).masked_fill(~shown, -torch.inf).fill_diagonal_(-torch.inf)
    return alike.topk(min(NEAR, int(shown.sum()) - 1), dim=1).indices
