"""The ranking of a folder where little is known but the class names: several kinds of evidence, joined by their ranks.

With n images of K classes and cosines s, each piece of evidence is higher for more out-of-distribution images:

    energy    −ΔE, with one reset (c = 1) and the background, of corrected cosines, see below
    standing  −max_k z_ik with z_ik = (s_ik − mean_k) / std_k over the folder: an image may be as close to a name as
              other images of this folder are to theirs; this corrects names that are near to everything, or to nothing
    novelty   1 − cosine to the k-th nearest neighbour in the folder, k = n / K / 5; near duplicates do not count. The
              cosines are those between the looks of images, see `encoders.looks`, and where there are none between
              their features
    around    −mean z of the nearest neighbours for the name that the image itself is nearest to. Unknown images that
              are many are each other's neighbours, and not novel; but their neighbours are not like that name either

R is the rank in (0, 1), and P its normal quantile, so that the tails count more than they would in a sum of ranks:

    ood_score = P(energy) + ¼ G P(standing) + w [ ¾ P(max(R(novelty), ⅘ R(around))) + ¼ P(around) ]

w is ¾ G where a class has 16 images or more, 0 where it has 8 or fewer, and in between in between. G, from 0 to 1, is
how much novelty helps when classes of this very folder play unknown ones: the nearest class of each image of the more
confident 70% loses its name and its images, which are no neighbours any more. What counts is the gain in AUROC that
novelty brings in telling such images from all others: nothing up to 3 points, all from 6 points on.

CLIP's images and texts lie apart (Liang et al., "Mind the gap", NeurIPS 2022), so that a name can be similar to all
images of a folder, whatever they show, or to none because it lies far out among the names. Where there are 20 images or
more, the cosine of each name t, of a class or of the background, is corrected for both in the energy, and there alone:

    s + t·(a n − ½ m)    m the mean image of the folder, n the mean class name, a = ⅘ τ / std of t·n, at most ¼

The standard deviation is that over the background names, or over the classes where there are none. Where images are
labelled or lie in class folders, and their pictures tell nothing (see `scoring.pictures`), the energy is corrected like
this as well, with the τ of the encoder's card for a, and nothing is joined with it.

Where the folder has many images, the neighbours are those in a sample of it. Labelled images that are too few to choose
anything by do not change the ranking: they are scored by the ranks that they would have, and calibrate flags. The rule
was chosen on halves of the names of several sets, and confirmed on other halves: `benchmarks/clip.py`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from ood_audit.arrays import Spanned, largest, to_numpy
from ood_audit.encoders.cpu import mapped
from ood_audit.scoring.ranks import Numbers, auroc, ranks, ranks_within
from ood_audit.store import Store
from ood_audit.store.parts import has_looks, iter_features, iter_looks
from ood_audit.store.views import count_readable

if TYPE_CHECKING:
    from ood_audit.scoring.references import Calibration
    from ood_audit.scoring.similarity import Chunk

Floats = NDArray[np.float32]
Seen = tuple[Floats, Floats | None]  # (N, D) features of images, and their (N, L) looks

WHOLE = 20_000  # images up to which all are compared with all
SAMPLE = 8192  # images that are neighbours in a larger folder
_BLOCK = 256  # images at a time
_CONFIDENT = 0.7  # the share of the images that play images of an unknown class
_AROUND = 0.8  # how high strange neighbours alone can put an image
_GAIN = (3.0, 6.0)  # points of AUROC that novelty has to bring, to count at all and to count fully
_MOST_WEIGHT = 0.75  # more would gain more on aerial pictures, and cost a little where many images are unknown
_STANDING = 0.25
_FEWEST = 20  # images whose mean says anything about the others
_HUB, _CENTRAL, _MOST_CENTRAL = 0.5, 0.8, 0.25
_IMAGES_A_CLASS = (8.0, 16.0)
_HIGH = 0.9  # the rank above which a piece of evidence speaks by itself
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
        correction: (D,) a n − ½ m, see the module; None where cosines are taken as they are.
        looks: (m, L) float32 of length 1, of the neighbours; None where novelty is by features.

    """

    neighbours: Floats
    is_whole: bool
    images: int
    mean: Numbers
    std: Numbers
    text: Floats
    duplicate: float
    weight: float | None = None
    correction: Floats | None = None
    looks: Floats | None = None

    @property
    def rank(self) -> int:
        """k: which neighbour is looked at."""
        return max(1, round(len(self.neighbours) / len(self.text) / 5))


