"""What images look like, in words: clusters of their features, named by WordNet's nouns.

With c a cluster's mean feature, μ the mean of all images, t_m the text feature of noun m, and σ the root mean square of
(x − μ)·t over images and nouns, a cluster is as much like a noun n, above other images, as

    z(c, m) = (c − μ)·t_m / σ
    S(c, n) = log(Σ_m exp(a z(c, m))) / a − δ log(N) / a − β r(n) − γ (words − 1)

m being the N kinds of n, all the way down, and n itself: a noun has the evidence of its kinds, so that a single odd
one does not win, and `dog` may stand for a mixture of breeds. r(n) is how rare the rarest word of n is: the logarithm
of its rank among the words of CLIP's tokenizer, which are ordered by how frequent they are in captions.

A greedy set cover then takes the noun that explains most images, those of the clusters where it is as good as the best
one but for a margin, and goes on with the clusters that are left. So `dog` takes the clusters of breeds where it is as
good a name, and leaves alone those of dalmatians where it is not.
"""

import heapq
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ood_audit.arrays import Spanned, unit
from ood_audit.classes import pools, texts, wordnet
from ood_audit.classes.prototypes import sample
from ood_audit.encoders.tokens import merges
from ood_audit.errors import OodAuditError, UsageError
from ood_audit.progress import Progress, counting, silent
from ood_audit.store import DEFAULT_STORE, Store, open_store
from ood_audit.store.locks import computing
from ood_audit.store.parts import iter_features
from ood_audit.store.views import count_readable, registered

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection
    from scipy.sparse import csr_array


Floats = NDArray[np.float32]
MOST = 20_000  # images that are clustered; the others are put into the clusters that are found
EXAMPLES = 3
FEW = 6  # with fewer images there is one cluster, which is the mean that it would be compared with

# Chosen on the 707 pictures of Caltech-101 that `benchmarks/suggest.py` measures, beside photographs of PACS.
_SHARPNESS, _SIZE = 2.0, 0.7  # a and δ
_RARE, _WORDS = 0.2, 0.9  # β and γ
_MARGIN = 0.1  # two nouns whose S differs by less explain a cluster equally well
_LIKE = 2.2  # the least z of the best noun; a cluster below it is a mixture, and gets no name
# For the names of a report's groups. Of 40 flagged images among 707 of Caltech-101, the starter's names are right for
# 19 without this rule; with it 22 keep a name, which is right for the same 19 (the others are saxophones: saxhorn).
_SURE_IMAGES, _SURE_LIKE, _SURE_LEAD = 3, 4.4, 0.2
_COMMON = 6.0  # words with a smaller log rank are all common
_UNKNOWN = 2 * 49_152  # the rank of a word that CLIP's tokenizer takes apart
_CLUSTERS = 2.5  # the number of clusters is √N times this
_CHUNK = 64  # clusters at a time
_SAID = 5  # clusters named in a report's notes


@dataclass(frozen=True)
class Suggestion:
    """A name, how many images look like it, and the paths of the most typical ones."""

    name: str
    images: int
    examples: list[str]


@dataclass(frozen=True)
class Suggestions:
    """Names for the images of a store: the most frequent first.

    Attributes:
        rows: the names.
        images: how many images there are in all.
        unnamed: how many of them have none of these names.

    """

    rows: list[Suggestion]
    images: int
    unnamed: int

    @property
    def why_none(self) -> str | None:
        """Why there is no name, as a sentence; None where there are names."""
        if self.rows:
            return None
        if self.images < FEW:
            images = "1 image" if self.images == 1 else f"{self.images} images"
            return (
                f"nothing to suggest: {images} cannot be compared with what is usual in the store; embed at least {FEW}"
            )
        return (
            "nothing to suggest: no group of images looks more like a noun than the other images do, as where all "
            "show the same kind of thing; write the list of classes by hand"
        )


@dataclass(frozen=True)
class Likeness:
    """What names are compared with: see the formula above.

    Attributes:
        names: M nouns.
        features: of M nouns.
        mean: (D,), μ.
        scale: σ.

    """

    names: list[str]
    features: Spanned
    mean: Floats
    scale: float


