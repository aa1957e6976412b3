"""In words: which names one set of images looks more like than another.

With s the cosine of an image to a name, m and v its mean and variance over a set of images, a name has the effect

    d = (m_B − m_A) / √((v_A + v_B) / 2)

and a one-sided p-value by Welch's test, adjusted over all names by Benjamini and Hochberg's rule. Many names say the
same, so they are chosen one after another: each has the largest effect beyond that of the names chosen before, as their
correlation over the images has it,

    (d_n − ρᵀ R⁻¹ d_c) / √(1 − ρᵀ R⁻¹ ρ)

with ρ the correlations of the name with the chosen ones, and R those among these. A name most of which they explain is
left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ood_audit.classes import background, pools, texts
from ood_audit.errors import EncoderError, UsageError
from ood_audit.findings import naming
from ood_audit.findings.drift import adjusted
from ood_audit.store.store import Store

Floats = NDArray[np.float32]
Reals = NDArray[np.floating]
LEVEL = 0.01  # the false discovery rate of names
USUAL = 0.05  # the share of the reference that counts as looking like a name, which sets the threshold
_EXPLAINED = 0.5  # a name says nothing new if the names chosen before explain more of its variance
_LEAST = 0.3  # the least effect of a condition name
_LEAST_THING = 0.5  # the least effect of a background name, of which there are many
EXAMPLES = 6
_COMMON = 8_000  # rank of a word in CLIP's tokenizer: rarer ones are seldom what a person would say


@dataclass(frozen=True)
class Names:
    """Names and their (M, D) text features, all `condition` names or all names of a `thing`."""

    names: Sequence[str]
    features: Floats
    least: float


@dataclass(frozen=True)
class Word:
    """A name that images look more like than others do.

    Attributes:
        name: The name.
        effect: The difference of the mean similarities, in standard deviations.
        p_value: Adjusted over all names.
        threshold: The similarity from which on an image counts as looking like the name. So do 5% of the reference.
        share_reference: The share of the reference that looks like it.
        share: The share of the other images that looks like it.
        examples: The rows of the images that look most like it.

    """

    name: str
    effect: float
    p_value: float
    threshold: float
    share_reference: float
    share: float
    examples: list[int]


def conditions(store: Store, encoder: Callable[[], texts.TextEncoder] | None) -> Names | None:
    """The condition names; None where they are not encoded, and `encoder` is None or has no model any more."""
    corpus = background.CORPORA["conditions"]()
    if not background.known(store, corpus) and encoder is None:
        return None
    try:
        features = background.features(store, corpus, encoder)
    except (EncoderError, UsageError):  # the model is not there any more
        return None
    return Names(corpus.names[: len(features)], features.vectors(), _LEAST)


def things(store: Store) -> Names | None:
    """The background names of common words; None where their text features are not there."""
    found = pools.nouns(store)
    if found is None:
        return None
    names, features = found
    rows = naming.common(names, _COMMON)
    return Names([names[row] for row in rows], features.take(rows).vectors(), _LEAST_THING)


def contrast(reference: Floats, other: Floats, families: Sequence[Names], *, most: int = 3) -> list[Word]:
    """What the other images look more like than the reference; the largest effect first within each family.

    Args:
        reference: (N, D) features.
        other: (M, D) features.
        families: Names that are tested together. Those of a later family must say something beyond the earlier ones.
        most: How many names of each family to give at most.

    """
    difference = other.mean(axis=0) - reference.mean(axis=0)
    spreads = (np.cov(reference.T), np.cov(other.T))
    joint = (spreads[0] + spreads[1]) / 2
    chosen = np.empty((0, reference.shape[1]))
    effects = np.empty(0)
    words = []
    for family in families:
        text = family.features
        own, theirs = (np.maximum(np.einsum("md,md->m", text @ spread, text), 1e-12) for spread in spreads)
        effect = (text @ difference) / np.sqrt((own + theirs) / 2)
        p = adjusted(_welch(text @ difference, own, len(reference), theirs, len(other)))
        for _ in range(most):
            beyond = np.where(p <= LEVEL, _beyond(text, effect, chosen, effects, joint), -np.inf)
            pick = int(beyond.argmax())
            if min(beyond[pick], effect[pick]) < family.least:
                break
            chosen, effects = np.vstack([chosen, text[pick]]), np.append(effects, effect[pick])
            words.append(_word(family.names[pick], text[pick], float(effect[pick]), float(p[pick]), reference, other))
    return words


def _beyond(text: Floats, effect: Reals, chosen: Reals, effects: Reals, spread: Reals) -> Reals:
    """(M,): the effect of each name beyond that of the chosen ones."""
    if not len(chosen):
        return effect
    size = np.sqrt(np.maximum(np.einsum("md,md->m", text @ spread, text), 1e-12))
    scale = np.sqrt(np.maximum(np.einsum("md,md->m", chosen @ spread, chosen), 1e-12))
    rho = (text @ spread @ chosen.T) / size[:, None] / scale
    among = (chosen @ spread @ chosen.T) / scale[:, None] / scale + 1e-3 * np.eye(len(chosen))
    weights = np.linalg.solve(among, rho.T).T
    left = 1 - (weights * rho).sum(axis=1)
    beyond = (effect - weights @ effects) / np.sqrt(np.maximum(left, _EXPLAINED))
    return np.where(left >= 1 - _EXPLAINED, beyond, -np.inf)


def _welch(difference: Floats, own: Floats, n: int, theirs: Floats, m: int) -> Floats:
    """(M,) one-sided p-values of Welch's test."""
    from scipy.stats import t

    a, b = own / n, theirs / m
    freedom = (a + b) ** 2 / (a**2 / (n - 1) + b**2 / (m - 1))
    p: Floats = t.sf(difference / np.sqrt(a + b), freedom)
    return p


def _word(name: str, text: Floats, effect: float, p: float, reference: Floats, other: Floats) -> Word:
    own, theirs = reference @ text, other @ text
    threshold = float(np.quantile(own, 1 - USUAL))
    first = np.argsort(-theirs, kind="stable")
    share_reference, share = float((own > threshold).mean()), float((theirs > threshold).mean())
    return Word(name, effect, p, threshold, share_reference, share, first[:EXAMPLES].tolist())
