"""The scores: one in each file, as functions of cosines; every `ood_score` is higher for more OOD.

A score is a function `(cosines: (N, K), *, inputs…, options…) -> (N,)` whose value is higher for more in-distribution;
`ood_score` is its negative. Its arrays are NumPy's on a CPU and torch tensors on a GPU, see `ood_audit.arrays`. What it
is given beside the cosines it asks for by the names of its parameters, see `INPUTS`. Others can be added by a package
with an entry point of the group `ood_audit.scores`.
"""

import inspect
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, TypeAlias

from ood_audit.arrays import Array
from ood_audit.errors import UsageError
from ood_audit.text import printable

Score: TypeAlias = Callable[..., Array]
Options: TypeAlias = dict[str, Any]  # by name; the scores of other packages may have any

BUILT_IN = {
    "delta-energy": "delta_energy",
    "mcm": "mcm",
    "energy": "energy",
    "maxlogit": "maxlogit",
    "simlabel": "simlabel",
    "logitgap": "logitgap",
    "neglabel": "neglabel",
    "csp": "csp",
    "knn": "knn",
}
INPUTS = {
    "classes": "(K, D) the text features of the classes",
    "images": "(N, D) the features of the images",
    "background": "(N, B) the cosines to the background vocabulary, or None",
    "folds": "(N,) int64, the fold of each image",
    "references": "(M, D) the features of the reference pictures; their folds are `reference_folds`, (M,) int64",
    "reference_folds": "see references",
    "neglabel_classes": "(K, D) the classes under NegLabel's prompts",
    "neglabel_negatives": "(B, D) NegLabel's negative labels",
    "csp_classes": "(K, D) the classes under CSP's prompts",
    "csp_negatives": "(B, D) CSP's negative labels",
}


@lru_cache(maxsize=1)
def names() -> list[str]:
    """All scores: the built-in ones, then those of other packages."""
    return [*BUILT_IN, *sorted(entry.name for entry in entry_points(group="ood_audit.scores"))]


def load(name: str) -> Score:
    """The function of a score; UsageError where there is none of that name."""
    if name in BUILT_IN:
        module = BUILT_IN[name]
        function: Score = getattr(import_module(f"ood_audit.scoring.scores.{module}"), module)
        return function
    for entry in entry_points(group="ood_audit.scores", name=name):
        loaded: Score = entry.load()
        return loaded
    raise UsageError(f"`method` {printable(name)}: there is no such score; choose one of {', '.join(names())}")


def inputs(function: Score) -> set[str]:
    """Which of `INPUTS` a score asks for."""
    return INPUTS.keys() & inspect.signature(function).parameters.keys()


def options(function: Score) -> Options:
    """What can be set of a score, with its defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {
        p.name: None if p.default is p.empty else p.default
        for p in parameters
        if p.kind is p.KEYWORD_ONLY and p.name not in INPUTS
    }
