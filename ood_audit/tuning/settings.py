"""How to tune."""

from dataclasses import dataclass, replace
from typing import Any

from ood_audit.errors import UsageError
from ood_audit.text import printable


@dataclass(frozen=True)
class TuneSettings:
    """How to tune. The defaults are those of prompts; `settings_of(method="residual")` gives those of the residual.

    Attributes:
        method: `prompt` learns context vectors in front of the names, `residual` a vector to add to each class feature.
        loss: `ebm` or `coop`.
        ebm: which reading of EBM, see `losses`: `literal`, or `renormalised`, which pays.
        shots: labelled images a class to train on; None for all that are not held out.
        context_vectors: n; None for as many as the words of `init` have tokens, or 16 without words.
        init: words to start from; None for N(0, 0.02).
        epochs: at most so many passes over the labelled images; 0 learns nothing.
        lr: the learning rate, which falls to 0 as a cosine over `epochs`.
        batch_size: images a step.
        lambda_: λ, the weight of the EBM term.
        ebm_temperature: τ of its energies.
        mask_proportion: p.
        mask: `top` zeroes the proportion p of elements with the largest products, `keep` all others, `random` any.
        pull: κ, how strongly the class features are held near those of "a photo of a NAME." (KgCoOp); 0: not at all,
            as in CoOp and in the paper. None: 4 for the renormalised EBM, else 0.
        folds: how many times classes are left out; 0 forgoes the estimate, trains all epochs and keeps the last.
        seed: of every random choice.
        prototypes: whether reports with these prompts compare images with class prototypes, too.

    """

    method: str = "prompt"
    loss: str = "ebm"
    ebm: str = "renormalised"
    shots: int | None = None
    context_vectors: int | None = None
    init: str | None = "a photo of a"
    epochs: int = 40
    lr: float = 0.02
    batch_size: int = 32
    lambda_: float = 5.0
    ebm_temperature: float = 1.0
    mask_proportion: float = 0.5
    mask: str = "random"
    pull: float | None = None
    folds: int = 4
    seed: int = 0
    prototypes: bool = True


DEFAULTS = {
    "prompt": TuneSettings(),
    "residual": TuneSettings(method="residual", loss="coop", epochs=30, lr=0.002, batch_size=256),
}


def settings_of(*, method: str = "prompt", **given: Any) -> TuneSettings:
    """The settings given, and the defaults of the method for the others.

    Raises:
        UsageError: There is no such method.

    """
    if method not in DEFAULTS:
        raise UsageError(f"`method` {printable(method)}: choose {', '.join(DEFAULTS)}")
    if given.get("ebm") == "literal":
        given.setdefault("mask", "top")
    return replace(DEFAULTS[method], **given)
