"""Pools: names of other things than the classes, which an image of something else resembles more.

All names are WordNet's. Which of them make a pool:

- `background`: physical nouns of up to three words, less those that name a class: by WordNet (synonyms, and all kinds
  above and below) or by a text cosine over 0.95.
- `neglabel`: of nouns and of adjectives, apart, the 15% farthest from the classes. Jiang et al., ICLR 2024,
  arXiv 2403.20078; tmlr-group/NegLabel. Distance is the 0.95-quantile of the text cosines to all classes.
- `csp`: the same with adjectives made things ("red pattern"), other prompts, and nothing with a cosine over 0.95 to a
  class. Chen et al., NeurIPS 2024, arXiv 2410.08611; MengyuanChen21/NeurIPS2024-CSP.

Two details are ours, as the published code takes them from the order of files on its authors' disk: a word that is a
noun and an adjective is an adjective, and adjectives draw their things in sorted order. And features of several prompts
are averaged after they are given length 1, as those of the classes are everywhere in ood-audit.

Where the features of the names are from: `ood_audit.classes.background`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ood_audit.arrays import Spanned, spanned
from ood_audit.classes import background, texts, wordnet
from ood_audit.classes.vocabulary import Vocabulary, cached_features
from ood_audit.store.store import Store

NAMES = ("background", "neglabel", "csp")

_SAME = 0.95  # names with a larger text cosine mean one thing
_SHARE, _QUANTILE = 0.15, 0.95
_CHUNK_BYTES = 4 << 20  # float32 cosines at a time

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Pool:
    """Names and their text features, beside the classes under the same prompts.

    Attributes:
        names: M names; for `neglabel` and `csp` the selected ones, for `background` all, also those that name a class.
        features: their M vectors of length 1.
        classes: (K, D) float32 of length 1, the text features of the classes.
        pairs: (P, 2) int32, sorted: name `pairs[i, 0]` names class `pairs[i, 1]`. Empty for `neglabel` and `csp`.

    """

    names: list[str]
    features: Spanned
    classes: NDArray[np.float32]
    pairs: NDArray[np.int32]

    def outside(self, classes: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
        """(M,): the names that name none of `classes`, a (K,) mask; None for all classes."""
        of_these = self.pairs if classes is None else self.pairs[classes[self.pairs[:, 1]]]
        mask = np.ones(len(self.names), dtype=bool)
        mask[of_these[:, 0]] = False
        return mask

    @cached_property
    def spanned(self) -> Spanned:
        """The features of the names that name no class; made once, as they are many."""
        return self.features.take(self.outside())

    @cached_property
    def negatives(self) -> NDArray[np.float32]:
        """(M', D): the same, as vectors."""
        vectors: NDArray[np.float32] = self.spanned.vectors()
        return vectors

    def moved(self, move: NDArray[np.float32], weight: float = 1.0) -> "Pool":
        """The same names, their features moved and given length 1 again; the classes stay.

        Args:
            move: (D + 1, D), a matrix and below it a vector to add.
            weight: how much of the move; at 0 the names stay.

        """
        features = self.features.vectors()
        features = (1 - weight) * features + weight * (features @ move[:-1] + move[-1])
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        return replace(self, features=spanned(features.astype(np.float16)))

    def thinned(self, most: int) -> "Pool":
        """At most `most` of the names that name no class, evenly from all of them."""
        rows = np.flatnonzero(self.outside())
        rows = rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)]
        names = [self.names[row] for row in rows]
        return replace(self, names=names, features=self.features.take(rows), pairs=np.empty((0, 2), np.int32))


def load(
    store: Store,
    vocabulary: Vocabulary,
    name: str,
    encoder: Callable[[], texts.TextEncoder],
    on_progress: Progress | None = None,
    note: Callable[[str], None] = lambda message: None,
) -> Pool:
    """The pool `name`, one of `NAMES`, of a vocabulary; from the store where it is there, else selected and kept.

    `on_progress` is called with the number of texts encoded and to encode; `note` is told where a slow text tower has
    encoded only a part of the names.

    Raises:
        OodAuditError: a file of the pool in the store is damaged.

    """
    if name == "background" and (imported := texts.background(store)) is not None:
        return _imported_background(store, vocabulary, *imported, encoder)
    corpus = background.CORPORA[name]()
    path = store.vocabularies / f"{vocabulary.id}-{name}.safetensors"
    features = background.features(store, corpus, encoder, on_progress, note=note)
    names = corpus.names[: len(features)]
    key = f"{corpus.key} {len(names)}"
    found = background.read(path, key)
    if found is None:
        if vocabulary.templates == corpus.noun_prompts:
            classes = cached_features(store, vocabulary, encoder)
        else:
            classes = replace(vocabulary, templates=corpus.noun_prompts).features(encoder().encode_texts)
        rows, pairs = np.arange(len(names), dtype=np.int32), np.empty((0, 2), np.int32)
        if name == "background":
            pairs = naming(names, features, vocabulary, classes)
        else:
            rows = farthest(features, len(corpus.nouns), classes, drop_same=name == "csp")
        found = {"classes": classes, "rows": rows, "pairs": pairs}
        background.write(path, found, key)
    rows = found["rows"]
    if name != "background":
        names, features = [names[row] for row in rows], features.take(rows)
    return Pool(names, features, found["classes"], found["pairs"])


