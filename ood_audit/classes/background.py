"""The corpora: the names that pools are taken from, and their text features.

Features are encoded once a model and machine, under prompts that do not depend on the vocabulary, and kept in the
user's cache folder, where all stores share them. Those of the background under the bundled starter are bundled too.

The names of the background are in an order from coarse to fine: the first n of them cover the rest, for any n (the
names nearest to the centres of ever finer clusters; `tools/build_background.py`). So a slow text tower can begin with
the first few thousand.
"""

import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ood_audit.arrays import Spanned
from ood_audit.classes import conditions, wordnet
from ood_audit.classes.texts import TextEncoder
from ood_audit.classes.vocabulary import DEFAULT_TEMPLATE, Vocabulary
from ood_audit.encoders.registry import STARTER
from ood_audit.errors import OodAuditError
from ood_audit.store.cache import user_cache
from ood_audit.store.files import replacing
from ood_audit.store.store import Store
from ood_audit.text import printable

Progress = Callable[[int, int], None]
Arrays = dict[str, NDArray[Any]]  # of any type, as a .safetensors file holds them
BUNDLED = STARTER / "background.safetensors"
COARSE = 4096  # names of the background that a slow text tower begins with
_PATIENCE = 60.0  # seconds that encoding the rest of the background may take without being asked for
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


@dataclass(frozen=True)
class Corpus:
    """The words of a pool and the prompts that they are put in.

    Attributes:
        nouns: the nouns, in the order of their features.
        adjectives: the adjectives, whose features come after those of the nouns.
        noun_prompts: prompts with `{}` for the noun, averaged.
        adjective_prompts: the same for the adjectives.
        coarse: how many of the nouns can do without the rest; 0 for all.

    """

    nouns: list[str]
    adjectives: list[str]
    noun_prompts: tuple[str, ...]
    adjective_prompts: tuple[str, ...] = ()
    coarse: int = 0

    @property
    def names(self) -> list[str]:
        """The nouns, then the adjectives."""
        return self.nouns + self.adjectives

    @property
    def key(self) -> str:
        """A hash of them: the name of the files of their features."""
        content = json.dumps([self.nouns, self.adjectives, self.noun_prompts, self.adjective_prompts])
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def background_names() -> list[str]:
    """Physical nouns of up to three words, from coarse to fine; in sorted order where that order is not theirs."""
    nouns = [name for name in wordnet.names(*_PHYSICAL) if name.count(" ") <= 2]
    order = wordnet.coarse_to_fine()
    return [nouns[i] for i in order] if len(order) == len(nouns) else nouns


def _background() -> Corpus:
    return Corpus(background_names(), [], (DEFAULT_TEMPLATE,), coarse=COARSE)


def _conditions() -> Corpus:
    return Corpus(list(conditions.NAMES), [], (DEFAULT_TEMPLATE,))


def _neglabel() -> Corpus:
    adjectives, nouns = _words(without=())
    return Corpus(nouns, adjectives, ("the nice {}",), ("This is a {} photo",))


def _csp() -> Corpus:
    adjectives, nouns = _words(without=("noun.person", "noun.quantity", "noun.group", "adj.pert"))
    draw = random.Random(0)  # noqa: S311
    return Corpus(nouns, [f"{word} {draw.choice(_THINGS)}" for word in adjectives], _CSP_NOUNS, _CSP_ADJECTIVES)


