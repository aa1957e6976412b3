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

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ood_audit.classes.vocabulary import Vocabulary
from ood_audit.encoders.clip import ClipEncoder
from ood_audit.encoders.device import is_out_of_memory
from ood_audit.encoders.identity import ScoreDefaults
from ood_audit.errors import UsageError
from ood_audit.scoring.ranks import auroc
from ood_audit.scoring.scores.delta_energy import energy_changes
from ood_audit.tuning import losses, ogen
from ood_audit.tuning.prompt import class_features, prepare
from ood_audit.tuning.settings import DEFAULTS, TuneSettings

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None, torch.Generator], Tensor]

_HELD_OUT = 0.25  # the share of each class's labelled images, at least one of them
_LEFT_OUT = 0.3  # the share of the class names
_FOLD_CLASSES = 200  # a fold takes a random part of more classes: it judges the epochs as well, in far less time
_MOST_NAMES = 2048  # background names in a softmax, picked evenly from all to stand for them
_MOST_JUDGED = 1024  # held-out images by which an epoch is judged, and images of left-out classes
_MASKED = 0.5  # the share of an image's elements
_CONFIDENT = 0.7  # the least probability at which the teacher is believed
_SHARES = (0.25, 0.5, 0.75)  # shares of the similarity that adaptive masks may take
_EARLY = 0.1  # the share of the steps of a residual
_EPOCHS = 40
_MOMENTUM = 0.9
_SMALL = 128  # in a tower no wider, threads lose more by waiting for each other than they save


@dataclass(frozen=True)
class Beside:
    """What training may use beside the labelled images.

    Attributes:
        background: (M, D) float32 unit text features of the background names, None where there are none.
        unlabelled: (U, D) float32 unit features of the images under audit, None where they take no part.

    """

    background: Floats | None = None
    unlabelled: Floats | None = None


NOTHING = Beside()


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
        merits: what the epoch is chosen by, fold by fold: for a residual the forecast, for prompts the sum of both.
            Empty without folds.

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
        history: an entry for each epoch, from epoch 0 (before training) on.
        before: the figures of the hand-written prompt.
        after: the figures of what was kept.
        held_out: (H,) rows of the features given that were not trained on: for calibration.
        interrupted: Ctrl-C ended the training early.
        settings: as given.
        move: (D + 1, D) float32, how the background names that these class features are compared with are to be moved,
            see `moved`; None for not at all.

    """

    learned: Floats
    class_features: Floats
    history: tuple[Figures, ...]
    before: Figures
    after: Figures
    held_out: Ints
    interrupted: bool
    settings: TuneSettings
    move: Floats | None = None

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
    beside: Beside = NOTHING,
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
        beside: the background names and the images under audit.

    Returns:
        The prompts of the epoch that `choose` takes; after a Ctrl-C, of those so far.

    Raises:
        UsageError: a setting makes no sense or the training diverges by it, a name is too long, or there are fewer than
            two classes with images.

    """
    while encoder.device.type != "cpu":
        try:
            return _fit(features, labels, classes, encoder, settings, on_progress, beside)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside of `except`: the error holds the frames, and they the memory.
        encoder.shrink_texts(encoder.text_limit)
    return _fit(features, labels, classes, encoder, settings, on_progress, beside)


def _fit(
    features: Floats,
    labels: Ints,
    classes: Sequence[Sequence[str]],
    encoder: ClipEncoder,
    settings: TuneSettings,
    on_progress: Callable[[Figures, int], None] | None,
    beside: Beside,
) -> Tuned:
    """`fit`, with as many prompts at a time as the encoder's `text_limit` says."""
    settings = replace(settings, epochs=_EPOCHS if settings.epochs is None else settings.epochs)
    prompts, start = prepare(
        encoder,
        classes,
        init=settings.init,
        vectors=settings.context_vectors or (None if settings.init else 16),
        seed=settings.seed,
    )

    def learner(kept: Sequence[int], words: Tensor) -> Learner:
        own = prompts.of(kept)
        context = torch.tensor(start, device=encoder.device, requires_grad=True)
        optimizer = torch.optim.SGD([context], lr=settings.lr, momentum=_MOMENTUM)
        return Learner(context, lambda learned: class_features(encoder, own, learned), optimizer)

    written = Vocabulary(tuple(tuple(names) for names in classes)).features(encoder.encode_texts)
    threads = torch.get_num_threads()
    if encoder.device.type == "cpu" and start.shape[1] <= _SMALL:
        torch.set_num_threads(1)
    try:
        words = torch.from_numpy(written).to(encoder.device)
        problem = Problem(features, labels, words, encoder.logit_scale, encoder.score_defaults, beside)
        return train(problem, learner, settings, on_progress)
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Problem:
    """What to learn from.

    Attributes:
        features: (M, D) float32 unit image features.
        labels: (M,) the class of each.
        words: (K, D) the text features of the classes, on the device to train on.
        scale: what cosines are multiplied by in a cross-entropy.
        defaults: the ΔEnergy settings of the figures.
        beside: the background names and the images under audit.
        move: rows of the images that are trained on → how all names are to be moved before anything is learned, see
            `moved`.

    """

    features: Floats
    labels: Ints
    words: Tensor
    scale: float
    defaults: ScoreDefaults
    beside: Beside = NOTHING
    move: Callable[[Ints], Tensor | None] = lambda rows: None


