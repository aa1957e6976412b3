"""Fit context vectors or a residual on labelled features, and stop where detection of unknown classes is at its best.

Over-training ruins the detection of unknown classes while the accuracy on known ones stands still. What tells is an
estimate without any OOD image: a fold leaves 30% of the class names out and is trained on the others only; all images
of the left-out classes play OOD against held-out images of the others. Folds and the prompts proper are trained side
by side; the folds judge the epochs, by detection and accuracy together, and the prompts of one are kept. Leaving names
out of prompts that were trained on all of them is cheaper, but misjudges: over the epochs of the default settings
(starter, 30 classes, three seeds) that estimate's rank correlation with the AUROC on truly unknown classes was 0.2,
0.1 and -0.2, that of the folds 0.8, 0.8 and 0.6.

What is taken from CoOp (KaiyangZhou/CoOp) are its context vectors, shared by all classes, in front of the class name,
its cross-entropy at the model's own scale, its batches of 32, and SGD with momentum 0.9 and a cosine schedule. `--loss
coop` is that loss, not a replica of the published recipe, from which this trainer differs by default in that

- the learning rate is 0.02 instead of 0.002, without a warm-up epoch at 1e-5, and falls with every step instead of with
  every epoch;
- there is no weight decay (5e-4 there);
- there are at most 40 epochs instead of 50 to 200 by the number of shots, and the epoch that the folds judge best is
  kept instead of the last one;
- the context starts from the words "a photo of a" and has as many vectors as they have tokens, four for CLIP, instead
  of 16 random ones;
- the image features are those in the store, so that no picture is cropped or flipped at random;
- a quarter of the labelled images of each class is held out, and the number of shots is not limited;
- the features of a class are the mean over its name and its synonyms;
- the text tower is trained through in float32 instead of float16.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ood_audit.classes.vocabulary import Vocabulary
from ood_audit.encoders.clip import ClipEncoder
from ood_audit.encoders.device import is_out_of_memory
from ood_audit.encoders.identity import ScoreDefaults
from ood_audit.errors import UsageError
from ood_audit.scoring.metrics import auroc
from ood_audit.scoring.scores.delta_energy import delta_energy
from ood_audit.tuning import losses
from ood_audit.tuning.prompt import class_features, prepare
from ood_audit.tuning.settings import DEFAULTS, TuneSettings

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Loss = Callable[[Tensor, Tensor, Tensor, torch.Generator], Tensor]

_HELD_OUT = 0.25  # of a class's labelled images, at least one
_LEFT_OUT = 0.3  # of the class names
_MOMENTUM = 0.9
_SMALL = 128  # a tower no wider takes so short a step that threads cost more in waiting for each other than they save


@dataclass(frozen=True)
class Figures:
    """How good the prompts are after an epoch; None for what the images given cannot tell.

    Attributes:
        epoch: 0 is before training.
        loss: the mean over the epoch's steps; None before training.
        accuracy: of held-out images, against all classes.
        gap: the mean ΔEnergy of held-out images: how far ID stands out.
        forecast_auroc: of ΔEnergy, images of left-out classes against held-out images of the others; mean over folds.
        fold_accuracy: of the folds' held-out images, against the classes of the fold; mean over folds.
        merits: what the epoch is chosen by: the sum of these two, fold by fold; empty without folds.

    """

    epoch: int
    loss: float | None
    accuracy: float | None
    gap: float | None
    forecast_auroc: float | None
    fold_accuracy: float | None
    merits: tuple[float, ...] = ()


@dataclass(frozen=True)
class Tuned:
    """What was tuned.

    Attributes:
        learned: float32: the (n, W) context vectors, or the (K, D) residual.
        class_features: (K, D) float32 of length 1, to score with in place of text features.
        history: an entry an epoch, from epoch 0 (before training) on.
        before: the figures of the hand-written prompt.
        after: the figures of what was kept.
        held_out: (H,) rows of the features given that were not trained on: for calibration.
        interrupted: Ctrl-C ended the training early.
        settings: as given.

    """

    learned: Floats
    class_features: Floats
    history: tuple[Figures, ...]
    before: Figures
    after: Figures
    held_out: Ints
    interrupted: bool
    settings: TuneSettings

    @property
    def epoch(self) -> int:
        """The epoch that was kept."""
        return self.after.epoch


def fit(
    features: Floats,
    labels: Ints,
    classes: Sequence[Sequence[str]],
    encoder: ClipEncoder,
    settings: TuneSettings = DEFAULTS["prompt"],
    on_progress: Callable[[Figures, int], None] | None = None,
) -> Tuned:
    """Learn the context vectors; the encoder stays as it is.

    The same seed gives the same result on the same CPU. On a GPU results differ slightly from run to run, because the
    order in which it adds up is not fixed. If a GPU runs out of memory, fewer prompts are encoded at a time; if it has
    no room for one, training starts again on the CPU.

    Args:
        features: (M, D) float32 unit image features, of this encoder.
        labels: (M,) the class of each, an index into `classes`. Classes without images are learned against.
        classes: for each class its name, then its synonyms.
        encoder: the encoder.
        settings: how.
        on_progress: called after every epoch with its figures and the number of epochs at most.

    Returns:
        The prompts of the epoch that `choose` takes; after a Ctrl-C, of those so far.

    Raises:
        UsageError: a setting makes no sense or the training diverges by it, a name is too long, or there are fewer than
            two classes with images.

    """
    while encoder.device.type != "cpu":
        try:
            return _fit(features, labels, classes, encoder, settings, on_progress)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside of `except`: the error holds the frames, and they the memory.
        encoder.shrink_texts(encoder.text_limit)
    return _fit(features, labels, classes, encoder, settings, on_progress)


def _fit(
    features: Floats,
    labels: Ints,
    classes: Sequence[Sequence[str]],
    encoder: ClipEncoder,
    settings: TuneSettings,
    on_progress: Callable[[Figures, int], None] | None,
) -> Tuned:
    """`fit`, with as many prompts at a time as the encoder's `text_limit` says."""
    prompts, start = prepare(
        encoder,
        classes,
        init=settings.init,
        vectors=settings.context_vectors or (None if settings.init else 16),
        seed=settings.seed,
    )

    def learner(kept: Sequence[int]) -> Learner:
        own = prompts.of(kept)
        context = torch.tensor(start, device=encoder.device, requires_grad=True)
        optimizer = torch.optim.SGD([context], lr=settings.lr, momentum=_MOMENTUM)
        return Learner(context, lambda: class_features(encoder, own, context), optimizer)

    written = Vocabulary(tuple(tuple(names) for names in classes)).features(encoder.encode_texts)
    threads = torch.get_num_threads()
    if encoder.device.type == "cpu" and start.shape[1] <= _SMALL:
        torch.set_num_threads(1)
    try:
        return train(
            features,
            labels,
            torch.from_numpy(written).to(encoder.device),
            learner,
            encoder.logit_scale,
            encoder.score_defaults,
            settings,
            on_progress,
        )
    finally:
        torch.set_num_threads(threads)


