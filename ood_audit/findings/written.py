"""Text in pictures: a shortcut where one class or split has it far more than the others; and names of other classes.

The text of a picture is cut into words of letters and digits, compared by the key of `names`. A class is named where
one of its names is there as whole words, with the spaces between them or without. Of n pictures that were read, K show
a word, and k of the m pictures of a group do; by chance k is hypergeometric. The p-values of all words and groups are
adjusted by Benjamini and Hochberg's rule. A word is a shortcut of a group where at least 5 of its pictures and a tenth
of them show it, five times the share of the others.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from joblib import cpu_count
from numpy.typing import NDArray

from ood_audit.classes import wordnet
from ood_audit.classes.vocabulary import Vocabulary
from ood_audit.findings.drift import adjusted
from ood_audit.findings.shortcuts import FEWEST, Shortcut
from ood_audit.findings.words import LEVEL
from ood_audit.images.uri import is_remote
from ood_audit.names import key
from ood_audit.store.findings import Finding

MOST = 2000  # pictures that are read, as many of each class as of any other
_ALL = 2000  # pictures of a class with a shortcut that are read, to tell which of them show it
_LEAST_SIDE = 64  # pixels: in smaller pictures there is no text to read
_SHOWING, _SHARE, _TIMES = 5, 0.1, 5
_LONGEST = 40  # letters: what is longer is no word
_MOST_PARTS = 4  # words of a class name
_SEVERITY = 0.5  # the label may be right

Read = Callable[[str], Sequence[str] | None]


@dataclass(frozen=True)
class Misnamed:
    """A picture whose text names another class than its label."""

    image_id: str
    label: str
    named: str


@dataclass(frozen=True)
class Written:
    """What the text in pictures tells.

    Attributes:
        shortcuts: The classes and splits with a text of their own, the one that most of its pictures have first.
        misnamed: The pictures whose text names another class than their label, by their ids.
        read: How many pictures were read.
        images: How many there are that could be.

    """

    shortcuts: list[Shortcut]
    misnamed: list[Misnamed]
    read: int
    images: int

    def about(self) -> str:
        """In a sentence, in how many pictures text was looked for, and how many name another class."""
        found = f"text: read in {self.read:,} of {self.images:,} pictures"
        return f"{found}; that of {len(self.misnamed):,} names another class than their label"


def find(
    images: pa.Table,
    vocabulary: Vocabulary,
    read: Read,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> Written:
    """Read pictures, at most `MOST` and then those of classes with a shortcut, and compare what is written in them.

    Args:
        images: The columns image_id, uri, width, height, given_label and split of the readable images. Boxes, small
            pictures and what is remote are passed over.
        vocabulary: The classes.
        read: Gives the lines of text in the picture of a URI, or None where it can't be read.
        on_progress: Called with the number of pictures that were read, and that of those that will be.

    """
    images = _candidates(images)
    chosen = images.take(pa.array(_evenly(images["given_label"].combine_chunks(), MOST)))
    terms = _Terms(vocabulary)
    shown = _shown(chosen, terms, read, on_progress)
    chosen = chosen.filter(pc.is_in(chosen["image_id"], value_set=pa.array(shown, pa.string())))
    found = []
    for column in ("given_label", "split"):
        for one in _strong(chosen, column, shown, vocabulary.names):
            own = images.filter(pc.and_(pc.equal(images[column], one.group), _is_new(images, shown)))
            if column == "given_label":
                shown |= _shown(own.slice(0, max(0, _ALL - one.read)), terms, read, on_progress)
            ids = images.filter(pc.equal(images[column], one.group))["image_id"].to_pylist()
            showing = tuple(image_id for image_id in ids if one.term in shown.get(image_id, ()))
            has = f'have the text "{one.term}"'
            found.append(Shortcut(one.group, column == "split", has, one.share, one.share, one.share_others, showing))
    misnamed = list(_misnamed(images, shown, vocabulary))
    return Written(sorted(found, key=lambda one: -one.effect), misnamed, len(shown), len(images))


def findings(misnamed: Sequence[Misnamed], images: Mapping[str, tuple[str, str]], report: str) -> Iterator[Finding]:
    """A finding for each picture whose text names another class.

    Args:
        misnamed: The pictures.
        images: The URI and the path of each of them by its id.
        report: The report's name.

    """
    todo = "look at it: its label may be wrong; else cover the text, which may mislead a model"
    for one in misnamed:
        evidence = f'it has the text "{one.named}", and is labelled {one.label}'
        yield Finding(one.image_id, *images[one.image_id], "text", _SEVERITY, evidence, todo, report)


class _Terms:
    """What a text shows: the classes that it names, and other words."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._names = {"".join(_words(name)): own[0] for own in reversed(vocabulary.classes) for name in reversed(own)}

    def __call__(self, lines: Sequence[str]) -> set[str]:
        words = _words(" ".join(lines))
        found = {word for word in words if word not in self._names and _is_word(word)}
        for start in range(len(words)):
            for stop in range(start + 1, start + 1 + _MOST_PARTS):
                joined = "".join(words[start:stop])
                if joined in self._names and _is_word(joined):
                    found.add(self._names[joined])
        return found


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", key(text))