def moved(names: Tensor, move: Tensor | None) -> Tensor:
    """normalise(t A + b), (M, D), of unit text features; without a move they are as they were.

    Args:
        names: t.
        move: (D + 1, D), the matrix A and below it the vector b.

    """
    return names if move is None else torch.nn.functional.normalize(names @ move[:-1] + move[-1], dim=1)


def train(
    problem: Problem,
    learner: "Callable[[Sequence[int], Tensor], Learner]",
    settings: TuneSettings,
    on_progress: Callable[[Figures, int], None] | None = None,
) -> Tuned:
    """Train learners with all classes and without those of each fold; keep the epoch that the folds judge best.

    Args:
        problem: what to learn from.
        learner: classes, and their text features as they are moved → their learner.
        settings: how.
        on_progress: called after every epoch with its figures and the number of epochs at most.

    Raises:
        UsageError: a setting makes no sense or the training diverges by it, or there are fewer than two classes with
            images.

    """
    check(settings)
    if settings.epochs is None:
        raise ValueError("the number of epochs is the method's")
    labels = np.asarray(problem.labels, dtype=np.int64)
    if len(np.unique(labels)) < 2:
        raise UsageError("tuning needs labelled images of two classes or more")
    if labels.min() < 0 or labels.max() >= len(problem.words) or len(labels) != len(problem.features):
        raise ValueError("labels are indices of classes, one for each image")
    if settings.loss != "ebm" or settings.mask != "adaptive" or settings.mask_proportion is not None:
        return _train(problem, learner, settings, on_progress)
    tried: list[Tuned] = []
    for share in _SHARES:
        tried.append(_train(problem, learner, replace(settings, mask_proportion=share), on_progress))
        if tried[-1].interrupted:
            break
    return max(tried, key=lambda found: sum(found.after.merits))


def _train(
    problem: Problem,
    learner: "Callable[[Sequence[int], Tensor], Learner]",
    settings: TuneSettings,
    on_progress: Callable[[Figures, int], None] | None,
) -> Tuned:
    """`train`, with one share of elements to mask."""
    rows = split(problem.labels, settings.shots, settings.seed)
    data = _Data(problem, settings)
    epochs = settings.epochs or 0  # `train` has seen to it that it is a number

    def run(kept: Sequence[int], rows: tuple[Ints, Ints]) -> "_Run":
        move = problem.move(rows[0][np.isin(problem.labels[rows[0]], kept)])
        words = moved(problem.words[list(kept)], move)
        return _Run(learner(kept, words), words, move, kept, data, rows, settings)

    with torch.random.fork_rng(devices=[]):  # OGEN's generator draws from the global one, on the CPU
        torch.manual_seed(settings.seed)
        main, folds = run(range(len(problem.words)), rows), []
        for number, kept in enumerate(leave_out(problem.labels[rows[1]], len(problem.words), settings), 1):
            # Folds that hold the same images out err alike, which their differences don't tell.
            own = settings.method == "residual"
            folds.append(run(kept, split(problem.labels, settings.shots, settings.seed + number) if own else rows))
        before = _figures(0, None, main, folds, problem.words)
        history = [_figures(0, None, main, folds)]
        states = [main.learner.state()]
        interrupted = False
        try:
            for epoch in range(1, epochs + 1):
                mean = main.epoch(epoch - 1)
                for fold in folds:
                    fold.epoch(epoch - 1)
                figures, state = _figures(epoch, mean, main, folds), main.learner.state()
                history, states = [*history, figures], [*states, state]
                if on_progress is not None:
                    on_progress(figures, epochs)
        except KeyboardInterrupt:
            interrupted = True
    judge = foremost if settings.method == "residual" else choose
    best = judge([f.merits for f in history[: len(states)]]) if settings.folds else len(states) - 1
    learned, tuned = states[best]
    return Tuned(
        learned.cpu().numpy(),
        tuned.cpu().numpy(),
        tuple(history),
        before,
        history[best],
        rows[1],
        interrupted,
        settings,
        None if main.move is None else main.move.cpu().numpy(),
    )


