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

Features of a whole corpus are encoded once a store, under prompts that do not depend on the vocabulary.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ood_audit import texts, wordnet
from ood_audit.errors import OodAuditError
from ood_audit.store.layout import Store, replacing
from ood_audit.text import printable
from ood_audit.vocabulary import DEFAULT_TEMPLATE, Vocabulary, cached_features

if TYPE_CHECKING:
    from pathlib import Path

    from ood_audit.encoders.clip import ClipEncoder

NAMES = ("background", "neglabel", "csp")

_SAME = 0.95  # text cosines above mean one thing
_SHARE, _QUANTILE = 0.15, 0.95
_CHUNK_BYTES = 32 << 20  # of float32 cosines at a time
_BLOCK = 4096  # texts encoded at a time
_PART = 8192  # names in a file of features
_PHYSICAL = wordnet.PHYSICAL
# In the order of the published code, which draws from them.
_THINGS = (
    "environment",
    "space",
    "object",
    "scene",
    "place",
    "item",
    "area",
    "view",
    "thing",
    "pattern",
    "structure",
    "landscape",
    "vista",
    "creature",
)
_CSP_NOUNS = (
    "a close-up photo of the nice {}.",
    "a photo with the nice {}.",
    "a good photo with the nice {}.",
    "a photo of the nice {}.",
    "{}",
    "the {}",
    "the good {}",
    "the nice {}",
)
_CSP_ADJECTIVES = ("{}", "a nice photo of {}", "a good photo of {}", "a close-up photo of {}")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Pool:
    """Names and their text features, beside the classes under the same prompts.

    Attributes:
        names: M names; for `neglabel` and `csp` the selected ones, for `background` all, also those that name a class.
        features: (M, D) float16 of length 1.
        classes: (K, D) float32 of length 1, the text features of the classes.
        pairs: (P, 2) int32, sorted: name `pairs[i, 0]` names class `pairs[i, 1]`. Empty for `neglabel` and `csp`.

    """

    names: list[str]
    features: NDArray[np.float16]
    classes: NDArray[np.float32]
    pairs: NDArray[np.int32]

    def outside(self, classes: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
        """(M,): the names that name none of `classes`, a (K,) mask; None for all classes."""
        of_these = self.pairs if classes is None else self.pairs[classes[self.pairs[:, 1]]]
        mask = np.ones(len(self.names), dtype=bool)
        mask[of_these[:, 0]] = False
        return mask

    @property
    def negatives(self) -> NDArray[np.float32]:
        """(M', D): the features of the names that name no class."""
        return self.features[self.outside()].astype(np.float32)

    def thinned(self, most: int) -> "Pool":
        """At most `most` of the names that name no class, evenly from all of them."""
        rows = np.flatnonzero(self.outside())
        rows = rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)]
        names = [self.names[row] for row in rows]
        return replace(self, names=names, features=self.features[rows], pairs=np.empty((0, 2), np.int32))


def load(
    store: Store,
    vocabulary: Vocabulary,
    name: str,
    encoder: "Callable[[], ClipEncoder]",
    on_progress: Progress | None = None,
) -> Pool:
    """The pool `name`, one of `NAMES`, of a vocabulary; from the store where it is there, else selected and kept.

    `on_progress` is called with the number of texts encoded and to encode.

    Raises:
        OodAuditError: a file of the pool in the store is damaged.

    """
    if name == "background" and (imported := texts.background(store)) is not None:
        return _imported_background(store, vocabulary, *imported, encoder)
    corpus = _CORPORA[name]()
    names = corpus.nouns + corpus.adjectives
    path = store.vocabularies / f"{vocabulary.id}-{name}.safetensors"
    features = _features(store, corpus, encoder, on_progress)
    found = _read(path, corpus.key)
    if found is None:
        prompts = replace(vocabulary, templates=corpus.noun_prompts)
        classes = prompts.features(encoder().encode_texts)
        rows, pairs = np.arange(len(names), dtype=np.int32), np.empty((0, 2), np.int32)
        if name == "background":
            pairs = naming(names, features, vocabulary, classes)
        else:
            rows = farthest(features, len(corpus.nouns), classes, drop_same=name == "csp")
        found = {"classes": classes, "rows": rows, "pairs": pairs}
        _write(path, found, corpus.key)
    rows = found["rows"]
    if name != "background":
        names, features = [names[row] for row in rows], features[rows]
    return Pool(names, features, found["classes"], found["pairs"])


def _imported_background(
    store: Store,
    vocabulary: Vocabulary,
    names: list[str],
    features: NDArray[np.float32],
    encoder: "Callable[[], texts.TextEncoder]",
) -> Pool:
    """The background of a store whose background names were imported with their vectors."""
    classes = cached_features(store, vocabulary, encoder)
    return Pool(names, features.astype(np.float16), classes, naming(names, features, vocabulary, classes))


def is_available(store: Store, name: str) -> bool:
    """Whether a pool can be had: imported vectors without a model have a background only if it was imported too."""
    without_model = store.encoder.is_imported and store.encoder.model == "imported"
    return not without_model or (name == "background" and texts.background(store) is not None)


def are_encoded(store: Store, name: str) -> bool:
    """Whether the store has the text features of all names that the pool `name` is taken from."""
    corpus = _CORPORA[name]()
    parts = len(_parts(corpus))
    return all(_features_path(store, corpus, number).exists() for number in range(parts))


def nouns(
    store: Store, encoder: "Callable[[], ClipEncoder] | None" = None, on_progress: Progress | None = None
) -> tuple[list[str], NDArray[np.float16]] | None:
    """The names of `background`, those of classes too, and their (M, D) text features.

    From the store; else they are encoded and kept there, or None without an `encoder`.

    Raises:
        OodAuditError: a file of them in the store is damaged.

    """
    corpus = _CORPORA["background"]()
    if encoder is None:
        if not are_encoded(store, "background"):
            return None
        encoder = _refuse
    return corpus.nouns, _features(store, corpus, encoder, on_progress)


