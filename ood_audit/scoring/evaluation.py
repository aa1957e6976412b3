"""`evaluate`: every score against known answers."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ood_audit.arrays import to_numpy
from ood_audit.classes import annotations, background, prompts, vocabulary
from ood_audit.classes.annotations import Truth
from ood_audit.classes.vocabulary import Vocabulary
from ood_audit.errors import UsageError
from ood_audit.progress import Progress, counting, silent
from ood_audit.scoring import metrics, scores
from ood_audit.scoring.context import Context
from ood_audit.scoring.plan import Plan, prepare
from ood_audit.scoring.ranks import Numbers
from ood_audit.scoring.recipe import name_of
from ood_audit.scoring.settings import ScoreSettings, described
from ood_audit.scoring.similarity import Chunk, map_chunks
from ood_audit.scoring.table import evidence_of, joined_with, raw_of
from ood_audit.store import DEFAULT_STORE, Store, open_store
from ood_audit.store.locks import computing
from ood_audit.store.views import count_readable
from ood_audit.text import printable
from ood_audit.values import Row

_Scored = tuple[list[str], list[str], dict[str, NDArray[np.float64]], dict[str, NDArray[np.int64]]]


@dataclass(frozen=True)
class Evaluation:
    """The figures of each score, and what could not be compared.

    Attributes:
        rows: one for each score and prompts, best AUROC first. Each has `score`, `prompts`, the figures of
            `scoring.metrics` with the ends of their bootstrap intervals (`auroc_low`, `auroc_high`, …), `accuracy` (the
            share of labelled ID images whose nearest class is their own; None without such images), `forecast` (the
            AUROC that was expected, where settings were chosen on the data) and `settings`, in words.
        images: how many images were compared, and how many of them are OOD.
        not_in_store: paths of the truth that the store has no feature of.
        not_in_truth: paths of the store that the truth says nothing of.

    """

    rows: list[Row]
    images: int
    ood: int
    not_in_store: list[str]
    not_in_truth: list[str]


def evaluate(
    store: str | os.PathLike[str] | Store = DEFAULT_STORE,
    *,
    truth: str | Path,
    only: Sequence[str] = (),
    settings: ScoreSettings | None = None,
    labels: str | Path | Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    device: str = "auto",
    rounds: int = 200,
    note: Callable[[str], None] = lambda message: None,
    on_progress: Progress = silent,
) -> Evaluation:
    """Score the store with every method and compare with the truth.

    Args:
        store: The store, or its folder.
        truth: A file with the columns path and is_ood (0 or 1) and, if known, label; see `annotations`.
        only: The scores to evaluate. Empty for all whose names are encoded already: `csp` alone has 415,756 prompts,
            which take minutes. `note` is called with the scores that are left out.
        settings: How to score: `prototypes`, `prompts`, `auto` and `seed`. The class names are evaluated beside tuned
            prompts.
        labels: A file with the classes, or their names; None for those last used with this store, else the names of the
            folders.
        templates: Prompts with `{}` for the class name, which are averaged; None for `a photo of a {}.`.
        device: Where to compute: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        rounds: How many resamples the bootstrap intervals have.
        note: Called with a sentence for each choice that the caller did not make.
        on_progress: Called with the stages of the work, see `ood_audit.progress.Progress`.

    Raises:
        UsageError: The truth or the vocabulary can't be used, or the truth knows no OOD, or no ID, image of the store.

    """
    if not isinstance(store, Store):
        store = open_store(store)
    settings = settings or ScoreSettings()
    _check_settings(settings)
    methods = list(dict.fromkeys(only)) or _ready(store, note)
    for method in methods:
        if method not in ("auto", "best"):
            scores.load(method)  # there is one of that name
    known, said, missing = annotations.truth(store, truth)
    classes = vocabulary.choose(store, labels, templates, note)
    annotations.check_labels(classes, said, f"the truth {printable(str(truth))}")
    _check_overlap(known)
    context = Context(store, classes, device, note, on_progress)
    with computing(store.root):
        tuned = prompts.choose(store, classes, settings.prompts, note)
        plans = {"none": prepare(context, settings, methods)}
        if tuned is not None:
            plans[tuned.name] = prepare(context, settings, methods, tuned)
        scored = {name: _scored(context, plan) for name, plan in plans.items()}
    table: list[Row] = []
    for name, plan in plans.items():
        table += _measured(name, plan, scored[name], known, context, rounds)
    table.sort(key=lambda row: -float(row["auroc"]))
    ids, paths, *_ = scored["none"]
    return Evaluation(
        rows=table,
        images=len(known.keys() & set(ids)),
        ood=sum(known[image_id].is_ood for image_id in ids if image_id in known),
        not_in_store=missing,
        not_in_truth=[path for image_id, path in zip(ids, paths, strict=True) if image_id not in known],
    )


def _check_settings(settings: ScoreSettings) -> None:
    taken = ScoreSettings(
        prototypes=settings.prototypes, prompts=settings.prompts, auto=settings.auto, seed=settings.seed
    )
    if settings != taken:
        raise UsageError("evaluate compares scores as they are: set only prototypes, prompts, auto and seed")


def _measured(
    name: str, plan: Plan, scored: _Scored, known: dict[str, Truth], context: Context, rounds: int
) -> Iterator[Row]:
    """The rows of some prompts, one for each score."""
    ids, _, values, nearest = scored
    rows = [i for i, image_id in enumerate(ids) if image_id in known]
    truths = [known[ids[i]] for i in rows]
    is_ood = np.array([truth.is_ood for truth in truths], dtype=np.bool_)
    for done, method in enumerate(plan.runs):
        context.on_progress("measuring", done, len(plan.runs))
        row: Row = {"score": method, "prompts": name}
        for metric, function in metrics.METRICS.items():
            row[metric] = function(is_ood, values[method][rows])
            low, high = metrics.bootstrap(function, is_ood, values[method][rows], rounds=rounds)
            row[f"{metric}_low"], row[f"{metric}_high"] = low, high
        row["accuracy"] = _accuracy(truths, nearest[method][rows], context.vocabulary)
        yield {**row, "forecast": plan.forecasts.get(method), "settings": _shown(plan, method)}


def _ready(store: Store, note: Callable[[str], None]) -> list[str]:
    """All scores but those whose names would have to be encoded first, which can take many minutes."""
    slow = [name for name in ("neglabel", "csp") if not background.are_encoded(store, name)]
    if slow:
        asked = " ".join(f"--score {name}" for name in slow)
        note(f"not evaluated, as encoding their names takes minutes: {', '.join(slow)}; add {asked} to evaluate them")
    return ["auto", *(name for name in scores.names() if name not in slow), "best"]


def _check_overlap(known: dict[str, Truth]) -> None:
    """UsageError where nothing can be compared; before anything is computed."""
    shared = [own.is_ood for own in known.values()]
    if not any(shared) or all(shared):
        kind = "OOD" if not any(shared) else "ID"
        raise UsageError(
            f"of the {len(shared)} images that the truth and the store share none is {kind}: check its paths"
        )


def _scored(context: Context, plan: Plan) -> _Scored:
    """The ids and paths of all images; by method their ood_score, and the class they are nearest to."""
    store, on_progress = context.store, context.on_progress
    joint = (plan.joint is not None or plan.pictures is not None) and "auto" in plan.runs

    def compute(
        chunk: Chunk,
    ) -> tuple[list[str], list[str], list[Numbers], list[NDArray[np.int64]], tuple[Numbers, ...]]:
        values = [raw_of(chunk, plan, method) for method in plan.runs]
        nearest = [to_numpy(chunk.largest(settings["prototypes"], 1)[1])[:, 0] for _, settings in plan.runs.values()]
        evidence = evidence_of(chunk, plan, "auto") if joint else ()
        return chunk.image_ids, chunk.paths, values, nearest, evidence

    total = count_readable(store)
    found, done = [], 0
    for part in map_chunks(store, plan.target, context.device, compute, plan.parts):
        on_progress("scoring", done, total)
        found.append(part)
        done += len(part[0])
    ids, paths, values, nearest, evidence = zip(*found, strict=True)
    joined = [
        dict(zip(plan.runs, map(np.concatenate, zip(*parts, strict=True)), strict=True)) for parts in (values, nearest)
    ]
    if joint:
        own = [joined[0]["auto"], *(np.concatenate(parts) for parts in zip(*evidence, strict=True))]
        together = joined_with(store, plan, "auto", own, counting(on_progress, "comparing with the folder"))
        joined[0]["auto"] = together.ood_score
    return list(chain.from_iterable(ids)), list(chain.from_iterable(paths)), joined[0], joined[1]


def _shown(plan: Plan, method: str) -> str:
    function, settings = plan.runs[method]
    return described(name_of(function) if method == "best" else method, settings)


def _accuracy(known: list[Truth], nearest: NDArray[np.int64], vocabulary: Vocabulary) -> float | None:
    pairs = [
        (vocabulary.position(truth.label), int(guess))
        for truth, guess in zip(known, nearest, strict=True)
        if not truth.is_ood and truth.label is not None and vocabulary.position(truth.label) is not None
    ]
    return float(np.mean([right == guess for right, guess in pairs])) if pairs else None