def train(
    features: Floats,
    labels: Ints,
    words: Tensor,
    learner: "Callable[[Sequence[int]], Learner]",
    scale: float,
    defaults: ScoreDefaults,
    settings: TuneSettings,
    on_progress: Callable[[Figures, int], None] | None = None,
) -> Tuned:
    """Train learners with all classes and without those of each fold; keep the epoch that the folds judge best.

    Args:
        features: (M, D) float32 unit image features.
        labels: (M,) the class of each.
        words: (K, D) the text features of the classes, on the device to train on.
        learner: makes a learner of the classes that are given to it.
        scale: what cosines are multiplied by in a cross-entropy.
        defaults: the ΔEnergy settings of the figures.
        settings: how.
        on_progress: called after every epoch with its figures and the number of epochs at most.

    Raises:
        UsageError: a setting makes no sense or the training diverges by it, or there are fewer than two classes with
            images.

    """
    check(settings)
    labels = np.asarray(labels, dtype=np.int64)
    if len(np.unique(labels)) < 2:
        raise UsageError("tuning needs labelled images of two classes or more")
    if labels.min() < 0 or labels.max() >= len(words) or len(labels) != len(features):
        raise ValueError("labels are indices of classes, one for each image")
    rows = split(labels, settings.shots, settings.seed)
    held_out = rows[1]
    data = torch.from_numpy(features).to(words.device), torch.from_numpy(labels).to(words.device)
    loss = _loss(settings, scale)

    def run(kept: Sequence[int]) -> "_Run":
        return _Run(learner(kept), words[list(kept)], kept, data, rows, loss, defaults, settings)

    main = run(range(len(words)))
    folds = [run(kept) for kept in leave_out(labels[held_out], len(words), settings)]
    before = _figures(0, None, main, folds, words)
    history = [_figures(0, None, main, folds)]
    states = [main.learner.state()]
    interrupted = False
    try:
        for epoch in range(1, settings.epochs + 1):
            mean = main.epoch()
            for fold in folds:
                fold.epoch()
            figures, state = _figures(epoch, mean, main, folds), main.learner.state()
            history, states = [*history, figures], [*states, state]
            if on_progress is not None:
                on_progress(figures, settings.epochs)
    except KeyboardInterrupt:
        interrupted = True
    best = choose([f.merits for f in history[: len(states)]])
    learned, tuned = states[best]
    return Tuned(
        learned.cpu().numpy(),
        tuned.cpu().numpy(),
        tuple(history),
        before,
        history[best],
        held_out,
        interrupted,
        settings,
    )


