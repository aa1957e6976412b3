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
        shots: labelled images of each class to train on; None for all that are not held out.
        context_vectors: n; None for as many as the words of `init` have tokens, or 16 without words.
        init: words to start from; None for N(0, 0.02).
        epochs: at most so many passes over the labelled images; 0 learns nothing. None: 40 for prompts; for a residual
            as many as make 60 steps, 5 at least.
        lr: the learning rate, which falls to 0 as a cosine over `epochs`.
        batch_size: images in a step.
        lambda_: λ, the weight of the EBM term.
        ebm_temperature: τ of its energies.
        mask_proportion: p; with `mask="adaptive"` a share of the similarity. None: 0.5; with `adaptive` the one of
            0.25, 0.5 and 0.75 that the folds judge best.
        mask: `top` zeroes the proportion p of elements with the largest products, `keep` all others, `random` any.
            `adaptive` zeroes the smallest set of elements whose products add up to the share p of the similarity.
        regulariser: `pull` holds the class features near those of "a photo of a NAME." (KgCoOp), `ogen` trains on
            generated features of unknown classes as well, `none` is CoOp and the paper. None: `pull` for the
            renormalised EBM and where `pull` is given, else `none`.
        pull: κ, how strongly the class features are pulled. None: 4.
        ogen: the weight of OGEN's loss.
        gap: how far the features of class names and background names are moved along the way from names to labelled
            images before a residual is learned, 1 being all of it. 0 without a background, and for prompts.
        evened: the power by which the spread of labelled images around their names is evened out before a residual is
            learned: directions in which they differ much count less. 0 leaves all alike, as it is for prompts.
        background: whether the softmax of the cross-entropy runs over the background names, too.
        apart: the weight of a term that holds each image apart from the classes that it is not of: among these and the
            background names it is to be one of the background. 0 without a background.
        distil: the weight of self-distillation, the mean squared difference of the cosines from a teacher's. The
            teacher is the mean of what was learned in the last `window` epochs.
        window: how many epochs.
        unlabelled: whether the images under audit take part without labels: a confident image must tell when it is
            masked what the teacher tells of the whole one, and not all of them may fall to one class.
        consistency: the weight of the terms of unlabelled images.
        folds: how many times classes are left out, 4 for prompts and 8 for a residual; 0 forgoes the estimate, trains
            all epochs and keeps the last.
        seed: of every random choice.
        prototypes: whether reports with these prompts compare images with class prototypes, too.

    """

    method: str = "prompt"
    loss: str = "ebm"
    ebm: str = "renormalised"
    shots: int | None = None
    context_vectors: int | None = None
    init: str | None = "a photo of a"
    epochs: int | None = None
    lr: float = 0.02
    batch_size: int = 32
    lambda_: float = 5.0
    ebm_temperature: float = 1.0
    mask_proportion: float | None = None
    mask: str = "random"
    regulariser: str | None = None
    pull: float | None = None
    ogen: float = 1.0
    gap: float = 0.0
    evened: float = 0.0
    background: bool = False
    apart: float = 0.0
    distil: float = 0.0
    window: int = 5
    unlabelled: bool = False
    consistency: float = 1.0
    folds: int = 4
    seed: int = 0
    prototypes: bool = True


DEFAULTS = {
    "prompt": TuneSettings(),
    "residual": TuneSettings(
        method="residual",
        loss="coop",
        lr=0.001,
        batch_size=1024,
        background=True,
        apart=0.3,
        folds=8,
        gap=0.5,
        evened=0.15,
    ),
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
