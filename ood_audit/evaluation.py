"""`evaluate`: every score against known answers."""

import csv
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ood_audit import metrics, scores
from ood_audit import vocabulary as vocabularies
from ood_audit.errors import UsageError
from ood_audit.scoring import chunks, settings_of, text_features
from ood_audit.store import DEFAULT_STORE, Store, open_store
from ood_audit.text import printable, storable

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
        rows: one a score, best AUROC first: `score`, `prompts`, the figures of `ood_audit.metrics`, each with the
            ends of its bootstrap interval (`auroc_low`, `auroc_high`, …), and `accuracy`: the share of ID images with
            a known label whose nearest class it is; None without such images.
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
    labels: str | Path | Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    device: str = "auto",
    rounds: int = 200,
    note: Callable[[str], None] = lambda message: None,
) -> Evaluation:
    """Score the store with every method and compare with the truth.

    Args:
        store: a store or its folder.
        truth: see `read_truth`.
        labels: see `ood_audit.score`, as for `templates`, `device` and `note`.
        templates: likewise.
        device: likewise.
        rounds: resamples for the bootstrap intervals.
        note: likewise.

    Raises:
        UsageError: the truth or the vocabulary can't be used, or the truth knows no OOD, or no ID, image of the store.

    """
    if not isinstance(store, Store):
        store = open_store(store)
    known = read_truth(truth)
    vocabulary = vocabularies.choose(store, labels, templates, note)
    classes, defaults = text_features(store, vocabulary, device)
    functions = {name: scores.load(name) for name in scores.names()}
    settings = {name: settings_of(name, function, defaults) for name, function in functions.items()}
    paths: list[str] = []
    nearest: list[NDArray[Any]] = []
    collected: dict[str, list[NDArray[Any]]] = {name: [] for name in functions}
    for (_, chunk_paths), cosines, on_device in chunks(store, classes, device):
        paths += chunk_paths.to_pylist()
        nearest.append(cosines.argmax(dim=1).cpu().numpy())
        for name, function in functions.items():
            raw = scores.raw(function, cosines, on_device, settings[name])
            collected[name].append(-raw.double().cpu().numpy())
    rows = [i for i, path in enumerate(paths) if path in known]
    is_ood = np.array([known[paths[i]].is_ood for i in rows], dtype=np.bool_)
    if not is_ood.any() or is_ood.all():
        kind = "OOD" if not is_ood.any() else "ID"
        raise UsageError(
            f"of the {len(rows)} images that the truth and the store share none is {kind}: check its paths"
        )
    accuracy = _accuracy([known[paths[i]] for i in rows], np.concatenate(nearest)[rows], vocabulary.classes)
    table = []
    for name, parts in collected.items():
        ood_score = np.concatenate(parts)[rows]
        row: dict[str, Any] = {"score": name, "prompts": "none"}
        for metric, function in metrics.METRICS.items():
            row[metric] = function(is_ood, ood_score)
            row[f"{metric}_low"], row[f"{metric}_high"] = metrics.bootstrap(function, is_ood, ood_score, rounds=rounds)
        table.append({**row, "accuracy": accuracy})
    table.sort(key=lambda row: -float(row["auroc"]))
    there = set(paths)
    return Evaluation(
        rows=table,
        images=len(rows),
        ood=int(is_ood.sum()),
        not_in_store=[path for path in known if path not in there],
        not_in_truth=[path for path in paths if path not in known],
    )


def _accuracy(known: list[Truth], nearest: NDArray[Any], classes: tuple[tuple[str, ...], ...]) -> float | None:
    index = {name.casefold(): i for i, names in enumerate(classes) for name in names}
    pairs = [
        (index[truth.label.casefold()], int(guess))
        for truth, guess in zip(known, nearest, strict=True)
        if not truth.is_ood and truth.label is not None and truth.label.casefold() in index
    ]
    return float(np.mean([right == guess for right, guess in pairs])) if pairs else None