def check(settings: TuneSettings) -> None:
    """UsageError for a setting that makes no sense."""
    positive = ("lr", "batch_size", "ebm_temperature")
    at_least_one = ("shots", "context_vectors", "window")
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
        "mask": ("top", "keep", "random", "adaptive"),
        "regulariser": ("none", "pull", "ogen", None),
    }
    for name, allowed in choices.items():
        if (chosen := getattr(settings, name)) not in allowed:
            raise UsageError(f"`{name}` {chosen}: choose {', '.join(filter(None, allowed))}")
    if settings.mask_proportion is not None and not 0 <= settings.mask_proportion <= 1:
        raise UsageError(f"`mask_proportion` {settings.mask_proportion}: choose between 0 and 1")
    for name in ("lambda_", "pull", "ogen", "gap", "evened", "apart", "distil", "consistency"):
        if (value := getattr(settings, name)) is not None and not 0 <= value < float("inf"):
            raise UsageError(f"`{name}` {value}: choose 0 or more")
    if settings.pull is not None and settings.regulariser not in (None, "pull"):
        raise UsageError(f"`pull` {settings.pull}: use it with the `regulariser` pull")
    if settings.epochs is not None and settings.epochs < 0:
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


def foremost(merits: Sequence[Sequence[float]]) -> int:
    """An early epoch, unless another one is better by more than the standard error of their difference over folds.

    A residual tells the classes apart better with every step, whether that is needed or not. Where the text features
    were good already it soon costs detection, and where they were not detection gains till the end. A tenth of the
    steps harmed nothing that was measured. (The early epoch where there are too few images for folds.)
    """
    table = np.array(merits, dtype=np.float64)  # (epochs, folds)
    early = min(len(table) - 1, max(1, round(_EARLY * (len(table) - 1))))
    if table.shape[1] == 0:
        return early
    gain = table - table[early]
    error = gain.std(1, ddof=1) / np.sqrt(table.shape[1]) if table.shape[1] > 1 else np.zeros(len(table))
    least = gain.mean(1) - error
    return int(least.argmax()) if least.max() > 0 else early


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

    Of more than 200 classes with held-out images a fold has a random 200, and of the others none.
    Empty where fewer than two classes with such images would be left.
    """
    known = np.unique(held_out_labels)
    drop = max(1, round(_LEFT_OUT * min(len(known), _FOLD_CLASSES)))
    if len(known) - drop < 2:
        return []
    generator = np.random.default_rng([settings.seed, 1])
    kept = []
    for _ in range(settings.folds):
        order = generator.permutation(known)
        if len(known) > _FOLD_CLASSES:
            kept.append(sorted(order[drop:_FOLD_CLASSES].tolist()))
        else:
            out = set(order[:drop].tolist())
            kept.append([k for k in range(classes) if k not in out])
    return kept


@dataclass(frozen=True)
class Learner:
    """What is learned for some classes.

    Attributes:
        parameter: what the optimizer changes.
        features: such a parameter → (K, D) unit class features, differentiable in it.
        optimizer: of the parameter alone.

    """

    parameter: Tensor
    features: Callable[[Tensor], Tensor]
    optimizer: torch.optim.Optimizer

    def class_features(self) -> Tensor:
        """(K, D), of the parameter as it is."""
        return self.features(self.parameter)

    def state(self) -> tuple[Tensor, Tensor]:
        """Copies of the parameter and of its class features."""
        with torch.no_grad():
            return self.parameter.detach().clone(), self.class_features()


class _Data:
    """What the main run and the folds share, on the device: images, background names, unlabelled images."""

    def __init__(self, problem: Problem, settings: TuneSettings) -> None:
        device = problem.words.device

        def on_device(array: NDArray[np.generic]) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        self.images, self.targets = on_device(problem.features), on_device(np.asarray(problem.labels, dtype=np.int64))
        self.scale, self.defaults = problem.scale, problem.defaults
        self.names = problem.words[:0]
        self.more = 0.0
        names, unlabelled = problem.beside.background, problem.beside.unlabelled
        if names is not None and len(names) and (settings.background or settings.regulariser == "ogen"):
            some = np.linspace(0, len(names) - 1, min(_MOST_NAMES, len(names))).astype(np.int64)
            self.names, self.more = on_device(names[some]), float(np.log(len(names) / len(some)))
        self.has_background = settings.background and len(self.names) > 0
        self.unlabelled: Tensor | None = None
        if settings.unlabelled and unlabelled is not None and len(unlabelled):
            self.unlabelled = on_device(unlabelled)

    def of_names(self, images: Tensor, names: Tensor, scale: float) -> Tensor | None:
        """(N,) log Σ_b exp(scale · z·b) over all background names b, by those that stand for them; None without any."""
        return torch.logsumexp(scale * images @ names.T, dim=1) + self.more if self.has_background else None


class _Run:
    """A learner in training, on the classes that it is shown."""

    def __init__(
        self,
        learner: Learner,
        written: Tensor,
        move: Tensor | None,
        kept: Sequence[int],
        data: _Data,
        rows: tuple[Ints, Ints],
        settings: TuneSettings,
    ) -> None:
        own = torch.full((max(int(data.targets.max()), *kept) + 1,), -1, device=data.images.device)
        own[list(kept)] = torch.arange(len(kept), device=data.images.device)  # a class's number here; -1: left out
        left_out = own[data.targets] < 0  # of these classes no image is trained on
        train, held_out = (torch.from_numpy(some).to(data.images.device) for some in rows)
        train, held_out = train[~left_out[train]], held_out[~left_out[held_out]]
        held_out = torch.cat([_some(held_out), _some(torch.nonzero(left_out).flatten())])
        self.learner, self.written, self.move, self.kept = learner, written, move, list(kept)
        self.data, self.settings = data, settings
        self.loss, self.pull = _loss(settings, data.scale), _pull(settings)
        self.images, self.labels = data.images[train], own[data.targets[train]]
        self.names = moved(data.names, move)
        self.background = data.of_names(self.images, self.names, data.scale)
        self.held_out, self.held_out_labels = data.images[held_out], own[data.targets[held_out]]
        self.outside = self._outside(self.names)
        self.generator = torch.Generator().manual_seed(settings.seed)
        epochs = settings.epochs or 0
        steps = epochs * -(-len(self.labels) // settings.batch_size)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(learner.optimizer, max(1, steps))
        self.window = deque([learner.parameter.detach().clone()], maxlen=settings.window)
        self.ogen = None
        if settings.regulariser == "ogen" and len(torch.unique(self.labels)) > 1:
            self.ogen = ogen.Regulariser(self.images, self.labels, written, self.names, scale=data.scale, epochs=epochs)

    def epoch(self, number: int) -> float:
        """One pass over the images; the mean loss."""
        total = 0.0
        teacher = self._teacher()
        order = torch.randperm(len(self.labels), generator=self.generator)
        for batch in torch.split(order, self.settings.batch_size):
            rows = batch.to(self.images.device)
            loss = self._step_loss(rows, teacher, number)
            optimizers = [self.learner.optimizer, *([self.ogen.optimizer] if self.ogen else [])]
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            for optimizer in optimizers:
                optimizer.step()
            self.schedule.step()
            total += loss.item() * len(rows)
        self.window.append(self.learner.parameter.detach().clone())
        return total / max(1, len(self.labels))

    def _step_loss(self, rows: Tensor, teacher: Tensor | None, epoch: int) -> Tensor:
        images, labels = self.images[rows], self.labels[rows]
        background = None if self.background is None else self.background[rows]
        classes = self.learner.class_features()
        cosines = images @ classes.T
        loss = self.loss(images, classes, cosines, labels, background, self.generator)
        if background is not None and self.settings.apart:
            term = losses.apart(cosines, labels, scale=self.data.scale, background=background)
            loss = loss + self.settings.apart * term
        if self.pull:
            loss = loss + self.pull * losses.pull(classes, self.written)
        if self.ogen:
            loss = loss + self.settings.ogen * self.ogen.loss(images, classes, labels, epoch)
        if teacher is not None and self.settings.distil:
            scale = self.data.scale
            own, its = scale * cosines, scale * images @ teacher.T
            loss = loss + self.settings.distil * losses.distillation(own, its, scale)
        if teacher is not None and self.data.unlabelled is not None:
            loss = loss + self.settings.consistency * self._unlabelled_loss(classes, teacher, self.data.unlabelled)
        return loss

    def _unlabelled_loss(self, classes: Tensor, teacher: Tensor, unlabelled: Tensor) -> Tensor:
        """Of images without labels: what a masked one says against the teacher's word on the whole; no collapse."""
        order = torch.randperm(len(unlabelled), generator=self.generator)[: self.settings.batch_size]
        images = unlabelled[order.to(unlabelled.device)]
        kept = (torch.rand(images.shape, generator=self.generator) >= _MASKED).to(images)
        with torch.no_grad():
            word = self._logits(images, teacher).softmax(1)
            confident = word[:, : len(classes)].max(1).values >= _CONFIDENT
        logits = self._logits(torch.nn.functional.normalize(kept * images, dim=1), classes)
        loss = losses.consistency(logits, word, confident)
        if confident.any():
            loss = loss + losses.collapse(self.data.scale * images[confident] @ classes.T)
        return loss

    def _teacher(self) -> Tensor | None:
        """(K, D) class features of the mean of what was learned in the last epochs."""
        if not self.settings.distil and self.data.unlabelled is None:
            return None
        with torch.no_grad():
            return self.learner.features(torch.stack(list(self.window)).mean(0))

    def _logits(self, images: Tensor, classes: Tensor) -> Tensor:
        """(N, K), or (N, K + 1) with the background."""
        scale = self.data.scale
        return losses.with_background(scale * images @ classes.T, self.data.of_names(images, self.names, scale))

    def _outside(self, names: Tensor) -> Tensor | None:
        """What of the energies of held-out images is the background's."""
        return self.data.of_names(self.held_out, names, 1 / self.data.defaults.temperature)

    def evaluate(self, classes: Tensor | None = None) -> tuple[float | None, float | None, float | None]:
        """Accuracy and mean ΔEnergy of held-out images of known classes; AUROC of those of left-out classes.

        With class features of hand-written prompts the background names are as they were, too.
        """
        if len(self.held_out) == 0:
            return None, None, None
        outside = self.outside if classes is None else self._outside(self.data.names)
        with torch.no_grad():
            if classes is None:
                classes = self.learner.class_features()
            cosines = self.held_out @ classes.T
        if not cosines.isfinite().all():
            raise UsageError(f"`lr` {self.settings.lr}: the training diverged; choose a smaller one")
        own = self.data.defaults
        changes = energy_changes(cosines, own.temperature, own.top_c, own.reset_to, outside)
        change = changes.sum(dim=1)
        known = self.held_out_labels >= 0
        accuracy = (cosines.argmax(1) == self.held_out_labels)[known].float().mean().item()
        apart = auroc(-change[known].cpu().numpy(), -change[~known].cpu().numpy()) if not known.all() else None
        return accuracy, change[known].mean().item(), apart