def check(settings: TuneSettings) -> None:
    """UsageError for a setting that makes no sense."""
    positive = ("lr", "batch_size", "ebm_temperature")
    at_least_one = ("shots", "context_vectors")
    for name in positive:
        if not 0 < getattr(settings, name) < float("inf"):
            raise UsageError(f"`{name}` {getattr(settings, name)}: choose more than 0")
    for name in at_least_one:
        if (value := getattr(settings, name)) is not None and value < 1:
            raise UsageError(f"`{name}` {value}: choose 1 or more")
    choices = {
        "method": ("prompt", "residual"),
        "loss": ("ebm", "coop"),
        "ebm": ("literal", "renormalised"),
        "mask": ("top", "keep", "random"),
    }
    for name, allowed in choices.items():
        if (chosen := getattr(settings, name)) not in allowed:
            raise UsageError(f"`{name}` {chosen}: choose {', '.join(allowed)}")
    if not 0 <= settings.mask_proportion <= 1:
        raise UsageError(f"`mask_proportion` {settings.mask_proportion}: choose between 0 and 1")
    if not 0 <= settings.lambda_ < float("inf"):
        raise UsageError(f"`lambda_` {settings.lambda_}: choose 0 or more")
    if settings.pull is not None and not 0 <= settings.pull < float("inf"):
        raise UsageError(f"`pull` {settings.pull}: choose 0 or more")
    if settings.epochs < 0:
        raise UsageError(f"`epochs` {settings.epochs}: choose 0 or more")
    if settings.folds < 0:
        raise UsageError(f"`folds` {settings.folds}: choose 0 or more")


def choose(merits: Sequence[Sequence[float]]) -> int:
    """The latest epoch that is not worse than the best by more than the standard error of their difference over folds.

    The estimate is of few images: its highest value is often early and by chance. (The last epoch without any folds.)
    """
    table = np.array(merits, dtype=np.float64)  # (epochs, folds)
    if table.shape[1] == 0:
        return len(table) - 1
    short = table[table.mean(1).argmax()] - table
    error = short.std(1, ddof=1) / np.sqrt(table.shape[1]) if table.shape[1] > 1 else np.zeros(len(table))
    return int(np.flatnonzero(short.mean(1) <= error + 1e-9).max())


def split(labels: Ints, shots: int | None, seed: int) -> tuple[Ints, Ints]:
    """Rows to train on, at most `shots` a class, and all others, at least a quarter of a class; a lone image trains."""
    generator = np.random.default_rng(seed)
    train = []
    for k in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == k))
        held = max(1, round(_HELD_OUT * len(rows))) if len(rows) > 1 else 0
        train.append(rows[: min(shots or len(rows), len(rows) - held)])
    rows = np.sort(np.concatenate(train))
    return rows, np.setdiff1d(np.arange(len(labels)), rows)


def leave_out(held_out_labels: Ints, classes: int, settings: TuneSettings) -> list[list[int]]:
    """The classes that each fold keeps: all but a random 30% of those with held-out images.

    Empty where fewer than two classes with such images would be left.
    """
    known = np.unique(held_out_labels)
    drop = max(1, round(_LEFT_OUT * len(known)))
    if len(known) - drop < 2:
        return []
    generator = np.random.default_rng([settings.seed, 1])
    dropped = [set(generator.permutation(known)[:drop].tolist()) for _ in range(settings.folds)]
    return [[k for k in range(classes) if k not in out] for out in dropped]


@dataclass(frozen=True)
class Learner:
    """What is learned for some classes.

    Attributes:
        parameter: what the optimizer changes.
        class_features: () → (K, D) unit class features, differentiable in the parameter.
        optimizer: of the parameter alone.

    """

    parameter: Tensor
    class_features: Callable[[], Tensor]
    optimizer: torch.optim.Optimizer

    def state(self) -> tuple[Tensor, Tensor]:
        """Copies of the parameter and of its class features."""
        with torch.no_grad():
            return self.parameter.detach().clone(), self.class_features()