def suggest(
    store: str | os.PathLike[str] | Store = DEFAULT_STORE,
    *,
    most: int = 50,
    device: str = "auto",
    on_progress: Progress = silent,
) -> Suggestions:
    """Name what is in a store's images, without a list of classes.

    The text features of 45,000 nouns are encoded once a store. Memory holds 20,000 image features.

    Args:
        store: a store or its folder.
        most: how many names at most.
        device: for the encoder, if the nouns have to be encoded.
        on_progress: called with the stages of the work, see `ood_audit.progress.Progress`.

    Raises:
        UsageError: `most` makes no sense. StoreError: no store, or another is writing.
        OodAuditError: the store holds no readable image.

    """
    if most < 1:
        raise UsageError(f"`most` {most}: choose 1 or more")
    if not isinstance(store, Store):
        store = open_store(store)
    total = count_readable(store)
    if total == 0:
        raise OodAuditError("the store holds no readable image; run `ood-audit embed FOLDER`")

    if total < FEW:
        return Suggestions([], total, total)
    with computing(store.root):
        encoder = texts.encoder_of(store, device, on_progress)
        nouns = pools.nouns(store, encoder, counting(on_progress, "encoding names"))
        assert nouns is not None  # noqa: S101  with an encoder they are always there
        on_progress("putting like images together")
        sampled, _ = _collect(store, total, ())
        likeness = _likeness(*nouns, sampled)
        centers, labels = clusters(sampled)
        on_progress("naming the groups")
        names = name_clusters(centers, np.bincount(labels, minlength=len(centers)), likeness, most)
        return _counted(store, centers, names, total)


def name_images(store: Store, wanted: Sequence[str], total: int, nouns: tuple[list[str], Spanned]) -> dict[str, str]:
    """What some images of a store look like, each with those that it lies in a cluster with.

    Args:
        store: the store.
        wanted: image ids, of which the first 20,000 are named.
        total: how many readable images the store has.
        nouns: as `pools.nouns` gives them.

    Returns:
        names by image id; without those that look like nothing in particular, and those whose name is not sure.

    """
    wanted = wanted[:MOST]
    if not wanted:
        return {}
    sampled, own = _collect(store, total, wanted)
    centers, labels = clusters(own)
    sizes = np.bincount(labels, minlength=len(centers))
    likeness = _likeness(*nouns, sampled)
    scored = _scores(centers, likeness)
    names = _covered(*scored, sizes, likeness, len(centers))
    sure = _sure(names, *scored, sizes, likeness)
    called = zip(wanted, (names[label] for label in labels), strict=True)
    return {image_id: name for image_id, name in called if name in sure}


