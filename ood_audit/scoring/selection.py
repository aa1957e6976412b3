"""Leave-classes-out: choose a score's settings on the user's own data, without any out-of-distribution image.

Repeatedly a random 30% of the class names are dropped. Images of the dropped classes then play out-of-distribution, the
rest in-distribution; both are scored against the names that remain, under every candidate setting, and the setting with
the best mean AUROC is kept. That AUROC is also a forecast of how well detection will work on this data: an unknown
class that is like a known one is as hard to tell as a dropped class that is like a kept one.

Nothing that a dropped class has taught takes part: prototypes are made from the kept classes' references alone, without
the images that they score, and names of dropped classes are back in the background, as those of unknown classes are.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ood_audit.classes import prototypes
from ood_audit.classes.prototypes import DEFAULT_WEIGHT
from ood_audit.scoring import scores

if TYPE_CHECKING:
    import torch

    from ood_audit.classes.pools import Pool

ROUNDS = 12
MOST_IMAGES = 1000
FEWEST_IMAGES, FEWEST_CLASSES = 60, 6
_DROPPED = 0.3
_PARTS = 3  # prototypes of a round are made from two thirds of the references, and score the others
_OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("maxlogit", {}),
    ("logitgap", {"share": 0.2}),
    *(("energy", {"temperature": temperature}) for temperature in (0.01, 0.02, 0.05, 0.1)),
    *(("mcm", {"temperature": temperature}) for temperature in (0.01, 0.1, 1.0)),
]
_Settings = dict[str, Any]
Candidate = tuple[str, _Settings]


@dataclass(frozen=True)
class Sample:
    """Images whose class is known, or presumed, and what there is to choose with them.

    Attributes:
        features: (N, D) float32 of length 1.
        labels: (N,) int; −1 for not known.
        trusted: (N,) bool, whose label is sure enough to judge by. The others still teach the prototypes.
        presumed: the labels are the text features' own: then they can't choose the weight of the prototypes, nor be
            taken as references as they are.

    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    trusted: NDArray[np.bool_]
    presumed: bool


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
    def around(cls, given: _Settings, encoder: _Settings, *, every_score: bool) -> "Grid":
        """The grid with the encoder's own settings in it, less what is given."""
        values: dict[str, Any] = {name: (value,) for name, value in given.items()}
        if "temperature" in given:
            values["background_temperature"] = (given["temperature"],)
        for name, value in encoder.items():
            if name not in given:
                values[name] = tuple(sorted({*getattr(cls, name), value}))
        return cls(**values, every_score=every_score)

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
class Selection:
    """What was chosen.

    Attributes:
        method: the score.
        settings: its settings, with `prototypes`, and for ΔEnergy `background`.
        forecast: the mean AUROC of the chosen settings over the rounds.
        spread: its standard deviation.
        candidates: all that was tried, and
        aurocs: (C,) their mean AUROCs.

    """

    method: str
    settings: _Settings
    forecast: float
    spread: float
    candidates: list[Candidate]
    aurocs: NDArray[np.float64]


def usable(sample: Sample) -> bool:
    """Whether there is enough to choose with: 60 images, in 6 classes."""
    labels = sample.labels[sample.trusted]
    return len(labels) >= FEWEST_IMAGES and len(np.unique(labels[labels >= 0])) >= FEWEST_CLASSES


