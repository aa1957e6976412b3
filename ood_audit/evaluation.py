"""`evaluate`: every score against known answers."""

import csv
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ood_audit import corpora, metrics, scores
from ood_audit import prompts as tuned
from ood_audit import vocabulary as vocabularies
from ood_audit.errors import UsageError
from ood_audit.matching import chunks
from ood_audit.progress import Progress, silent
from ood_audit.prototypes import DEFAULT_WEIGHT
from ood_audit.scoring import Plan, described, name_of, prepare
from ood_audit.store import DEFAULT_STORE, Store, open_store
from ood_audit.store.layout import computing
from ood_audit.text import printable, storable
from ood_audit.vocabulary import Vocabulary

_YES, _NO = {"1", "true", "yes", "ood"}, {"0", "false", "no", "id"}


@dataclass(frozen=True)
class Truth:
    """What is known of one image."""

    is_ood: bool
    label: str | None


@dataclass(frozen=True)
class Evaluation:
    """The figures of each score, and what could not be compared.

    Attributes:
        rows: one a score and prompts, best AUROC first: `score`, `prompts`, the figures of `ood_audit.metrics`, each
            with the ends of its bootstrap interval (`auroc_low`, `auroc_high`, …), `accuracy`: the share of ID images
            with a known label whose nearest class it is, None without such images; `forecast`: the AUROC that was
            expected, where settings were chosen on the data; and `settings`, in words.
        images: how many images were compared, and how many of them are OOD.
        not_in_store: paths of the truth that the store has no feature of.
        not_in_truth: paths of the store that the truth says nothing of.

    """

    rows: list[dict[str, Any]]
    images: int
    ood: int
    not_in_store: list[str]
    not_in_truth: list[str]


def read_truth(path: str | Path) -> dict[str, Truth]:
    """Read a CSV or Parquet file with the columns path, is_ood (0 or 1) and, if known, label.

    Raises:
        UsageError: it can't be read, lacks a column, or has a value of is_ood that is neither yes nor no.

    """
    path = Path(path)
    shown = printable(str(path))
    try:
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet as pq

            rows: Sequence[dict[str, Any]] = pq.read_table(path).to_pylist()
        else:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:  # Arrow's and Unicode's are ValueErrors
        raise UsageError(f"cannot read the truth {shown}: {getattr(error, 'strerror', None) or error}") from error
    if missing := {"path", "is_ood"} - set(rows[0] if rows else ()):
        raise UsageError(f"the truth {shown} needs the columns path and is_ood (missing: {', '.join(sorted(missing))})")
    truth: dict[str, Truth] = {}
    for number, row in enumerate(rows, start=1):
        value = str(row["is_ood"]).strip().lower()
        if value not in _YES | _NO:
            raise UsageError(f"the truth {shown}, row {number}: is_ood is {printable(value)!r}; write 0 or 1")
        truth[storable(str(row["path"]))] = Truth(value in _YES, row.get("label") or None)
    return truth