def _imported_background(
    store: Store,
    vocabulary: Vocabulary,
    names: list[str],
    features: NDArray[np.float32],
    encoder: Callable[[], texts.TextEncoder],
) -> Pool:
    """The background of a store whose background names were imported with their vectors."""
    classes = cached_features(store, vocabulary, encoder)
    of_names = Spanned(features.astype(np.float16))
    return Pool(names, of_names, classes, naming(names, of_names, vocabulary, classes))


def is_available(store: Store, name: str) -> bool:
    """Whether there is such a pool: imported vectors without a model have a background only if it was imported too."""
    without_model = store.encoder.is_imported and store.encoder.model == "imported"
    return not without_model or (name == "background" and texts.background(store) is not None)


def nouns(
    store: Store, encoder: Callable[[], texts.TextEncoder] | None = None, on_progress: Progress | None = None
) -> tuple[list[str], Spanned] | None:
    """The names of `background`, those of classes too, and their text features.

    All of them are encoded where that has not been done; without an `encoder` it is those that are there, or None.

    Raises:
        OodAuditError: a file of them is damaged.

    """
    if (imported := texts.background(store)) is not None:
        return imported[0], Spanned(imported[1].astype(np.float16))
    corpus = background.CORPORA["background"]()
    if encoder is None and not background.known(store, corpus):
        return None
    features = background.features(store, corpus, encoder, on_progress, everything=True)
    return corpus.names[: len(features)], features


def naming(
    names: Sequence[str], features: Spanned, vocabulary: Vocabulary, classes: NDArray[np.float32]
) -> NDArray[np.int32]:
    """(P, 2): which names name which classes, by WordNet or by text.

    Args:
        names: M names.
        features: the text features of the names.
        vocabulary: its K classes, with their synonyms.
        classes: (K, D) text features of the classes, under the same prompts.

    """
    row_of = {name: row for row, name in enumerate(names)}
    pairs = {
        (row_of[name], k)
        for k, synonyms in enumerate(vocabulary.classes)
        for name in set().union(*map(wordnet.same_thing, synonyms))
        if name in row_of
    }
    for start, cosines in _cosines(features, classes):
        pairs.update((start + int(row), int(k)) for row, k in np.argwhere(cosines > _SAME))
    return np.array(sorted(pairs), dtype=np.int32).reshape(-1, 2)


def farthest(features: Spanned, nouns: int, classes: NDArray[np.float32], *, drop_same: bool) -> NDArray[np.int32]:
    """The rows of the 15% of nouns, then of adjectives, that are farthest from the classes; farthest first.

    Args:
        features: of M names, first the nouns, then the adjectives.
        nouns: how many are nouns.
        classes: (K, D).
        drop_same: put what has a cosine over 0.95 to any class last.

    """
    likeness = np.empty(len(features), np.float32)
    for start, cosines in _cosines(features, classes):
        block = likeness[start : start + len(cosines)]
        block[:] = np.quantile(cosines, _QUANTILE, axis=1)
        if drop_same:
            block[cosines.max(axis=1) > _SAME] = 1
    chosen = []
    for start, stop in ((0, nouns), (nouns, len(features))):
        order = np.argsort(likeness[start:stop], kind="stable")
        chosen.append(start + order[: int((stop - start) * _SHARE)])
    return np.concatenate(chosen).astype(np.int32)


def _cosines(features: Spanned, classes: NDArray[np.float32]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """The (M, K) cosines in blocks of rows, each with the number of its first."""
    rows, theirs = max(1, _CHUNK_BYTES // (4 * max(classes.shape))), features.beside(classes).T
    for start in range(0, len(features), rows):
        yield start, features.coordinates[start : start + rows].astype(np.float32) @ theirs