def _is_word(text: str) -> bool:
    """Whether it is long enough not to be a mistake of the reader."""
    return (3 if text.isascii() else 2) <= len(text) <= _LONGEST


def _candidates(images: pa.Table) -> pa.Table:
    """The pictures that may be read, in the order of their ids, which are hashes."""
    whole = pc.invert(pc.match_substring(images["uri"], "#box="))
    large = pc.greater_equal(pc.min_element_wise(images["width"], images["height"]), _LEAST_SIDE)
    images = images.filter(pc.and_(whole, large))
    images = images.filter(pa.array([not is_remote(uri) for uri in images["uri"].to_pylist()], pa.bool_()))
    for column in ("given_label", "split"):
        place = images.schema.get_field_index(column)
        images = images.set_column(place, column, images[column].cast(pa.string()))
    return images.sort_by("image_id")


def _evenly(labels: pa.Array, most: int) -> NDArray[np.int64]:
    """The rows of so many images, the first of each class, then the second of each, and so on."""
    codes = labels.dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False)
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-2))
    places = np.empty(len(codes), np.int64)
    places[order] = np.arange(len(codes)) - np.repeat(starts, np.diff(starts, append=len(codes)))
    return np.sort(np.argsort(places, kind="stable")[:most])


def _is_new(images: pa.Table, shown: Mapping[str, set[str]]) -> pa.ChunkedArray:
    return pc.invert(pc.is_in(images["image_id"], value_set=pa.array(shown, pa.string())))


def _shown(images: pa.Table, terms: _Terms, read: Read, on_progress: Callable[[int, int], None]) -> dict[str, set[str]]:
    """What the text of each picture shows, by its id; without those that can't be read."""
    found = {}
    with ThreadPoolExecutor(cpu_count()) as pool:
        ids, texts = images["image_id"].to_pylist(), pool.map(read, images["uri"].to_pylist())
        for done, (image_id, lines) in enumerate(zip(ids, texts, strict=True), start=1):
            if lines is not None:
                found[image_id] = terms(lines)
            on_progress(done, len(ids))
    return found


@dataclass(frozen=True)
class _Strong:
    """A term that goes with a group, of which so many pictures were read."""

    group: str
    term: str
    share: float
    share_others: float
    read: int


def _strong(images: pa.Table, column: str, shown: Mapping[str, set[str]], names: Sequence[str]) -> Iterator[_Strong]:
    """The term that goes most with each group, where one does: the name of a class before other words."""
    from scipy.stats import hypergeom

    rows = [(label, shown[one]) for one, label in zip(*_columns(images, column), strict=True) if label is not None]
    often = Counter(term for _, own in rows for term in own)
    terms = {term: t for t, term in enumerate(sorted(term for term, count in often.items() if count >= _SHOWING))}
    groups = {label: g for g, label in enumerate(sorted({label for label, _ in rows}))}
    sizes = np.zeros((len(groups), 1))
    counts = np.zeros((len(groups), len(terms)))
    for label, own in rows:
        sizes[groups[label]] += 1
        counts[groups[label], [terms[term] for term in own & terms.keys()]] += 1
    enough = (sizes >= FEWEST) & (len(rows) - sizes >= FEWEST)
    if not terms or not enough.any():
        return
    totals = counts.sum(axis=0)
    share, others = counts / sizes, (totals - counts) / np.maximum(len(rows) - sizes, 1)
    p = adjusted(hypergeom.sf(counts - 1, len(rows), totals, sizes).ravel()).reshape(counts.shape)
    strong = enough & (p <= LEVEL) & (counts >= _SHOWING) & (share >= np.maximum(_SHARE, _TIMES * others))
    more = share - others + np.isin(list(terms), names)
    for label, g in groups.items():
        if strong[g].any():
            t = int(np.argmax(np.where(strong[g], more[g], -1)))
            yield _Strong(label, list(terms)[t], float(share[g, t]), float(others[g, t]), int(sizes[g, 0]))


def _columns(images: pa.Table, column: str) -> tuple[list[str], list[str | None]]:
    return images["image_id"].to_pylist(), images[column].to_pylist()


def _misnamed(images: pa.Table, shown: Mapping[str, set[str]], vocabulary: Vocabulary) -> Iterator[Misnamed]:
    """The pictures whose text names a class other than their label's, and not that one."""
    numbers = {own[0]: k for k, own in enumerate(vocabulary.classes)}
    for image_id, label in zip(*_columns(images, "given_label"), strict=True):
        named = [term for term in sorted(shown.get(image_id, ())) if term in numbers]
        if label is None or not named or (k := vocabulary.position(label)) is None or vocabulary.names[k] in named:
            continue
        for term in named:
            if not _same_thing(vocabulary.spoken[k], vocabulary.spoken[numbers[term]]):
                yield Misnamed(image_id, label, term)
                break


def _same_thing(own: Sequence[str], other: Sequence[str]) -> bool:
    """Whether the other names are parts of the own ones, or mean the same, what it is a kind of, or a kind of it."""
    meant = set().union(*map(wordnet.same_thing, own))
    words = {word for name in own for word in _words(name)}
    return any(key(name) in meant or set(_words(name)) <= words for name in other)