def evaluate(
    store: str | os.PathLike[str] | Store = DEFAULT_STORE,
    *,
    truth: str | Path,
    only: Sequence[str] = (),
    labels: str | Path | Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    prototypes: bool | None = None,
    prompts: str = "auto",
    auto: bool = True,
    seed: int = 0,
    device: str = "auto",
    rounds: int = 200,
    note: Callable[[str], None] = lambda message: None,
    on_progress: Progress = silent,
) -> Evaluation:
    """Score the store with every method and compare with the truth.

    Args:
        store: a store or its folder.
        truth: see `read_truth`.
        only: the scores to evaluate. Empty for all whose names have been encoded already: `csp` alone has 415,756
            prompts, which take minutes. `note` is told which scores are left out for that.
        labels: see `ood_audit.score`, as for the others but `rounds`.
        templates: likewise.
        prototypes: likewise; for every score.
        prompts: likewise; where there are tuned ones, the text alone is evaluated beside them.
        auto: likewise.
        seed: likewise.
        device: likewise.
        rounds: resamples for the bootstrap intervals.
        note: likewise.
        on_progress: called with the stages of the work, see `ood_audit.progress.Progress`.

    Raises:
        UsageError: the truth or the vocabulary can't be used, or the truth knows no OOD, or no ID, image of the store.

    """
    if not isinstance(store, Store):
        store = open_store(store)
    methods = list(dict.fromkeys(only)) or _ready(store, note)
    for method in methods:
        if method != "best":
            scores.load(method)  # there is one of that name
    known = read_truth(truth)
    given: dict[str, Any] = {}
    if prototypes is not None:
        given["prototypes"] = DEFAULT_WEIGHT * prototypes
    vocabulary = vocabularies.choose(store, labels, templates, note)
    _check_overlap(store, known)
    with computing(store.root):
        own = tuned.choose(store, vocabulary, prompts, note)
        plans = {}
        for used in [None] if own is None else [None, own]:
            settings = dict(given)
            if used is not None and not used.recipe["prototypes"]:  # as in `score`
                settings.setdefault("prototypes", 0.0)
            plan = prepare(store, vocabulary, used, methods, settings, auto, seed, device, note, on_progress)
            plans["none" if used is None else used.name] = plan
        scored = {name: _scored(store, plan, device, on_progress) for name, plan in plans.items()}
    table: list[dict[str, Any]] = []
    for name, (paths, collected, nearest) in scored.items():
        plan = plans[name]
        rows = [i for i, path in enumerate(paths) if path in known]
        is_ood = np.array([known[paths[i]].is_ood for i in rows], dtype=np.bool_)
        truths = [known[paths[i]] for i in rows]
        for method, values in collected.items():
            on_progress("measuring", len(table), len(plans) * len(methods))
            row: dict[str, Any] = {"score": method, "prompts": name}
            for metric, function in metrics.METRICS.items():
                row[metric] = function(is_ood, values[rows])
                low, high = metrics.bootstrap(function, is_ood, values[rows], rounds=rounds)
                row[f"{metric}_low"], row[f"{metric}_high"] = low, high
            row["accuracy"] = _accuracy(truths, nearest[method][rows], vocabulary)
            table.append({**row, "forecast": plan.forecasts.get(method), "settings": _shown(plan, method)})
    table.sort(key=lambda row: -float(row["auroc"]))
    there = set(paths)
    return Evaluation(
        rows=table,
        images=len(rows),
        ood=int(is_ood.sum()),
        not_in_store=[path for path in known if path not in there],
        not_in_truth=[path for path in paths if path not in known],
    )


def _ready(store: Store, note: Callable[[str], None]) -> list[str]:
    """All scores but those whose names would have to be encoded first, which can take many minutes."""
    slow = [name for name in ("neglabel", "csp") if not corpora.are_encoded(store, name)]
    if slow:
        asked = " ".join(f"--score {name}" for name in slow)
        note(f"left out, as their names are not encoded yet, which takes minutes: {', '.join(slow)}; ask with {asked}")
    return [*(name for name in scores.names() if name not in slow), "best"]


def _check_overlap(store: Store, known: dict[str, Truth]) -> None:
    """UsageError where nothing can be compared; before anything is computed."""
    there = [path for (path,) in store.query("SELECT path FROM images WHERE status = 'ok'").rows]
    shared = [known[path].is_ood for path in there if path in known]
    if not any(shared) or all(shared):
        kind = "OOD" if not any(shared) else "ID"
        raise UsageError(
            f"of the {len(shared)} images that the truth and the store share none is {kind}: check its paths"
        )


def _scored(
    store: Store, plan: Plan, device: str, on_progress: Progress
) -> tuple[list[str], dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """The paths of all images; by method their ood_score, and the class they are nearest to."""
    paths: list[str] = []
    collected: dict[str, list[NDArray[Any]]] = {method: [] for method in plan.runs}
    nearest: dict[str, list[NDArray[Any]]] = {method: [] for method in plan.runs}
    total = int(store.query("SELECT count(*) FROM images WHERE status = 'ok'").rows[0][0])
    for chunk in chunks(store, plan.target, device):
        on_progress("scoring", len(paths), total)
        paths += chunk.paths
        for method, (function, settings) in plan.runs.items():
            collected[method].append(-chunk.raw(function, settings).double().cpu().numpy())
            nearest[method].append(chunk.similarities(settings["prototypes"]).argmax(dim=1).cpu().numpy())
    joined = [{method: np.concatenate(parts) for method, parts in of.items()} for of in (collected, nearest)]
    return paths, joined[0], joined[1]


def _shown(plan: Plan, method: str) -> str:
    function, settings = plan.runs[method]
    return described(name_of(function) if method == "best" else method, settings)


def _accuracy(known: list[Truth], nearest: NDArray[Any], vocabulary: Vocabulary) -> float | None:
    pairs = [
        (vocabulary.position(truth.label), int(guess))
        for truth, guess in zip(known, nearest, strict=True)
        if not truth.is_ood and truth.label is not None and vocabulary.position(truth.label) is not None
    ]
    return float(np.mean([right == guess for right, guess in pairs])) if pairs else None
