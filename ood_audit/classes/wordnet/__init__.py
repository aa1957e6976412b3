"""The nouns and adjectives of WordNet 3.0: a corpus of names, and which names denote the same things.

WordNet 3.0 Copyright 2006 by Princeton University; LICENSE, beside this file. `build.py` made the data from Debian's
package wordnet-base: all names of each noun synset, with its hypernyms and its offset (the number in a WordNet id such
as n02691156), and the first name of each adjective synset.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ood_audit.names import key

if TYPE_CHECKING:
    import pyarrow as pa
    from scipy.sparse import csr_array

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
class _Lists(Generic[_Value]):
    """A list a row, all of them in one: far quicker to make than as many lists."""

    values: list[_Value]
    starts: NDArray[np.int32]  # of each row's among the values, and where the last one's end

    def __getitem__(self, row: int) -> list[_Value]:
        return self.values[self.starts[row] : self.starts[row + 1]]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def rows(self) -> NDArray[np.int64]:
        """The row that each value is in."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))


@dataclass(frozen=True)
class _Rows:
    """The rows that have a name."""

    numbers: dict[str, int]
    rows: _Lists[int]  # by the name's number

    def __contains__(self, name: str) -> bool:
        return name in self.numbers

    def __getitem__(self, name: str) -> list[int]:
        """Empty for a name that is not known."""
        return self.rows[self.numbers[name]] if name in self.numbers else []


@dataclass(frozen=True)
class _Nouns:
    """A synset is its row: its names, and the rows above and below it."""

    files: "pa.StringArray"
    first: "pa.StringArray"  # of the names
    names: _Lists[str]
    hypernyms: _Lists[int]
    hyponyms: _Lists[int]
    synsets: "_Rows"
    singulars: dict[str, list[str]]  # the singulars of an irregular plural


@lru_cache(maxsize=1)
def _nouns() -> _Nouns:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(SYNSETS)
    # Nouns are the first rows, so what is left is numbered as before.
    table = table.filter(pc.starts_with(table["file"].cast("string"), "noun."))
    names: _Lists[str] = _lists(table["names"])
    hypernyms: _Lists[int] = _lists(table["hypernyms"])
    singulars: dict[str, list[str]] = {}
    for pair in pq.read_table(PLURALS).to_pylist():
        singulars.setdefault(pair["plural"], []).append(pair["singular"])
    files = table["file"].cast("string").combine_chunks()
    lists = table["names"].combine_chunks()
    first = pc.list_element(lists, 0)
    return _Nouns(files, first, names, hypernyms, _turned_round(hypernyms), _rows_by_name(lists), singulars)


def _rows_by_name(names: "pa.ListArray") -> _Rows:
    encoded = names.values.dictionary_encode()
    numbers = encoded.indices.to_numpy()
    starts = np.concatenate([[0], np.bincount(numbers).cumsum()])
    rows = np.repeat(np.arange(len(names)), np.diff(names.offsets.to_numpy()))
    lists = _Lists(rows[np.argsort(numbers, kind="stable")].tolist(), starts.astype(np.int32))
    return _Rows({name: number for number, name in enumerate(encoded.dictionary.to_pylist())}, lists)


def _lists(column: "pa.ChunkedArray") -> _Lists[_Value]:
    lists = column.combine_chunks()
    return _Lists(lists.values.to_numpy(zero_copy_only=False).tolist(), lists.offsets.to_numpy())


def _turned_round(lists: _Lists[int]) -> _Lists[int]:
    """For each row, the rows in whose lists it is."""
    values = np.array(lists.values, np.int64)
    starts = np.concatenate([[0], np.bincount(values, minlength=len(lists)).cumsum()])
    return _Lists(lists.rows()[np.argsort(values, kind="stable")].tolist(), starts.astype(np.int32))


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
    order: list[int] = np.load(ORDER, allow_pickle=False).tolist()
    return order


def same_thing(name: str) -> set[str]:
    """All names of what `name` may denote, of all kinds of it, and of all that it is a kind of.

    These are its synonyms, hyponyms and hypernyms, all the way, over every noun sense of the name and of its
    singular or plural. Empty where WordNet does not know the name.
    """
    nouns = _nouns()
    senses = {row for form in _forms(name) for row in nouns.synsets[form]}
    rows = _reachable(senses, nouns.hypernyms) | _reachable(senses, nouns.hyponyms)
    return {found for row in rows for found in nouns.names[row]}


def senses(names: Sequence[str]) -> "tuple[NDArray[np.int64], csr_array]":
    """The senses that some names are the first name of, each with its kinds.

    People and places that nothing is a kind of are left out, since almost all are known by name: `rushdie`, `omaha`.
    A name that WordNet does not know has one sense, which nothing else is a kind of.

    Returns:
        (S,) the row of each sense's name in `names`; (S, M) float32, 1 where a name is that of a kind of the sense or
        its own.

    """
    import pyarrow as pa
    import pyarrow.compute as pc
    from scipy.sparse import csr_array, vstack

    nouns, asked = _nouns(), pa.array(names, pa.string())
    is_physical, is_often_named = (
        pc.is_in(nouns.files, pa.array(files)).to_numpy(zero_copy_only=False)
        for files in (PHYSICAL, ("noun.person", "noun.location"))
    )
    first = pc.index_in(nouns.first, asked)
    named = np.flatnonzero(
        first.is_valid().to_numpy(zero_copy_only=False)
        & is_physical
        & ((np.diff(nouns.hyponyms.starts) > 0) | ~is_often_named)
    )
    known = first.take(pa.array(named)).to_numpy().astype(np.int64)
    row_of = {name: row for row, name in enumerate(names)}  # a name that comes twice is one
    unknown = np.array([row for name, row in row_of.items() if name not in nouns.synsets], np.int64)
    kinds = _above(named, nouns.hypernyms).T @ _at(known, len(names))
    found = csr_array(vstack([kinds, _at(unknown, len(names))]))
    found.data[:] = 1  # a kind is one, however many ways lead to it
    return np.concatenate([known, unknown]), found


def _above(rows: NDArray[np.int64], hypernyms: _Lists[int]) -> "csr_array":
    """(S, S): not 0 where the second of two of `rows` is above the first, or the same."""
    from scipy.sparse import csr_array

    shape = len(hypernyms), len(hypernyms)
    one_up = csr_array((np.ones(len(hypernyms.values), np.float32), hypernyms.values, hypernyms.starts), shape)
    reached = step = _at(rows, len(hypernyms))
    while (step := step @ one_up).nnz:
        reached = reached + step
    return reached[:, rows]


def _at(columns: NDArray[np.int64], width: int) -> "csr_array":
    """A row for each column, with a 1 there."""
    from scipy.sparse import csr_array

    count = len(columns)
    return csr_array((np.ones(count, np.float32), columns, np.arange(count + 1)), (count, width))


def _reachable(rows: set[int], neighbours: _Lists[int]) -> set[int]:
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
