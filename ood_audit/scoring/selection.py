"""Leave-classes-out: choose a score's settings on the user's own data, without any out-of-distribution image.

Repeatedly a random 30% of the class names are dropped. Images of the dropped classes then play out-of-distribution, the
rest in-distribution; both are scored against the names that remain, under every candidate setting, and the setting with
the best mean AUROC is kept. That AUROC is also a forecast of how well detection will work on this data: an unknown
class that is like a known one is as hard to tell as a dropped class that is like a kept one.

Nothing that a dropped class has taught takes part: prototypes are made from the kept classes' references alone, without
the images that they score, and names of dropped classes are back in the background, as those of unknown classes are.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ood_audit.arrays import largest, log_sum_exp, without
from ood_audit.classes import prototypes
from ood_audit.classes.prototypes import DEFAULT_WEIGHT, Floats, joined
from ood_audit.encoders.cpu import mapped
from ood_audit.scoring import scores
from ood_audit.scoring.ranks import auroc
from ood_audit.scoring.scores import Options
from ood_audit.scoring.scores.delta_energy import changes_of, delta_energy

if TYPE_CHECKING:
    from ood_audit.classes.pools import Pool

ROUNDS = 12
MOST_IMAGES = 1000
FEWEST_IMAGES, FEWEST_CLASSES = 60, 6
_DROPPED = 0.3
_ROWS = 24  # images compared with the background at a time: what the caches of a processor hold
_UNDERFLOW = -80.0  # exp(−80) × 45,000 is nothing beside the largest, which is 1
_ROOT = np.float32(math.exp(_UNDERFLOW / 2))
_PARTS = 3  # prototypes of a round are made from two thirds of the references, and score the others
_OTHERS: list[tuple[str, Options]] = [
    ("maxlogit", {}),
    ("logitgap", {"share": 0.2}),
    *(("energy", {"temperature": temperature}) for temperature in (0.01, 0.02, 0.05, 0.1)),
    *(("mcm", {"temperature": temperature}) for temperature in (0.01, 0.1, 1.0)),
]
Candidate = tuple[str, Options]
# The raw values by each candidate, their AUROCs, who is OOD, and what `look` has given.
_Tried = tuple[list[Floats], NDArray[np.float64], NDArray[np.bool_], tuple[NDArray[np.float64], ...]]


@dataclass(frozen=True)
class Sample:
    """Images whose class is known, or presumed, and what there is to choose with them.

    Attributes:
        features: (N, D) float32 of length 1.
        labels: (N,) int; −1 for not known.
        trusted: (N,) bool, whose label is sure enough to judge by. The others still teach the prototypes.
        presumed: the labels are the text features' own: then they can't choose the weight of the prototypes, nor be
            taken as references as they are.
        looks: (N, L) float32 of length 1, see `encoders.looks`; None where one of the images has none.

    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    trusted: NDArray[np.bool_]
    presumed: bool
    looks: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Grid:
    """The values to choose from; one value is a setting that is given.

    Attributes:
        temperature: ΔEnergy's τ without the background, and
        background_temperature: with it.
        top_c: its c.
        reset_to: its v.
        prototypes: the weights of the prototypes.
        background: whether the energies run over the background.
        every_score: try the other scores too.

    """

    temperature: Sequence[float] = (0.01, 0.02, 0.05, 0.1, 0.3, 1.0)
    background_temperature: Sequence[float] = (0.01, 0.015, 0.02, 0.03, 0.05)
    top_c: Sequence[int] = (1, 2, 3, 5)
    reset_to: Sequence[float] = (0.0, 0.1, 0.2)
    prototypes: Sequence[float] = (0.0, 0.1, 0.2, 0.3, 0.5)
    background: Sequence[bool] = (False, True)
    every_score: bool = False

    @classmethod
    def around(cls, given: Options, encoder: Options, *, every_score: bool) -> "Grid":
        """The grid with the encoder's own settings in it, less what is given."""
        values: Options = {name: (value,) for name, value in given.items()}
        if "temperature" in given:
            values["background_temperature"] = (given["temperature"],)
        for name, value in encoder.items():
            if name not in given:
                values[name] = tuple(sorted({*getattr(cls, name), value}))
        return cls(**values, every_score=every_score)

    @classmethod
    def only(cls, settings: Options) -> "Grid":
        """The grid of one candidate of ΔEnergy."""
        values: Options = {name: (value,) for name, value in settings.items()}
        return cls(**values, background_temperature=values["temperature"])

    def candidates(self) -> list[Candidate]:
        """All settings to try: ΔEnergy's, then those of the other scores."""
        found: list[Candidate] = []
        for weight, background in product(self.prototypes, self.background):
            for temperature in self.background_temperature if background else self.temperature:
                # Below, a similarity is far above any of these in units of τ: they would rank alike.
                alike = temperature < 0.1 and len(self.reset_to) > 1
                for reset_to, top_c in product(self.reset_to[:1] if alike else self.reset_to, self.top_c):
                    settings = {"temperature": temperature, "top_c": top_c, "reset_to": reset_to}
                    found.append(("delta-energy", {**settings, "background": background, "prototypes": weight}))
        if self.every_score:
            for weight, (name, options) in product(self.prototypes, _OTHERS):
                found += [(name, {**options, "prototypes": weight})]
            found.append(("knn", {"neighbours": 10, "prototypes": 0.0}))
        return found


