"""What ranks a folder of which nothing is known but the names: three kinds of evidence, joined by their ranks.

With n images of K classes and cosines s, each piece of evidence is higher for more out-of-distribution images:

    energy    −ΔE, with one reset (c = 1) and the background
    standing  −max_k (s_ik − mean_k) / std_k over the folder: an image may be like no name as much as other images of
              this folder are like theirs; this corrects names that are near to everything, or to nothing
    novelty   1 − cosine to the k-th nearest neighbour in the folder, k = n / K / 5; near duplicates do not count

and the two latter are weighed by what they are worth on this very folder. Ranks are turned into normal quantiles P, so
that the tails count more than they would in a sum of ranks:

    base     = P(energy) + (¼ + ¼ G) P(standing)
    ood_score = base + w G P(max(rank(novelty), ⁴⁄₅ rank(m)))

m is the mean rank of the base over an image's nearest neighbours. Unknown images that are many are each other's
neighbours: they are not novel, but their neighbours are like no class either, and so they stay suspicious.

G, from 0 to 1, is how much novelty helps when classes of the folder play unknown ones: for each image of the more
confident 70% its nearest class loses its name and its images, which are no neighbours any more, and what counts is the
gain in AUROC that novelty brings in telling such images from all others. Novelty also needs enough images a class.

Where the folder has many images, the neighbours are those in a sample of it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import rankdata

from ood_audit.store import Store
from ood_audit.store.parts import iter_features
from ood_audit.store.views import count_readable

if TYPE_CHECKING:
    from ood_audit.matching import Chunk

Numbers = NDArray[np.float64]
Floats = NDArray[np.float32]

WHOLE = 20_000  # images up to which all are compared with all
SAMPLE = 8192  # images that are neighbours in a larger folder
_BLOCK = 1024
_CONFIDENT = 0.7  # of the images, which play images of an unknown class
_STRANGE_NEIGHBOURS = 0.8
_GAIN = (1.0, 3.0)  # points of AUROC that novelty has to bring, to count at all and to count fully
_IMAGES_A_CLASS = (8.0, 16.0)
_UNCOVERED = (0.05, 0.15)  # how much AUROC is lost because the background does not know such images
UNLIKE = ("every class", "the rest of the folder", "both")


@dataclass(frozen=True)
class Joint:
    """What the evidence about one folder is computed from.

    Attributes:
        neighbours: (m, D) float32 of length 1, the images that can be neighbours.
        is_whole: whether these are all images, in the order in which they are read.
        images: n, how many images the folder has.
        mean: (K,) of the cosines to each class over the neighbours.
        std: (K,) their standard deviations.
        text: (K, D) text features.
        duplicate: the cosine above which two images are near duplicates.
        weight: the weight of novelty; None to choose it.

    """

    neighbours: Floats
    is_whole: bool
    images: int
    mean: Numbers
    std: Numbers
    text: Floats
    duplicate: float
    weight: float | None = None

    @property
    def rank(self) -> int:
        """k: which neighbour is looked at."""
        return max(1, round(len(self.neighbours) / len(self.text) / 5))


@dataclass(frozen=True)
class Evidence:
    """(N,) each, of the same images.

    Attributes:
        energy: −ΔE.
        standing: see the module.
        outside: the log-sum-exp of the background at the temperature of ΔE; −inf without one.
        temperature: that temperature.

    """

    energy: Numbers
    standing: Numbers
    outside: Numbers
    temperature: float


@dataclass(frozen=True)
class Joined:
    """The joined evidence.

    Attributes:
        ood_score: (N,) higher for more OOD.
        novelty: (N,) 1 − cosine to the k-th neighbour.
        unlike: (N,) which evidence speaks, a place in `UNLIKE`.
        weight: of novelty; 0 where it would not help.
        neighbours: how many images the neighbours are taken from.

    """

    ood_score: Numbers
    novelty: Numbers
    unlike: NDArray[np.int8]
    weight: float
    neighbours: int


def quantiles(values: Numbers) -> Numbers:
    """(N,) → (N,), the normal quantile of each value's rank; of equal values the mean rank."""
    found: Numbers = ndtri(_ranks(values))
    return found