def _figures(
    epoch: int, loss: float | None, main: _Run, folds: Sequence[_Run], classes: Tensor | None = None
) -> Figures:
    """Of the learners as they are, or of class features given."""
    accuracy, gap, _ = main.evaluate(classes)
    found = [fold.evaluate(None if classes is None else classes[fold.kept]) for fold in folds]
    accuracies = main.settings.method == "prompt"
    merits = tuple(f[2] + accuracies * f[0] for f in found if f[0] is not None and f[2] is not None)
    return Figures(epoch, loss, accuracy, gap, _mean([f[2] for f in found]), _mean([f[0] for f in found]), merits)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _some(rows: Tensor) -> Tensor:
    """At most 1,024 of the rows, evenly from all of them: enough for the figures of an epoch."""
    return rows[torch.linspace(0, max(0, len(rows) - 1), min(_MOST_JUDGED, len(rows))).long().to(rows.device)]


def _pull(settings: TuneSettings) -> float:
    chosen = settings.regulariser
    if chosen is None and (settings.pull is not None or (settings.loss == "ebm" and settings.ebm == "renormalised")):
        chosen = "pull"
    if chosen != "pull":
        return 0.0
    return 4.0 if settings.pull is None else settings.pull


def _loss(settings: TuneSettings, scale: float) -> Loss:
    if settings.loss == "coop":
        return lambda images, classes, cosines, labels, background, generator: losses.coop(
            cosines, labels, scale=scale, background=background
        )
    reading = {"literal": losses.ebm_literal, "renormalised": losses.ebm_renormalised}[settings.ebm]
    proportion = _MASKED if settings.mask_proportion is None else settings.mask_proportion

    def loss(
        images: Tensor,
        classes: Tensor,
        cosines: Tensor,
        labels: Tensor,
        background: Tensor | None,
        generator: torch.Generator,
    ) -> Tensor:
        kept = losses.mask(images, classes, labels, proportion=proportion, how=settings.mask, generator=generator)
        return reading(
            images,
            classes,
            labels,
            kept,
            scale=scale,
            weight=settings.lambda_,
            temperature=settings.ebm_temperature,
            background=background,
        )

    return loss