def select(
    sample: Sample,
    text: NDArray[np.float32],
    defaults: _Settings,
    *,
    grid: Grid | None = None,
    background: "Pool | None" = None,
    rounds: int = ROUNDS,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
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

    """
    import torch

    grid = grid or Grid()
    if sample.presumed and len(grid.prototypes) > 1:
        grid = Grid(**{**vars(grid), "prototypes": (DEFAULT_WEIGHT,)})
    candidates = grid.candidates()
    rng = np.random.default_rng(seed)
    kept = _kept_classes(sample, len(text), rounds, rng)
    judged = np.flatnonzero(sample.trusted & (sample.labels >= 0))
    images, texts = torch.from_numpy(sample.features), torch.from_numpy(text)
    to_text = images @ texts.T
    use_background = background is not None and True in grid.background
    on_progress(0, rounds)
    outside = _outside(images[judged], background, kept, grid) if use_background and background is not None else {}
    aurocs = np.empty((rounds, len(candidates)))
    for i, keep in enumerate(kept):
        classes = np.flatnonzero(keep)
        to_kept = to_text[:, classes]
        rows, labels = _references(sample, keep, to_kept, defaults)
        part_of = rng.integers(0, _PARTS, len(images))
        joined = to_kept
        if any(grid.prototypes):
            joined = _to_prototypes(sample.features, rows, labels, part_of, text[classes], to_kept)
        beside = {key: of[:, i] for key, of in outside.items()}
        columns = list(_delta_energies(grid, to_kept[judged], joined[judged], beside))
        if grid.every_score:
            columns += _other_scores(grid, to_kept[judged], joined[judged])
            columns.append(_knn(images, judged, rows, part_of))
        aurocs[i] = _aurocs(torch.stack(columns, dim=1).numpy(), ~keep[sample.labels[judged]])
        on_progress(i + 1, rounds)
    mean = aurocs.mean(axis=0)
    chosen = _simplest_of_the_best(candidates, aurocs)
    return Selection(*candidates[chosen], float(mean[chosen]), float(aurocs[:, chosen].std()), candidates, mean)


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
    sample: Sample, keep: NDArray[np.bool_], to_text: "torch.Tensor", defaults: _Settings
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the sample that show the kept classes, and the class of each, counted among the kept."""
    if sample.presumed:
        return presume(to_text, defaults)
    rows = np.flatnonzero((sample.labels >= 0) & keep[sample.labels])
    return rows, (np.cumsum(keep) - 1)[sample.labels[rows]]


def _to_prototypes(
    features: NDArray[np.float32],
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    part_of: NDArray[np.int64],
    text: NDArray[np.float32],
    to_text: "torch.Tensor",
) -> "torch.Tensor":
    """(N, K') cosines to the kept classes' prototypes, made without the images that they score."""
    import torch

    kept = [part_of[rows] != part for part in range(_PARTS)]
    made = [prototypes.fit(features[rows[others]], labels[others], text) for others in kept]
    found: torch.Tensor = prototypes.unseen_cosines(
        made, torch.from_numpy(features), torch.from_numpy(part_of), to_text
    )
    return found


def presume(to_text: "torch.Tensor", defaults: _Settings) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The more confident half of the images, by ΔEnergy, and their nearest classes: (rows, labels)."""
    from ood_audit.scoring.scores.delta_energy import delta_energy

    confidence = delta_energy(to_text, **defaults)
    rows = (confidence >= confidence.median()).nonzero()[:, 0]
    return rows.cpu().numpy(), to_text[rows].argmax(dim=1).cpu().numpy()


def _outside(
    images: "torch.Tensor", pool: "Pool", kept: Sequence[NDArray[np.bool_]], grid: Grid
) -> "dict[tuple[float, float], torch.Tensor]":
    """(N, rounds) log-sum-exp of the background, by weight and temperature: names of no class, and of dropped ones."""
    import torch

    names_class = ~pool.outside()
    returned = torch.from_numpy(np.stack([pool.outside(keep)[names_class] for keep in kept], axis=1)).float()
    others = images @ torch.from_numpy(pool.features[~names_class].astype(np.float32)).T
    naming = images @ torch.from_numpy(pool.features[names_class].astype(np.float32)).T
    found = {}
    for weight, temperature in product(grid.prototypes, grid.background_temperature):
        scale = (1 - weight) / temperature
        always = (others * scale).logsumexp(dim=1)[:, None]
        top = naming.amax(dim=1, keepdim=True) if naming.shape[1] else torch.zeros_like(always)
        back = (((naming - top) * scale).exp() @ returned).log() + top * scale  # log 0 = -inf where none returns
        found[weight, temperature] = torch.logaddexp(always, back)
    return found


def _delta_energies(
    grid: Grid, to_text: "torch.Tensor", to_prototypes: "torch.Tensor", outside: "dict[Any, torch.Tensor]"
) -> "Iterator[torch.Tensor]":
    """ΔE of each candidate of ΔEnergy, in the order of `Grid.candidates`."""
    from ood_audit.scoring.scores.delta_energy import energy_changes

    settings = [settings for method, settings in grid.candidates() if method == "delta-energy"]
    for _, alike in groupby(settings, key=lambda one: {**one, "top_c": None}):  # all c at once
        those = list(alike)
        weight, temperature, reset_to = (those[0][name] for name in ("prototypes", "temperature", "reset_to"))
        similarities = (1 - weight) * to_text + weight * to_prototypes
        beside = outside[weight, temperature] if those[0]["background"] else None
        changes = energy_changes(similarities, temperature, max(grid.top_c), reset_to, beside).cumsum(dim=1)
        for one in those:
            yield changes[:, min(one["top_c"], changes.shape[1]) - 1]


def _other_scores(grid: Grid, to_text: "torch.Tensor", to_prototypes: "torch.Tensor") -> "list[torch.Tensor]":
    return [
        scores.load(name)((1 - weight) * to_text + weight * to_prototypes, **options)
        for weight, (name, options) in product(grid.prototypes, _OTHERS)
    ]


def _knn(
    images: "torch.Tensor", judged: NDArray[np.int64], rows: NDArray[np.int64], part_of: NDArray[np.int64]
) -> "torch.Tensor":
    import torch

    parts = torch.from_numpy(part_of)
    near: torch.Tensor = scores.load("knn")(
        images[judged][:, :1],
        images=images[judged],
        folds=parts[judged],
        references=images[rows],
        reference_folds=parts[rows],
    )
    return near


def _aurocs(raw: NDArray[Any], is_ood: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(N, C) raw values → (C,) AUROCs, by the ranks of the in-distribution images."""
    from scipy.stats import rankdata

    inside = int((~is_ood).sum())
    if inside in (0, len(is_ood)):
        return np.full(raw.shape[1], 0.5)
    ranks = rankdata(raw, axis=0)[~is_ood].sum(axis=0)
    result: NDArray[np.float64] = (ranks - inside * (inside + 1) / 2) / (inside * (len(is_ood) - inside))
    return result