def quantiles_within(values: Numbers, reference: Numbers) -> Numbers:
    """(N,) values → (N,), the normal quantiles of the ranks that they would have among those of `reference`."""
    ordered = np.sort(reference)
    below = (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / 2
    found: Numbers = ndtri((below + 0.5) / (len(ordered) + 1))
    return found


def prepare(store: Store, text: Floats, duplicate: float, weight: float | None, parts: list[Path]) -> Joint:
    """Read the images that can be neighbours, and how the cosines to each class are distributed.

    Args:
        store: the store.
        text: (K, D) text features of the classes.
        duplicate: the cosine above which two images are near duplicates.
        weight: of novelty; None to choose it.
        parts: of the store, as `Store.parts` gives them.

    """
    total = count_readable(store, parts)
    is_whole = total <= WHOLE
    share = 1.0 if is_whole else SAMPLE / total
    found = [batch.features for batch in iter_features(store, parts=parts, share=share)]
    neighbours = np.concatenate(found) if found else np.zeros((0, text.shape[1]), np.float32)
    cosines = neighbours @ text.T
    std = np.maximum(cosines.std(axis=0, dtype=np.float64), 1e-6)
    return Joint(neighbours, is_whole, total, cosines.mean(axis=0, dtype=np.float64), std, text, duplicate, weight)


def evidence_of(chunk: "Chunk", joint: Joint, temperature: float, background: bool) -> tuple[Numbers, Numbers]:
    """`standing` and `outside` of the images of a chunk, (N,) each; `energy` is what the score gives."""
    from ood_audit.encoders.device import log_sum_exp

    cosines = chunk.to_text.float().cpu().numpy()
    standing = -((cosines - joint.mean) / joint.std).max(axis=1)
    if not background:
        return standing, np.full(len(cosines), -np.inf)
    return standing, log_sum_exp(chunk.to_background, temperature).double().cpu().numpy()


def join(
    store: Store,
    joint: Joint,
    evidence: Evidence,
    of_neighbours: Evidence,
    parts: list[Path],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Joined:
    """Join the evidence about all images of a store.

    Args:
        store: the store.
        joint: see there.
        evidence: of all images, in the order in which `iter_features` reads `parts`.
        of_neighbours: of `joint.neighbours`; the same as `evidence` where these are all images.
        parts: of the store.
        on_progress: called with the number of images compared with their neighbours and in all.

    """
    cosines = joint.neighbours @ joint.text.T
    near, far = _to_neighbours(joint, cosines.argmax(axis=1)) if len(cosines) > 1 else (None, None)
    gate, uncovered = (0.0, 0.0) if near is None or far is None else _simulate(cosines, of_neighbours, near, far)
    standing_weight = 0.25 + 0.25 * gate
    base = quantiles(evidence.energy) + standing_weight * quantiles(evidence.standing)
    enough = _ramp(joint.images / len(joint.text), *_IMAGES_A_CLASS)
    weight = (0.5 + 0.5 * uncovered) * gate * enough if joint.weight is None else joint.weight
    base_ranks = _ranks(base if joint.is_whole else _base(of_neighbours, standing_weight))
    novelty, strange = np.empty(len(base)), np.empty(len(base))
    for start, features in _features(store, parts):
        rows = slice(start, start + len(features))
        novelty[rows], strange[rows] = _compared(joint, features, base_ranks)
        on_progress(rows.stop, len(base))
    novelty_rank = _ranks(novelty)
    # The novelty itself, a little, so that images whose neighbours are equally strange keep an order.
    mixed = np.maximum(novelty_rank, _STRANGE_NEIGHBOURS * _ranks(strange) + 1e-6 * novelty_rank)
    score = base + weight * quantiles(mixed) if weight else base
    unlike = _which_speaks(_ranks(base), _ranks(mixed)) if weight else np.zeros(len(base), np.int8)
    return Joined(score, novelty, unlike, weight, len(joint.neighbours))


def _base(evidence: Evidence, standing_weight: float) -> Numbers:
    return quantiles(evidence.energy) + standing_weight * quantiles(evidence.standing)


def _which_speaks(base: Numbers, mixed: Numbers) -> NDArray[np.int8]:
    """Of each image whether the names, the folder, or both put it so high, as places in `UNLIKE`."""
    high = np.minimum(base, mixed) >= 0.9
    return np.where(high, 2, np.where(base >= mixed, 0, 1)).astype(np.int8)


def _features(store: Store, parts: list[Path]) -> Iterator[tuple[int, Floats]]:
    start = 0
    for batch in iter_features(store, parts=parts):
        for first in range(0, len(batch.codes), _BLOCK):
            features = batch.features[first : first + _BLOCK]
            yield start, features
            start += len(features)


def _compared(joint: Joint, features: Floats, base_ranks: Numbers) -> tuple[Numbers, Numbers]:
    """Novelty, and the mean rank of the nearest neighbours' base: (N,) each."""
    if len(joint.neighbours) < 2:
        return np.zeros(len(features)), np.full(len(features), 0.5)
    k = joint.rank
    cosines = features @ joint.neighbours.T
    cosines[cosines > joint.duplicate] = -1.0  # the image itself among them
    most = min(max(3, k), cosines.shape[1])
    nearest = np.argpartition(-cosines, most - 1, axis=1)[:, :most]
    values = -np.sort(-np.take_along_axis(cosines, nearest, axis=1), axis=1)
    return 1.0 - values[:, min(k, most) - 1].astype(np.float64), base_ranks[nearest].mean(axis=1)


def _to_neighbours(joint: Joint, nearest_class: NDArray[np.int64]) -> tuple[Numbers, Numbers]:
    """For each of the neighbours the cosine to the k-th of the others: of any class, and of another nearest class."""
    features, k = joint.neighbours, joint.rank
    near, far = np.empty(len(features)), np.empty(len(features))
    for start in range(0, len(features), _BLOCK):
        rows = slice(start, start + _BLOCK)
        cosines = features[rows] @ features.T
        cosines[cosines > joint.duplicate] = -1.0
        near[rows] = _kth(cosines, k)
        cosines[nearest_class[rows][:, None] == nearest_class[None, :]] = -1.0
        far[rows] = _kth(cosines, k)
    return near, far


def _kth(cosines: Floats, k: int) -> Numbers:
    k = min(k, cosines.shape[1])
    found: Numbers = -np.partition(-cosines, k - 1, axis=1)[:, k - 1].astype(np.float64)
    return found


def _simulate(cosines: Floats, evidence: Evidence, near: Numbers, far: Numbers) -> tuple[float, float]:
    """Let the nearest class of the more confident images be unknown, and see what finds these images again.

    The name that a class loses is not put into the background: unknown things are not named there to the letter.

    Returns:
        the gate of novelty, 0 to 1; and how much of such images the background does not know, 0 to 1.

    """
    if cosines.shape[1] < 2:
        return 0.0, 0.0
    energy = evidence.energy
    confident = _ranks(energy) < _CONFIDENT
    best = cosines.argmax(axis=1)
    left = cosines.astype(np.float64)
    own = left[np.arange(len(left)), best] / evidence.temperature
    left[np.arange(len(left)), best] = -np.inf
    without = energy_without(left[confident], evidence.outside[confident], evidence.temperature)
    outside = np.logaddexp(evidence.outside, own)
    named = energy_without(left[confident], outside[confident], evidence.temperature)
    by_energy = _auroc(energy, without)
    by_both = _auroc(
        quantiles_within(energy, energy) + 0.5 * quantiles_within(-near, -near),
        quantiles_within(without, energy) + 0.5 * quantiles_within(-far[confident], -near),
    )
    gain = 100 * (by_both - by_energy)
    return _ramp(gain, *_GAIN), _ramp(_auroc(energy, named) - by_energy, *_UNCOVERED)


def energy_without(cosines: Numbers, outside: Numbers, temperature: float) -> Numbers:
    """−ΔE for c = 1 and v = 0 of cosines of which some are −∞: (N, K) and (N,) → (N,)."""
    from scipy.special import logsumexp

    top = cosines.max(axis=1)
    rest = cosines.copy()
    rest[np.arange(len(rest)), cosines.argmax(axis=1)] = -np.inf
    others = np.logaddexp(logsumexp(rest / temperature, axis=1), outside)
    found: Numbers = np.logaddexp(others, 0.0) - np.logaddexp(others, top / temperature)
    return found


def _auroc(inside: Numbers, unknown: Numbers) -> float:
    """How well a value tells the unknown, where it is higher, from those inside."""
    ranks = rankdata(np.concatenate([inside, unknown]))[len(inside) :].sum()
    count = len(unknown)
    return float((ranks - count * (count + 1) / 2) / (count * len(inside))) if count and len(inside) else 0.5


def _ranks(values: Numbers) -> Numbers:
    """In (0, 1)."""
    found: Numbers = (rankdata(values) - 0.5) / max(1, len(values))
    return found


def _ramp(value: float, low: float, high: float) -> float:
    return float(np.clip((value - low) / (high - low), 0, 1))
