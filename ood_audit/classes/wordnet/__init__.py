"""The nouns and adjectives of WordNet 3.0: a corpus of names, and which names denote the same things.

WordNet 3.0 Copyright 2006 by Princeton University; LICENSE, beside this file. `build.py` made the data from Debian's
package wordnet-base: all names of each noun synset, with its hypernyms and its offset (the number in a WordNet id such
as n02691156), and the first name of each adjective synset.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ood_audit.names import key

if TYPE_CHECKING:
    import pyarrow as pa

_Value = TypeVar("_Value", str, int)

SYNSETS = Path(__file__).with_name("synsets.parquet")
ID = re.compile(r"n\d{8}")  # a WordNet id, as ImageNet uses them: n and a noun's offset
ORDER = Path(__file__).with_name("background_order.npy")
PLURALS = Path(__file__).with_name("plurals.parquet")
# The lexicographer files of what can be seen in a picture.
PHYSICAL = tuple(
    f"noun.{file}"
    for file in (
        *("animal", "artifact", "body", "food", "location", "object", "person", "phenomenon", "plant", "shape"),
        "substance",
    )
)

# morphy(7WN): the endings of regular plurals, and what they stand for.
_ENDINGS = (
    ("s", ""),
    ("ses", "s"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("men", "man"),
    ("ies", "y"),
)


@dataclass(frozen=True)
class _Nouns:
    """A synset is its row: its names, and the rows above and below it."""

    files: list[str]
    names: list[list[str]]
    hypernyms: list[list[int]]
    hyponyms: list[list[int]]
    synsets: dict[str, list[int]]  # the rows that have a name
    singulars: dict[str, list[str]]  # the singulars of an irregular plural


@lru_cache(maxsize=1)
def _nouns() -> _Nouns:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(SYNSETS)
    # Nouns are the first rows, so what is left is numbered as before.
    table = table.filter(pc.starts_with(table["file"].cast("string"), "noun."))
    names, hypernyms = _lists(table["names"], str), _lists(table["hypernyms"], int)
    files = table["file"].cast("string").to_numpy().tolist()
    hyponyms: list[list[int]] = [[] for _ in hypernyms]
    synsets: dict[str, list[int]] = {}
    for row, (own, above) in enumerate(zip(names, hypernyms, strict=True)):
        for hypernym in above:
            hyponyms[hypernym].append(row)
        for name in own:
            synsets.setdefault(name, []).append(row)
    singulars: dict[str, list[str]] = {}
    for pair in pq.read_table(PLURALS).to_pylist():
        singulars.setdefault(pair["plural"], []).append(pair["singular"])
    return _Nouns(files, names, hypernyms, hyponyms, synsets, singulars)


def _lists(column: "pa.ChunkedArray", of: type[_Value]) -> list[list[_Value]]:
    """A column of lists, in a fraction of the time that `to_pylist` takes."""
    values = column.combine_chunks()
    flat: list[_Value] = values.values.to_numpy(zero_copy_only=False).tolist()
    return [flat[start:end] for start, end in pairwise(values.offsets.to_pylist())]


def files() -> list[str]:
    """The lexicographer files: `adj.all` … `noun.time`."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    return sorted(pc.unique(pq.read_table(SYNSETS, columns=["file"])["file"].cast("string")).to_pylist())