@dataclass(frozen=True)
class Outcome:
    """How the chosen settings did in one round, and what else was asked of it.

    Attributes:
        raw: (J,) the raw values of the judged images.
        is_ood: (J,) bool, whose class was dropped.
        beside: what `look` has given, see `select`.

    """

    raw: Floats
    is_ood: NDArray[np.bool_]
    beside: tuple[NDArray[np.float64], ...]


@dataclass(frozen=True)
class Selection:
    """What was chosen.

    Attributes:
        method: the score.
        settings: its settings, with `prototypes`, and for ΔEnergy `background`.
        forecast: the mean AUROC of the chosen settings over the rounds.
        spread: its standard deviation.
        candidates: all that was tried, and
        aurocs: (C,) their mean AUROCs.
        rounds: what came of each round.

    """

    method: str
    settings: Options
    forecast: float
    spread: float
    candidates: list[Candidate]
    aurocs: NDArray[np.float64]
    rounds: list[Outcome]


@dataclass(frozen=True)
class Round:
    """A choice of classes that are kept, against which J judged images are scored.

    Attributes:
        features: (J, D) of the judged images.
        is_ood: (J,) bool, whose class is dropped.
        kept: (K,) bool, the classes that are kept.
        to_text: (J, K') cosines to the text features of the kept classes.
        outside: (J,) log-sum-exp of the background, by the weight of the prototypes and the temperature.
        references: (R, D) features of the images that show the kept classes.
        labels: (R,) the class of each, counted among the kept.
        text: (K', D) text features of the kept classes.
        part_of: (J,) and
        reference_part_of: (R,): what an image is compared with is made without the references of its part.
        looks: (J, L) of the judged images; None without.

    """

    features: NDArray[np.float32]
    is_ood: NDArray[np.bool_]
    kept: NDArray[np.bool_]
    to_text: Floats
    outside: dict[tuple[float, float], Floats]
    references: NDArray[np.float32]
    labels: NDArray[np.int64]
    text: NDArray[np.float32]
    part_of: NDArray[np.int64]
    reference_part_of: NDArray[np.int64]
    looks: NDArray[np.float32] | None = None

    @cached_property
    def to_prototypes(self) -> Floats:
        """(J, K') cosines to the prototypes of the kept classes, made without the images that they score."""
        others = [self.reference_part_of != part for part in range(_PARTS)]
        made = [prototypes.fit(self.references[rows], self.labels[rows], self.text) for rows in others]
        found: Floats = prototypes.unseen_cosines(made, self.features, self.part_of, self.to_text)
        return found


def usable(sample: Sample) -> bool:
    """Whether there is enough to choose with: 60 images, in 6 classes."""
    labels = sample.labels[sample.trusted]
    return len(labels) >= FEWEST_IMAGES and len(np.unique(labels[labels >= 0])) >= FEWEST_CLASSES


def select(
    sample: Sample,
    text: NDArray[np.float32],
    defaults: Options,
    *,
    grid: Grid | None = None,
    background: "Pool | None" = None,
    rounds: int = ROUNDS,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    look: "Callable[[Round], tuple[NDArray[np.float64], ...]]" = lambda played: (),
) -> Selection:
    """Try all settings of the grid.

    Args:
        sample: see there.
        text: (K, D) text features of the classes.
        defaults: ΔEnergy's settings for the encoder: by these the references are presumed where labels are.
        grid: what to choose from.
        background: needed where the grid has it.
        rounds: how many times classes are dropped.
        seed: of the choice of classes.
        on_progress: called with the number of rounds done and to do.
        look: gives what else is to be known of the judged images of a round, see `Outcome`.

    """
    grid = grid or Grid()
    if sample.presumed and len(grid.prototypes) > 1:
        grid = Grid(**{**vars(grid), "prototypes": (DEFAULT_WEIGHT,)})
    candidates = grid.candidates()

    def tried(played: Round) -> _Tried:
        to_prototypes = played.to_prototypes if any(grid.prototypes) else played.to_text
        columns = list(_delta_energies(grid, played.to_text, to_prototypes, played.outside))
        if grid.every_score:
            columns += _other_scores(grid, played.to_text, to_prototypes)
            columns.append(_knn(played))
        return columns, _aurocs(np.stack(columns), played.is_ood), played.is_ood, look(played)

    every = []
    on_progress(0, rounds)
    for one in mapped(tried, play(sample, text, defaults, grid, background=background, rounds=rounds, seed=seed)):
        every.append(one)
        on_progress(len(every), rounds)
    aurocs = np.stack([of_round for _, of_round, _, _ in every])
    mean = aurocs.mean(axis=0)
    chosen = _simplest_of_the_best(candidates, aurocs)
    return Selection(
        *candidates[chosen],
        forecast=float(mean[chosen]),
        spread=float(aurocs[:, chosen].std()),
        candidates=candidates,
        aurocs=mean,
        rounds=[Outcome(columns[chosen], is_ood, beside) for columns, _, is_ood, beside in every],
    )