class _Run:
    """A learner in training, on the classes that it is shown."""

    def __init__(
        self,
        learner: Learner,
        written: Tensor,
        kept: Sequence[int],
        data: tuple[Tensor, Tensor],
        rows: tuple[Ints, Ints],
        loss: Loss,
        defaults: ScoreDefaults,
        settings: TuneSettings,
    ) -> None:
        images, targets = data
        own = torch.full((max(int(targets.max()), *kept) + 1,), -1, device=images.device)
        own[list(kept)] = torch.arange(len(kept), device=images.device)  # a class's number here; -1: left out
        train, held_out = (torch.from_numpy(r).to(images.device) for r in rows)
        left_out = own[targets] < 0  # of these classes no image is trained on
        train = train[~left_out[train]]
        held_out = torch.cat([held_out[~left_out[held_out]], torch.nonzero(left_out).flatten()])
        self.learner, self.written, self.kept, self.loss, self.defaults = learner, written, list(kept), loss, defaults
        self.pull = _pull(settings)
        self.images, self.labels = images[train], own[targets[train]]
        self.held_out, self.held_out_labels = images[held_out], own[targets[held_out]]
        self.batch_size, self.lr = settings.batch_size, settings.lr
        self.generator = torch.Generator().manual_seed(settings.seed)
        steps = settings.epochs * -(-len(self.labels) // settings.batch_size)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(learner.optimizer, max(1, steps))

    def epoch(self) -> float:
        """One pass over the images; the mean loss."""
        total = 0.0
        order = torch.randperm(len(self.labels), generator=self.generator)
        for batch in torch.split(order, self.batch_size):
            rows = batch.to(self.images.device)
            classes = self.learner.class_features()
            loss = self.loss(self.images[rows], classes, self.labels[rows], self.generator)
            if self.pull:
                loss = loss + self.pull * losses.pull(classes, self.written)
            self.learner.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.learner.optimizer.step()
            self.schedule.step()
            total += loss.item() * len(rows)
        return total / max(1, len(self.labels))

    def evaluate(self, classes: Tensor | None = None) -> tuple[float | None, float | None, float | None]:
        """Accuracy and mean ΔEnergy of held-out images of known classes; AUROC of those of left-out classes."""
        if len(self.held_out) == 0:
            return None, None, None
        with torch.no_grad():
            if classes is None:
                classes = self.learner.class_features()
            cosines = self.held_out @ classes.T
        if not cosines.isfinite().all():
            raise UsageError(f"`lr` {self.lr}: the training diverged; choose a smaller one")
        own = self.defaults
        change = delta_energy(cosines, temperature=own.temperature, top_c=own.top_c, reset_to=own.reset_to)
        known = self.held_out_labels >= 0
        accuracy = (cosines.argmax(1) == self.held_out_labels)[known].float().mean().item()
        left_out = (~known).cpu().numpy()
        apart = auroc(left_out, -change.cpu().numpy()) if left_out.any() else None
        return accuracy, change[known].mean().item(), apart


def _figures(
    epoch: int, loss: float | None, main: _Run, folds: Sequence[_Run], classes: Tensor | None = None
) -> Figures:
    """Of the learners as they are, or of class features given."""
    accuracy, gap, _ = main.evaluate(classes)
    found = [fold.evaluate(None if classes is None else classes[fold.kept]) for fold in folds]
    merits = tuple(f[0] + f[2] for f in found if f[0] is not None and f[2] is not None)
    return Figures(epoch, loss, accuracy, gap, _mean([f[2] for f in found]), _mean([f[0] for f in found]), merits)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _pull(settings: TuneSettings) -> float:
    if settings.pull is not None:
        return settings.pull
    return 4.0 if settings.loss == "ebm" and settings.ebm == "renormalised" else 0.0


def _loss(settings: TuneSettings, scale: float) -> Loss:
    if settings.loss == "coop":
        return lambda images, classes, labels, generator: losses.coop(images, classes, labels, scale=scale)
    reading = {"literal": losses.ebm_literal, "renormalised": losses.ebm_renormalised}[settings.ebm]

    def loss(images: Tensor, classes: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        kept = losses.mask(
            images,
            classes,
            labels,
            proportion=settings.mask_proportion,
            how=settings.mask,
            generator=generator,
        )
        weight, temperature = settings.lambda_, settings.ebm_temperature
        return reading(images, classes, labels, kept, scale=scale, weight=weight, temperature=temperature)

    return loss