def _words(without: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Adjectives and nouns. The lists of NegLabel's authors, which CSP's took over, have no animals and no food."""
    files = [file for file in wordnet.files() if file not in ("noun.animal", "noun.food", *without)]
    adjectives = wordnet.names(*(file for file in files if file.startswith("adj.")))
    nouns = wordnet.names(*(file for file in files if file.startswith("noun.")))
    return adjectives, sorted(set(nouns).difference(adjectives))


CORPORA: dict[str, Callable[[], Corpus]] = {
    "background": _background,
    "conditions": _conditions,
    "neglabel": _neglabel,
    "csp": _csp,
}


def _parts(corpus: Corpus) -> list[tuple[list[str], tuple[str, ...]]]:
    """The words of each file of features, and their prompts."""
    starts = [0, *range(corpus.coarse or _PART, len(corpus.nouns), _PART)]
    nouns = [corpus.nouns[start:stop] for start, stop in zip(starts, [*starts[1:], None], strict=True)]
    adjectives = [corpus.adjectives[start : start + _PART] for start in range(0, len(corpus.adjectives), _PART)]
    parts = [(words, corpus.noun_prompts) for words in nouns]
    parts += [(words, corpus.adjective_prompts) for words in adjectives]
    return [(words, prompts) for words, prompts in parts if words]


def known(store: Store, corpus: Corpus) -> int:
    """How many names of a corpus have features without encoding any: from the first on, in whole parts."""
    if _is_bundled(store, corpus):
        return len(corpus.names)
    count = 0
    for number, (words, _) in enumerate(_parts(corpus)):
        if not _path(store, corpus, number).exists():
            break
        count += len(words)
    return count


def are_encoded(store: Store, name: str) -> bool:
    """Whether all names of a corpus have features already."""
    corpus = CORPORA[name]()
    return known(store, corpus) == len(corpus.names)


def features(
    store: Store,
    corpus: Corpus,
    encoder: Callable[[], TextEncoder] | None,
    on_progress: Progress | None = None,
    *,
    note: Callable[[str], None] = lambda message: None,
    everything: bool = False,
) -> Spanned:
    """The features of the first M names of a corpus, which are all of them or its coarse ones.

    What is missing is encoded and kept, in parts, so that an encoding of hours can be resumed.

    Args:
        store: the store whose encoder it is about.
        corpus: the names.
        encoder: gives the text encoder; None to take what is there.
        on_progress: called with the number of texts encoded and to encode.
        note: told where it is left at the coarse names, and how to have all.
        everything: encode all names, however long it takes.

    Raises:
        OodAuditError: a file of features is damaged.

    """
    if _is_bundled(store, corpus):
        return _bundled()
    there = known(store, corpus)
    if encoder is None or there == len(corpus.names):
        return Spanned(_joined(_there(store, corpus)))
    from filelock import FileLock

    folder = _folder(store)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{corpus.key}.lock"):  # another process that encodes the same is waited for
        return Spanned(_joined(_encoded(store, corpus, encoder, on_progress, note, everything)))


def _there(store: Store, corpus: Corpus) -> Iterator[NDArray[np.float16]]:
    for number in range(len(_parts(corpus))):
        found = read(_path(store, corpus, number), corpus.key)
        if found is None:
            return
        yield found["features"]


def _encoded(
    store: Store,
    corpus: Corpus,
    encoder: Callable[[], TextEncoder],
    on_progress: Progress | None,
    note: Callable[[str], None],
    everything: bool,
) -> Iterator[NDArray[np.float16]]:
    parts = _parts(corpus)
    total = sum(len(words) * len(prompts) for words, prompts in parts)
    done, encoded, seconds = 0, 0, 0.0
    for number, (words, prompts) in enumerate(parts):
        path = _path(store, corpus, number)
        found = read(path, corpus.key)
        if found is None:
            if number and corpus.coarse and not everything and seconds * (total - done) > _PATIENCE * encoded:
                note(_about_coarse(done, total))
                return
            encode_texts = encoder().encode_texts
            began, blocks = time.monotonic(), []
            for block in _encode(words, prompts, encode_texts):
                blocks.append(block)
                done += len(block) * len(prompts)
                if on_progress is not None:
                    on_progress(done, total)
            # Kept with them, so that a run that goes on from here knows as well how slow the text tower is.
            found = {"features": np.concatenate(blocks), "seconds": np.array(time.monotonic() - began)}
            write(path, found, corpus.key)
        else:
            done += len(words) * len(prompts)
        if "seconds" in found:  # files of older versions have none
            seconds += float(found["seconds"])
            encoded += len(words) * len(prompts)
        yield found["features"]


def _joined(parts: Iterator[NDArray[np.float16]]) -> NDArray[np.float16]:
    return np.concatenate(list(parts))


def _about_coarse(some: int, total: int) -> str:
    return (
        f"background: {some:,} of {total:,} names, as this text tower is slow; `ood-audit labels suggest` encodes all "
        "of them once, and later reports use these"
    )


def _folder(store: Store) -> Path:
    own = store.encoder
    model = own.weights_sha256 or hashlib.sha256(f"{own.model} {own.weights}".encode()).hexdigest()
    return user_cache() / "texts" / model[:24]


def _path(store: Store, corpus: Corpus, number: int) -> Path:
    return _folder(store) / f"{corpus.key}-{number:02}.safetensors"


def _is_bundled(store: Store, corpus: Corpus) -> bool:
    if not store.encoder.weights_sha256 or corpus.noun_prompts != (DEFAULT_TEMPLATE,):
        return False
    about = _about_bundled()
    return (about.get("weights_sha256"), about.get("corpus")) == (store.encoder.weights_sha256, corpus.key)


@lru_cache(maxsize=1)
def _about_bundled() -> dict[str, str]:
    from safetensors import safe_open

    if not BUNDLED.exists():
        return {}
    with safe_open(BUNDLED, "numpy") as file:
        return dict(file.metadata() or {})


@lru_cache(maxsize=1)
def _bundled() -> Spanned:
    """They are of rank 96, and kept as their coordinates in that many directions, 16 bits each."""
    from safetensors.numpy import load_file

    found = load_file(BUNDLED)
    coordinates = found["codes"] * found["scales"]
    coordinates /= np.linalg.norm(coordinates, axis=1, keepdims=True)
    return Spanned(coordinates, found["directions"].T)


def _encode(
    words: Sequence[str], prompts: tuple[str, ...], encode_texts: Callable[[Sequence[str]], NDArray[np.float32]]
) -> Iterator[NDArray[np.float16]]:
    """(M, D) in blocks: the mean over the prompts, of length 1."""
    size = _BLOCK // len(prompts)
    for start in range(0, len(words), size):
        block = Vocabulary(tuple((word,) for word in words[start : start + size]), prompts)
        yield block.features(encode_texts).astype(np.float16)


def read(path: Path, corpus_key: str) -> Arrays | None:
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


def write(path: Path, arrays: Arrays, corpus_key: str) -> None:
    """Keep some arrays in a file, with what they were made from."""
    from safetensors.numpy import save

    with replacing(path) as temporary:
        temporary.write_bytes(save(arrays, {"corpus": corpus_key}))