@dataclass(frozen=True)
class Evidence:
    """(N,) each, of the same images.

    Attributes:
        energy: −ΔE, of corrected cosines where the `Joint` has a correction.
        standing: see the module.
        outside: the log-sum-exp of the background at the temperature of ΔE, corrected like that; −inf without one.
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
        calibration: (M,) the ood_score of the calibration images; None without any.

    """

    ood_score: Numbers
    novelty: Numbers
    unlike: NDArray[np.int8]
    weight: float
    neighbours: int
    calibration: Numbers | None = None


def quantiles(values: Numbers) -> Numbers:
    """(N,) → (N,), the normal quantile of each value's rank; of equal values the mean rank."""
    found: Numbers = ndtri(ranks(values))
    return found


def quantiles_within(values: Numbers, reference: Numbers) -> Numbers:
    """(N,) values → (N,), the normal quantiles of the ranks that they would have among those of `reference`."""
    ordered = np.sort(reference)
    below = (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / 2
    found: Numbers = ndtri((below + 0.5) / (len(ordered) + 1))
    return found


def read(
    store: Store, text: Floats, duplicate: float, weight: float | None, parts: list[Path], among: "Calibration | None"
) -> Joint:
    """Read the images of a store that can be neighbours, with looks if all have one, also those to rank `among` them.

    See `prepare` for the other arguments.
    """
    looks = has_looks(parts) and (among is None or among.looks is not None)
    total = count_readable(store, parts)
    share = 1.0 if total <= WHOLE else SAMPLE / total
    found = [batch.features for batch in iter_features(store, parts=parts, share=share)]
    neighbours = np.concatenate(found) if found else np.zeros((0, text.shape[1]), np.float32)
    seen = list(iter_looks(store, parts=parts, share=share)) if looks else []
    return prepare(neighbours, total, text, duplicate, weight, np.concatenate(seen) if seen else None)


def prepare(
    neighbours: Floats,
    total: int,
    text: Floats,
    duplicate: float,
    weight: float | None = None,
    looks: Floats | None = None,
) -> Joint:
    """What the evidence is computed from.

    Args:
        neighbours: (m, D) float32 of length 1, the images that can be neighbours: all of them, or a sample.
        total: how many images there are.
        text: (K, D) float32 of length 1, the text features of the classes.
        duplicate: the cosine above which two images are near duplicates.
        weight: of novelty; None to choose it.
        looks: (m, L) float32 of length 1, of the neighbours; None for novelty by features.

    """
    is_whole = len(neighbours) == total
    cosines = neighbours @ text.T
    std = np.maximum(cosines.std(axis=0, dtype=np.float64), 1e-6)
    mean = cosines.mean(axis=0, dtype=np.float64)
    return Joint(neighbours, is_whole, total, mean, std, text, duplicate, weight, looks=looks)


def corrected(joint: Joint, background: Spanned | None, temperature: float) -> Joint:
    """`joint` with the correction of its cosines, see the module; as it is where there are too few images.

    Args:
        joint: what evidence is computed from.
        background: the text features of the background names; None without any.
        temperature: τ of ΔE.

    """
    if joint.images < _FEWEST:
        return joint
    middle = joint.text.mean(axis=0)
    spread = float((joint.text @ middle if background is None else background.products(middle)).std())
    central = min(_MOST_CENTRAL, _CENTRAL * temperature / max(spread, 1e-6))
    correction = central * middle - _HUB * joint.neighbours.mean(axis=0, dtype=np.float64)
    return replace(joint, correction=correction.astype(np.float32))


def standing(joint: Joint, cosines: Floats) -> Numbers:
    """(N, K) cosines to the text features → (N,)."""
    found: Numbers = -((cosines - joint.mean) / joint.std).max(axis=1)
    return found


def evidence_of(chunk: "Chunk", joint: Joint, temperature: float, background: bool) -> tuple[Numbers, Numbers]:
    """`standing` and `outside` of the images of a chunk, (N,) each; `energy` is what the score gives."""
    cosines = to_numpy(chunk.to_text)
    if not background:
        return standing(joint, cosines), np.full(len(cosines), -np.inf)
    outside = to_numpy(chunk.outside(temperature, corrected=joint.correction is not None))
    return standing(joint, cosines), outside.astype(np.float64)


def join(
    joint: Joint,
    evidence: Evidence,
    of_neighbours: Evidence,
    images: Iterable[Seen],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    calibration: tuple[Seen, Evidence] | None = None,
) -> Joined:
    """Join the evidence about all images.

    Args:
        joint: see there.
        evidence: of all images.
        of_neighbours: of `joint.neighbours`; the same as `evidence` where these are all images.
        images: blocks of all images, in the order of `evidence`.
        on_progress: called with the number of images compared with their neighbours and in all.
        calibration: other images, and the evidence about them: they are scored by the ranks that they would have among
            all images.

    """
    cosines = joint.neighbours @ joint.text.T
    gate = _gate(joint, cosines if joint.correction is None else cosines + joint.text @ joint.correction, of_neighbours)
    base = quantiles(evidence.energy) + _STANDING * gate * quantiles(evidence.standing)
    enough = _ramp(joint.images / len(joint.text), *_IMAGES_A_CLASS)
    weight = _MOST_WEIGHT * gate * enough if joint.weight is None else joint.weight
    standings = (cosines - joint.mean) / joint.std
    novelty, around = np.empty(len(base)), np.empty(len(base))
    start = 0
    for of_block in mapped(lambda seen: _compared(joint, *seen, standings), _blocks(images)):
        rows = slice(start, start + len(of_block[0]))
        start = rows.stop
        novelty[rows], around[rows] = of_block
        on_progress(rows.stop, len(base))
    mixed = _mixed(ranks(novelty), ranks(around))
    folder = 0.75 * quantiles(mixed) + 0.25 * quantiles(around)
    unlike = _which_speaks(ranks(base), ranks(folder)) if weight else np.zeros(len(base), np.int8)
    joined = Joined(base + weight * folder if weight else base, novelty, unlike, weight, len(joint.neighbours))
    if calibration is None:
        return joined
    (features, looks), own = calibration
    theirs, around_them = _compared(joint, features, looks, standings)
    among = _mixed(ranks_within(theirs, novelty), ranks_within(around_them, around))
    score = ndtri(ranks_within(own.energy, evidence.energy))
    score += _STANDING * gate * ndtri(ranks_within(own.standing, evidence.standing))
    if weight:
        score += weight * 0.75 * ndtri(ranks_within(among, mixed))
        score += weight * 0.25 * ndtri(ranks_within(around_them, around))
    return replace(joined, calibration=score)


def _mixed(novelty: Numbers, around: Numbers) -> Numbers:
    """What the ranks of both say; a little of the novelty, so that images with equally strange neighbours differ."""
    mixed: Numbers = np.maximum(novelty, _AROUND * around) + 1e-6 * novelty
    return mixed


def _which_speaks(names: Numbers, folder: Numbers) -> NDArray[np.int8]:
    """Of each image whether the names, the folder, or both put it where it is, as places in `UNLIKE`."""
    both = np.minimum(names, folder) >= _HIGH
    return np.where(both, 2, np.where(names >= folder, 0, 1)).astype(np.int8)


def _blocks(images: Iterable[Seen]) -> Iterator[Seen]:
    for features, looks in images:
        for start in range(0, len(features), _BLOCK):
            rows = slice(start, start + _BLOCK)
            yield features[rows], None if looks is None else looks[rows]


def _between(joint: Joint, features: Floats, looks: Floats | None) -> Floats:
    """(N, m) the cosines of images to the neighbours; −1 to near duplicates, and to the image itself."""
    cosines: Floats = features @ joint.neighbours.T
    copies = cosines > joint.duplicate
    if looks is not None and joint.looks is not None:
        cosines = looks @ joint.looks.T
    cosines[copies] = -1.0
    return cosines


def _compared(joint: Joint, features: Floats, looks: Floats | None, standings: Numbers) -> tuple[Numbers, Numbers]:
    """Novelty, and how little the nearest neighbours are like the name that an image is nearest to: (N,) each."""
    if len(joint.neighbours) < 2:
        return np.zeros(len(features)), np.zeros(len(features))
    k = joint.rank
    own = ((features @ joint.text.T - joint.mean) / joint.std).argmax(axis=1)
    cosines = _between(joint, features, looks)
    most = min(max(3, k), cosines.shape[1])
    values, nearest = largest(cosines, most)
    return 1.0 - values[:, min(k, most) - 1].astype(np.float64), -standings[nearest, own[:, None]].mean(axis=1)


def _gate(joint: Joint, cosines: Floats, evidence: Evidence) -> float:
    """G, from 0 to 1. `cosines` (m, K) and `evidence` are those of the neighbours, corrected alike.

    The name that a class loses is not put into the background: unknown things are not named there to the letter.
    """
    if min(cosines.shape) < 2:
        return 0.0
    energy = evidence.energy
    best = cosines.argmax(axis=1)
    near, far = _to_neighbours(joint, best)
    confident = ranks(energy) < _CONFIDENT
    left = cosines.astype(np.float64)
    left[np.arange(len(left)), best] = -np.inf
    without = energy_of(left[confident], evidence.outside[confident], evidence.temperature)
    by_both = auroc(
        quantiles_within(energy, energy) + 0.5 * quantiles_within(-near, -near),
        quantiles_within(without, energy) + 0.5 * quantiles_within(-far[confident], -near),
    )
    return _ramp(100 * (by_both - auroc(energy, without)), *_GAIN)


def _to_neighbours(joint: Joint, nearest_class: NDArray[np.int64]) -> tuple[Numbers, Numbers]:
    """For each of the neighbours the cosine to the k-th of the others: of any class, and of another nearest class."""
    features, k = joint.neighbours, joint.rank
    near, far = np.empty(len(features)), np.empty(len(features))
    for start in range(0, len(features), _BLOCK):
        rows = slice(start, start + _BLOCK)
        cosines = _between(joint, features[rows], None if joint.looks is None else joint.looks[rows])
        near[rows] = _kth(cosines, k)
        cosines[nearest_class[rows][:, None] == nearest_class[None, :]] = -1.0
        far[rows] = _kth(cosines, k)
    return near, far


def _kth(cosines: Floats, k: int) -> Numbers:
    k = min(k, cosines.shape[1])
    found: Numbers = -np.partition(-cosines, k - 1, axis=1)[:, k - 1].astype(np.float64)
    return found


def energy_of(cosines: Numbers, outside: Numbers, temperature: float) -> Numbers:
    """−ΔE for c = 1 and v = 0 of cosines of which some are −∞: (N, K) and (N,) → (N,)."""
    from scipy.special import logsumexp

    top = cosines.max(axis=1)
    rest = cosines.copy()
    rest[np.arange(len(rest)), cosines.argmax(axis=1)] = -np.inf
    others = np.logaddexp(logsumexp(rest / temperature, axis=1), outside)
    found: Numbers = np.logaddexp(others, 0.0) - np.logaddexp(others, top / temperature)
    return found


def _ramp(value: float, low: float, high: float) -> float:
    return float(np.clip((value - low) / (high - low), 0, 1))