def names(*files: str) -> list[str]:
    """The first name of each synset of some lexicographer files: lower-case, in sorted order, each once."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(SYNSETS, columns=["file", "names"])
    table = table.filter(pc.is_in(table["file"].cast("string"), pa.array(files, pa.string())))
    return sorted(pc.unique(pc.list_element(table["names"], 0)).to_pylist())


@lru_cache(maxsize=1)
def _by_offset() -> tuple[dict[int, int], list[list[str]], list[list[int]]]:
    """The row of each noun offset; by row, the names and the rows of the hypernyms."""
    import pyarrow.parquet as pq

    table = pq.read_table(SYNSETS, columns=["offset", "names", "hypernyms"])
    table = table.filter(table["offset"].is_valid())
    rows = {offset: row for row, offset in enumerate(table["offset"].to_pylist())}
    return rows, table["names"].to_pylist(), table["hypernyms"].to_pylist()


def named(wordnet_id: str) -> tuple[str, ...]:
    """The names of a noun by its WordNet id, the usual one first: n02691156 is airplane, aeroplane, plane.

    The last one tells it from other things of its first name, as in `crane (wading bird)`, where WordNet knows a kind
    that it belongs to. Empty where WordNet 3.0 has no such noun.
    """
    if not ID.fullmatch(wordnet_id):
        return ()
    rows, names, hypernyms = _by_offset()
    row = rows.get(int(wordnet_id[1:]))
    if row is None:
        return ()
    kinds = [f"{names[row][0]} ({names[above][0]})" for above in hypernyms[row][:1]]
    return (*names[row], *kinds)


@lru_cache(maxsize=1)
def coarse_to_fine() -> list[int]:
    """The order of the background's names in which the first n of them cover the rest, as row numbers.

    They count the physical nouns of up to three words in sorted order.
    """
    import numpy as np

    order: list[int] = np.load(ORDER, allow_pickle=False).tolist()
    return order


def same_thing(name: str) -> set[str]:
    """All names of what `name` may denote, of all kinds of it, and of all that it is a kind of.

    These are its synonyms, hyponyms and hypernyms, all the way, over every noun sense of the name and of its
    singular or plural. Empty where WordNet does not know the name.
    """
    nouns = _nouns()
    senses = {row for form in _forms(name) for row in nouns.synsets.get(form, [])}
    rows = _reachable(senses, nouns.hypernyms) | _reachable(senses, nouns.hyponyms)
    return {found for row in rows for found in nouns.names[row]}


def senses(names: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    """The senses that some names are the first name of, each with its kinds.

    People and places that nothing is a kind of are left out, since almost all are known by name: `rushdie`, `omaha`.
    A name that WordNet does not know has one sense, which nothing else is a kind of.

    Returns:
        for each sense the row of its name in `names`, and the rows of all kinds of it, its own among them.

    """
    nouns = _nouns()
    rows = {name: row for row, name in enumerate(names)}
    named = [
        row
        for row, own in enumerate(nouns.names)
        if own[0] in rows
        and nouns.files[row] in PHYSICAL
        and (nouns.hyponyms[row] or nouns.files[row] not in ("noun.person", "noun.location"))
    ]
    number = {row: i for i, row in enumerate(named)}
    below: list[list[int]] = [[] for _ in named]

    @cache  # the way up is the same for all kinds of a thing
    def above(row: int) -> frozenset[int]:
        return frozenset((row,)).union(*map(above, nouns.hypernyms[row]))

    for row in named:
        own = rows[nouns.names[row][0]]
        for sense in above(row):
            if sense in number:
                below[number[sense]].append(own)
    unknown = [row for name, row in rows.items() if name not in nouns.synsets]
    known = [rows[nouns.names[row][0]] for row in named]
    return known + unknown, [sorted(set(kinds)) for kinds in below] + [[row] for row in unknown]


def _reachable(rows: set[int], neighbours: list[list[int]]) -> set[int]:
    found, new = set(rows), list(rows)
    while new:
        new = [row for known in new for row in neighbours[known] if row not in found]
        found.update(new)
    return found


def _forms(name: str) -> set[str]:
    """A name as WordNet may spell it: with spaces, hyphens or neither, in the singular and the plural."""
    nouns = _nouns()
    plain = re.sub(r"\s*\([^()]*\)\s*$", "", name)  # crane, of `crane (wading bird)`
    words = key(plain).strip("_-").split(" ")
    spelled = {plain.strip().lower(), *(between.join(words) for between in (" ", "-", ""))} - {""}
    forms = set(spelled)
    for form in spelled:
        start, space, last = form.rpartition(" ")
        forms.update(nouns.singulars.get(form, []))
        singulars = list(nouns.singulars.get(last, []))
        singulars += [last.removesuffix(plural) + singular for plural, singular in _ENDINGS if last.endswith(plural)]
        forms.update(start + space + singular for singular in singulars if len(singular) > 2)  # ga is no gas
        if form not in nouns.synsets:
            forms.add(form + "s")  # scissor, for which WordNet has only scissors
    return forms