def _refuse() -> "ClipEncoder":
    raise OodAuditError("the text features of the nouns are of another corpus; run `ood-audit labels suggest`")


def naming(
    names: Sequence[str], features: NDArray[np.floating[Any]], vocabulary: Vocabulary, classes: NDArray[np.float32]
) -> NDArray[np.int32]:
    """(P, 2): which names name which classes, by WordNet or by text.

    Args:
        names: M names.
        features: (M, D) text features of the names.
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


def farthest(
    features: NDArray[np.floating[Any]], nouns: int, classes: NDArray[np.float32], *, drop_same: bool
) -> NDArray[np.int32]:
    """The rows of the 15% of nouns, then of adjectives, that are farthest from the classes; farthest first.

    Args:
        features: (M, D): first the nouns, then the adjectives.
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


def _cosines(
    features: NDArray[np.floating[Any]], classes: NDArray[np.float32]
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """The (M, K) cosines in blocks of rows, each with the number of its first."""
    rows = max(1, _CHUNK_BYTES // (4 * max(classes.shape)))
    for start in range(0, len(features), rows):
        yield start, features[start : start + rows].astype(np.float32) @ classes.T


@dataclass(frozen=True)
class _Corpus:
    """The words of a pool and the prompts that they are put in."""

    nouns: list[str]
    adjectives: list[str]
    noun_prompts: tuple[str, ...]
    adjective_prompts: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """A hash of them: the name of the files of their features."""
        content = json.dumps([self.nouns, self.adjectives, self.noun_prompts, self.adjective_prompts])
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def _background() -> _Corpus:
    nouns = wordnet.names(*_PHYSICAL)
    return _Corpus([name for name in nouns if name.count(" ") <= 2], [], (DEFAULT_TEMPLATE,))


def _neglabel() -> _Corpus:
    adjectives, nouns = _words(without=())
    return _Corpus(nouns, adjectives, ("the nice {}",), ("This is a {} photo",))


def _csp() -> _Corpus:
    adjectives, nouns = _words(without=("noun.person", "noun.quantity", "noun.group", "adj.pert"))
    draw = random.Random(0)  # noqa: S311
    return _Corpus(nouns, [f"{word} {draw.choice(_THINGS)}" for word in adjectives], _CSP_NOUNS, _CSP_ADJECTIVES)


def _words(without: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Adjectives and nouns. The lists of NegLabel's authors, which CSP's took over, have no animals and no food."""
    files = [file for file in wordnet.files() if file not in ("noun.animal", "noun.food", *without)]
    adjectives = wordnet.names(*(file for file in files if file.startswith("adj.")))
    nouns = wordnet.names(*(file for file in files if file.startswith("noun.")))
    return adjectives, sorted(set(nouns).difference(adjectives))


_CORPORA: dict[str, Callable[[], _Corpus]] = {"background": _background, "neglabel": _neglabel, "csp": _csp}


def _features(
    store: Store, corpus: _Corpus, encoder: "Callable[[], ClipEncoder]", on_progress: Progress | None
) -> NDArray[np.float16]:
    """(M, D) of a corpus, from the store where they are. Kept in parts, so that an encoding of hours can be resumed."""
    parts = _parts(corpus)
    total = sum(len(words) * len(prompts) for words, prompts in parts)
    done = 0
    features: list[NDArray[np.float16]] = []
    for number, (words, prompts) in enumerate(parts):
        path = _features_path(store, corpus, number)
        found = _read(path, corpus.key)
        if found is None:
            blocks = []
            for block in _encode(words, prompts, encoder().encode_texts):
                blocks.append(block)
                done += len(block) * len(prompts)
                if on_progress is not None:
                    on_progress(done, total)
            found = {"features": np.concatenate(blocks)}
            _write(path, found, corpus.key)
        else:
            done += len(words) * len(prompts)
        features.append(found["features"])
    return np.concatenate(features)


def _parts(corpus: _Corpus) -> list[tuple[list[str], tuple[str, ...]]]:
    """The words of each file of features, and their prompts."""
    return [
        (words[start : start + _PART], prompts)
        for words, prompts in ((corpus.nouns, corpus.noun_prompts), (corpus.adjectives, corpus.adjective_prompts))
        for start in range(0, len(words), _PART)
    ]


def _features_path(store: Store, corpus: _Corpus, number: int) -> "Path":
    return store.vocabularies / f"wordnet-{corpus.key}-{number:02}.safetensors"


def _encode(
    words: Sequence[str], prompts: tuple[str, ...], encode_texts: Callable[[Sequence[str]], NDArray[np.float32]]
) -> Iterator[NDArray[np.float16]]:
    """(M, D) in blocks: the mean over the prompts, of length 1."""
    size = _BLOCK // len(prompts)
    for start in range(0, len(words), size):
        block = Vocabulary(tuple((word,) for word in words[start : start + size]), prompts)
        yield block.features(encode_texts).astype(np.float16)


def _read(path: "Path", corpus_key: str) -> dict[str, Any] | None:
    """The arrays of a file; None where there is none, or it was made from another corpus."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, "numpy") as file:
            if (file.metadata() or {}).get("corpus") != corpus_key:
                return None
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise OodAuditError(f"{printable(str(path))} is damaged; delete it and run the command again") from error


def _write(path: "Path", arrays: dict[str, Any], corpus_key: str) -> None:
    from safetensors.numpy import save_file

    with replacing(path) as temporary:
        save_file(arrays, temporary, {"corpus": corpus_key})