def clusters(features: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """(N, D) → the (k, D) means of clusters by k-means, more of them than there will be names, and (N,) their numbers.

    The same features give the same clusters.
    """
    import faiss  # scikit-learn's k-means takes a second to import
    from threadpoolctl import threadpool_limits

    distinct = len(np.unique(features, axis=0)) if len(features) < 1000 else len(features)
    count = max(1, min(round(_CLUSTERS * len(features) ** 0.5), len(features) // 3, distinct))
    start = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
    limits = {"min_points_per_centroid": 1, "max_points_per_centroid": len(features)}
    fitted = faiss.Kmeans(features.shape[1], count, nredo=10, seed=0, init_method=start, **limits)
    with threadpool_limits(1, "openmp"):  # of clusters so small, threads would wait for each other most of the time
        fitted.train(np.ascontiguousarray(features))
        _, labels = fitted.assign(features)
    return fitted.centroids, labels.astype(np.int64)


def name_clusters(centers: Floats, sizes: NDArray[np.int64], likeness: Likeness, most: int) -> list[str | None]:
    """A name for each cluster; None for a mixture, and for those that `most` names do not reach.

    Args:
        centers: (k, D) the means of the clusters.
        sizes: (k,) how many images are in each.
        likeness: the nouns, and what is usual.
        most: how many names at most.

    """
    return _covered(*_scores(centers, likeness), sizes, likeness, most)


def _covered(scores: Floats, best: Floats, sizes: NDArray[np.int64], likeness: Likeness, most: int) -> list[str | None]:
    """The greedy set cover, by what `_scores` gives."""
    named = (best >= _LIKE) & np.isfinite(scores.max(axis=1))
    fits = (scores >= scores.max(axis=1, keepdims=True) - _MARGIN) & named[:, None]
    left = sizes * named
    shares = fits.astype(np.float32)  # a product of floats takes a tenth of the time, and is exact below 2^24 images
    chosen: list[int] = []
    names = np.full(len(scores), -1)
    while left.any() and len(chosen) < most:
        explained = left.astype(np.float32) @ shares
        # Of those that explain most images, the one that fits them best.
        ties = np.flatnonzero(explained == explained.max())
        pick = int(ties[(left @ np.where(fits[:, ties], scores[:, ties], 0)).argmax()])
        chosen.append(pick)
        names[fits[:, pick] & (left > 0)] = pick
        left = np.where(fits[:, pick], 0, left)
    return [None if n < 0 else likeness.names[n] for n in names]


def _sure(
    names: Sequence[str | None], scores: Floats, best: Floats, sizes: NDArray[np.int64], likeness: Likeness
) -> set[str | None]:
    """The names that a person can rely on: of several images, very like them, and clearly before the next noun."""
    senses, name_of, _, _ = _taxonomy(tuple(likeness.names))
    sure: set[str | None] = set()
    for name in dict.fromkeys(name for name in names if name is not None):
        own = likeness.names.index(name)
        rows = [row for row, other in enumerate(names) if other == name]
        mean = np.average(scores[rows], axis=0, weights=sizes[rows])
        # The kinds of a thing, and what it is a kind of, say the same as its name.
        same = np.zeros(len(mean), bool)
        same[senses[np.flatnonzero(name_of == own)].indices] = True
        same[name_of[senses[:, [own]].nonzero()[0]]] = True
        lead = mean[own] - mean[~same].max(initial=-np.inf)
        if sizes[rows].sum() >= _SURE_IMAGES and best[rows].max() >= _SURE_LIKE and lead >= _SURE_LEAD:
            sure.add(name)
    return sure


def _scores(centers: Floats, likeness: Likeness) -> tuple[Floats, Floats]:
    """S, (k, M); and (k,), the largest z of each."""
    senses, name_of, logs, penalty = _taxonomy(tuple(likeness.names))
    order = np.argsort(name_of, kind="stable")
    known = np.unique(name_of)  # the others have no sense that is common enough to be a name
    starts = np.searchsorted(name_of[order], known)
    scores = np.full((len(centers), len(likeness.names)), -np.inf, np.float32)
    best = np.full(len(centers), -np.inf, np.float32)
    if not len(known):
        return scores, best
    for start in range(0, len(centers), _CHUNK):
        z = likeness.features.products(centers[start : start + _CHUNK] - likeness.mean) / likeness.scale
        top = z.max(axis=1)
        mass = senses @ np.exp(_SHARPNESS * (z - top[:, None])).T
        value = np.log(np.maximum(mass, 1e-30)) - _SIZE * logs[:, None]
        own = np.maximum.reduceat(value[order], starts, axis=0).T / _SHARPNESS  # a noun's best sense
        scores[start : start + _CHUNK, known] = own + top[:, None] - penalty[known]
        best[start : start + _CHUNK] = top
    return scores, best


def _likeness(names: list[str], features: Spanned, images: Floats) -> Likeness:
    mean = images.mean(axis=0)
    centred, text = features.beside(images - mean), features.coordinates.astype(np.float32)
    # The mean of ((x − μ)·t)² over all pairs, by way of the two second moments.
    squares = float(np.sum((centred.T @ centred / len(images)) * (text.T @ text / len(text))))
    return Likeness(names, features, mean, max(squares**0.5, 1e-6))


@lru_cache(maxsize=1)
def _taxonomy(names: tuple[str, ...]) -> "tuple[csr_array, NDArray[np.int64], Floats, Floats]":
    """What `_scores` needs of M names.

    Returns:
        (senses, M) 1 where a name is a sense or a kind of it; (senses,) the name of each sense; (senses,) the logarithm
        of how many kinds it has; (M,) what is taken off a name's score.

    """
    import pyarrow as pa
    import pyarrow.compute as pc

    own, kinds = wordnet.senses(names)
    ranks = _ranks()
    words = pc.split_pattern(pc.replace_substring(pa.array(names, pa.string()), "-", " "), " ")
    place = pc.index_in(words.flatten(), pa.array(list(ranks), pa.string()))
    rank = pa.array(list(ranks.values())).take(place).fill_null(_UNKNOWN).to_numpy()
    starts = words.offsets.to_numpy()
    rare = np.log(1 + np.maximum.reduceat(rank, starts[:-1]))
    penalty = _RARE * np.maximum(rare - _COMMON, 0) + _WORDS * (np.diff(starts) - 1)
    return kinds, own, np.log(np.diff(kinds.indptr)).astype(np.float32), penalty.astype(np.float32)


def common(names: Sequence[str], most: int) -> list[int]:
    """The rows of the names of one word whose rank among the words of CLIP's tokenizer is below `most`.

    People and places that nothing is a kind of are left out, see `wordnet.senses`.
    """
    ranks = _ranks()
    known = set(_taxonomy(tuple(names))[1].tolist())
    return [row for row, name in enumerate(names) if row in known and ranks.get(name, most) < most and len(name) > 2]


@lru_cache(maxsize=1)
def _ranks() -> Mapping[str, int]:
    """The words of CLIP's tokenizer by their rank."""
    joined = map("".join, merges())
    return {word.removesuffix("</w>"): rank for rank, word in enumerate(joined) if word.endswith("</w>")}


def _collect(store: Store, total: int, wanted: Sequence[str]) -> tuple[Floats, Floats]:
    """The features of a sample of all images, and those of the wanted ones in their order; one pass."""
    import pyarrow as pa
    import pyarrow.compute as pc

    chosen, ids = sample(total, most=MOST), pa.array(wanted, pa.string())
    own = np.zeros((len(wanted), store.encoder.dimension), np.float32)
    sampled, start = [own[:0]], 0
    for batch in iter_features(store):
        sampled.append(unit(batch.codes[chosen[(chosen >= start) & (chosen < start + len(batch.codes))] - start]))
        start += len(batch.codes)
        found = pc.index_in(batch.image_ids, value_set=ids)
        rows = np.flatnonzero(found.is_valid())
        own[found.take(pa.array(rows))] = unit(batch.codes[rows])
    return np.concatenate(sampled), own


def _counted(store: Store, centers: Floats, names: list[str | None], total: int) -> Suggestions:
    """Put all images into the clusters, and count by name."""
    offset = (centers**2).sum(axis=1) / 2
    order = {name: i for i, name in enumerate(dict.fromkeys(name for name in names if name is not None))}
    name_of = np.array([-1 if name is None else order[name] for name in names])
    counts = np.zeros(len(order), np.int64)
    best: list[list[tuple[float, str]]] = [[] for _ in order]
    for batch in iter_features(store):
        closeness = batch.features @ centers.T - offset
        nearest = closeness.argmax(axis=1)
        own = name_of[nearest]
        counts += np.bincount(own[own >= 0], minlength=len(order))
        typical = closeness[np.arange(len(own)), nearest] + offset[nearest]
        for i in range(len(order)):
            rows = np.flatnonzero(own == i)
            rows = rows[np.argsort(-typical[rows], kind="stable")[:EXAMPLES]]
            near = zip(typical[rows].tolist(), batch.paths.take(rows).to_pylist(), strict=True)
            best[i] = heapq.nlargest(EXAMPLES, [*best[i], *near])
    found = [Suggestion(name, int(counts[i]), [path for _, path in best[i]]) for name, i in order.items()]
    found = sorted((row for row in found if row.images), key=lambda row: (-row.images, row.name))
    return Suggestions(found, total, total - sum(row.images for row in found))


def as_labels(suggestions: Suggestions) -> str:
    """A labels file: a name a line, with a comment that says how many images look like it."""
    from ood_audit.text import printable

    lines = ["# Suggested by `ood-audit labels suggest`: keep what should be there, correct the names."]
    for row in suggestions.rows:
        images = "1 image" if row.images == 1 else f"{row.images} images"
        lines.append(f"{row.name}  # {images}, e.g. {printable(row.examples[0])}")
    return "\n".join(lines) + "\n"


def group(
    db: "DuckDBPyConnection", decisions: "pa.Table", store: Store, total: int, listed: int
) -> tuple["pa.Table", list[str]]:
    """Name what the flagged images look like, or where there are no flags the first `listed` of the ranking.

    Args:
        db: a connection with the view `scores`.
        decisions: of `decide.decide`.
        store: the store. Nothing is named if it lacks the text features of the nouns.
        total: how many readable images it has.
        listed: how many images the report lists.

    Returns:
        The decisions with the names in the column `cluster`; and what a person should know, a sentence each.

    """
    import pyarrow as pa
    import pyarrow.compute as pc

    known = decisions["flagged"].null_count < len(decisions)
    chosen = decisions.filter(decisions["flagged"]) if known else decisions
    with registered(db, chosen=chosen.select(["image_id"])):
        rows = db.execute(
            "SELECT image_id FROM scores SEMI JOIN chosen USING (image_id) "
            "ORDER BY ood_score DESC, path, image_id LIMIT ?",
            [MOST if known else min(listed, MOST)],
        ).fetchall()
    wanted = [image_id for (image_id,) in rows]
    if not wanted:
        return decisions, []
    if (nouns := pools.nouns(store)) is None:
        return decisions, ["to see what these images look like, run `ood-audit labels suggest` once, and report again"]
    names = name_images(store, wanted, total, nouns)
    at = pc.index_in(decisions["image_id"], value_set=pa.array(names, pa.string()))
    named = pa.array(names.values(), pa.string()).take(at.combine_chunks())
    decisions = decisions.set_column(decisions.column_names.index("cluster"), "cluster", named)
    several = [(name, n) for name, n in Counter(names.values()).most_common(_SAID) if n > 1]
    if not several:
        return decisions, []
    return decisions, [f"what they look like: {', '.join(f'{name} ({n} images)' for name, n in several)}"]