def play(
    sample: Sample,
    text: NDArray[np.float32],
    defaults: Options,
    grid: Grid,
    *,
    background: "Pool | None" = None,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> Iterator[Round]:
    """The rounds in which classes are dropped; see `select` for the arguments."""
    rng = np.random.default_rng(seed)
    kept = _kept_classes(sample, len(text), rounds, rng)
    judged = np.flatnonzero(sample.trusted & (sample.labels >= 0))
    features = sample.features[judged]
    outside = {}
    if background is not None and True in grid.background:
        outside = _outside(features, background, kept, grid)
    to_text = sample.features @ text.T
    for i, keep in enumerate(kept):
        to_kept = to_text[:, np.flatnonzero(keep)]
        rows, labels = _references(sample, keep, to_kept, defaults)
        part_of = rng.integers(0, _PARTS, len(to_text))
        yield Round(
            features=features,
            is_ood=~keep[sample.labels[judged]],
            kept=keep,
            to_text=to_kept[judged],
            outside={key: of[:, i] for key, of in outside.items()},
            references=sample.features[rows],
            labels=labels,
            text=text[keep],
            part_of=part_of[judged],
            reference_part_of=part_of[rows],
            looks=None if sample.looks is None else sample.looks[judged],
        )


def _simplest_of_the_best(candidates: list[Candidate], aurocs: NDArray[np.float64]) -> int:
    """The plainest candidate that is worse than the best by no more than their difference varies from round to round.

    The best of hundreds is the best partly by chance. Plain is: ΔEnergy, the paper's v = 0, few resets, a moderate
    weight of the prototypes, and a background with a temperature between those of sharp and of flat similarities.
    """
    best = aurocs.mean(axis=0).argmax()
    short = aurocs[:, [best]] - aurocs
    error = short.std(axis=0, ddof=1) if len(aurocs) > 1 else np.zeros(len(candidates))
    good: list[int] = np.flatnonzero(short.mean(axis=0) <= error + 1e-12).tolist()

    def plainness(i: int) -> tuple[float, ...]:
        method, settings = candidates[i]
        if method != "delta-energy":
            return (1.0, abs(settings["prototypes"] - DEFAULT_WEIGHT))
        return (
            0.0,
            abs(settings["reset_to"]),
            settings["top_c"],
            abs(settings["prototypes"] - DEFAULT_WEIGHT),
            not settings["background"],
            abs(np.log(settings["temperature"] / 0.015)),
        )

    return min(good, key=plainness)


def _kept_classes(sample: Sample, classes: int, rounds: int, rng: np.random.Generator) -> list[NDArray[np.bool_]]:
    """(K,) masks: of the classes that have judged images 30% are dropped."""
    there = np.unique(sample.labels[sample.trusted & (sample.labels >= 0)])
    kept = []
    for _ in range(rounds):
        keep = np.ones(classes, dtype=bool)
        keep[rng.permutation(there)[: max(1, round(_DROPPED * len(there)))]] = False
        kept.append(keep)
    return kept


def _references(
    sample: Sample, keep: NDArray[np.bool_], to_text: Floats, defaults: Options
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the sample that show the kept classes, and the class of each, counted among the kept."""
    if sample.presumed:
        return presume(to_text, defaults)
    rows = np.flatnonzero((sample.labels >= 0) & keep[sample.labels])
    return rows, (np.cumsum(keep) - 1)[sample.labels[rows]]


def presume(to_text: Floats, defaults: Options) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The more confident half of the images, by ΔEnergy, and their nearest classes: (rows, labels)."""
    confidence = delta_energy(to_text, **defaults)
    rows = np.flatnonzero(confidence >= np.quantile(confidence, 0.5, method="lower"))
    return rows, to_text[rows].argmax(axis=1)


def _outside(
    images: Floats, pool: "Pool", kept: Sequence[NDArray[np.bool_]], grid: Grid
) -> dict[tuple[float, float], Floats]:
    """(N, rounds) log-sum-exp of the background, by weight and temperature: names of no class, and of dropped ones."""
    names_class = ~pool.outside()
    returned = np.stack([pool.outside(keep)[names_class] for keep in kept], axis=1).astype(np.float32)
    naming = pool.features.take(names_class)
    scales = {(w, t): float((1 - w) / t) for w, t in product(grid.prototypes, grid.background_temperature)}
    names = pool.spanned

    def of(some: Floats) -> dict[float, Floats]:
        found = _log_sums(names.products(some), set(scales.values()))
        to_naming = naming.products(some)
        top = to_naming.max(axis=1, keepdims=True, initial=-1.0)
        to_naming -= top
        for scale, always in found.items():
            with np.errstate(divide="ignore"):  # where none returns
                back = np.log(np.exp(to_naming * scale) @ returned) + top * scale
            found[scale] = np.logaddexp(always[:, None], back)
        return found

    parts = list(mapped(of, (images[start : start + _ROWS] for start in range(0, len(images), _ROWS))))
    return {key: np.concatenate([part[scale] for part in parts]) for key, scale in scales.items()}


def _log_sums(values: Floats, scales: Collection[float]) -> dict[float, Floats]:
    """(N, M) → (N,) log Σ exp(scale × values) by scale; `values` is changed in place, and one buffer serves all.

    Where a scale is twice another, its exponentials are the squares of those, which cost a quarter.
    """
    if not values.shape[1]:
        return {scale: np.full(len(values), -np.inf, np.float32) for scale in scales}
    top = values.max(axis=1, keepdims=True)
    values -= top
    least, buffer = float(values.min()), np.empty_like(values)
    left, found = set(scales), {}
    while left:
        scale = min(left)
        np.multiply(values, scale, out=buffer)
        if least * scale < _UNDERFLOW:  # denormal numbers are slow
            np.maximum(buffer, _UNDERFLOW, out=buffer)
        np.exp(buffer, out=buffer)
        while True:
            found[scale] = np.log(np.einsum("ij->i", buffer)) + top[:, 0] * scale
            left.remove(scale)
            twice = next((other for other in left if math.isclose(other, 2 * scale)), None)
            if twice is None:
                break
            scale = twice
            if least * scale < _UNDERFLOW:
                np.maximum(buffer, _ROOT, out=buffer)
            np.square(buffer, out=buffer)
    return found


def _delta_energies(
    grid: Grid, to_text: Floats, to_prototypes: Floats, outside: dict[tuple[float, float], Floats]
) -> Iterator[Floats]:
    """ΔE of each candidate of ΔEnergy, in the order of `Grid.candidates`."""
    settings = [settings for method, settings in grid.candidates() if method == "delta-energy"]
    for (weight, background), alike in groupby(settings, key=lambda one: (one["prototypes"], one["background"])):
        those = list(alike)
        kinds = list(dict.fromkeys((one["temperature"], one["reset_to"]) for one in those))
        similarities = joined(to_text, to_prototypes, weight)
        top, where = largest(similarities, min(max(grid.top_c), similarities.shape[1]))
        with without(similarities, where, top):
            rests = {temperature: log_sum_exp(similarities, temperature) for temperature in {kind[0] for kind in kinds}}
        if background:
            rests = {t: np.logaddexp(rest, outside[weight, t]) for t, rest in rests.items()}
        # All temperatures at once, as rows below each other: each call costs more than what it computes.
        temperature, reset_to = np.repeat(np.array(kinds, np.float32), len(top), axis=0).T
        rest = np.concatenate([rests[kind[0]] for kind in kinds])
        changes, _ = changes_of(np.tile(top, (len(kinds), 1)), rest, temperature, reset_to)
        of_kind = dict(zip(kinds, np.split(changes.cumsum(axis=1), len(kinds)), strict=True))
        for one in those:
            yield of_kind[one["temperature"], one["reset_to"]][:, min(one["top_c"], changes.shape[1]) - 1]


def _other_scores(grid: Grid, to_text: Floats, to_prototypes: Floats) -> list[Floats]:
    return [
        scores.load(name)(joined(to_text, to_prototypes, weight), **options)
        for weight, (name, options) in product(grid.prototypes, _OTHERS)
    ]


def _knn(played: Round) -> Floats:
    near: Floats = scores.load("knn")(
        played.to_text,
        images=played.features,
        folds=played.part_of,
        references=played.references,
        reference_folds=played.reference_part_of,
    )
    return near


def _aurocs(raw: NDArray[np.floating], is_ood: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(C, N) raw values → (C,) AUROCs: how well each tells the in-distribution images, where it is higher."""
    return np.array([auroc(values[is_ood], values[~is_ood]) for values in raw])
