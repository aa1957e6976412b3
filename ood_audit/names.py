"""One rule for when two names of a class are the same, and which names are nearly so."""

import difflib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence

_SEPARATORS = re.compile(r"[\s_\-\u2010\u2011]+")  # blanks, underscores and the three hyphens
_INVISIBLE = re.compile(r"[\u00ad\u200b\u200e\u200f\u2060\ufeff]")  # soft hyphens, marks of direction and of byte order
_LITTLE = re.compile(r"[\u0300-\u036f'\u2018\u2019`.\u2013\u2014]")  # accents, once they are apart, and apostrophes
_NUMBERED = re.compile(r"0*(\d+)[._-]\s*(?=[^\W\d_])(.+)", re.DOTALL)
_ENDINGS = (("ies", "y"), ("es", ""), ("s", ""))  # English plurals and what replaces their endings
_CLOSE = 0.82  # the least ratio of difflib: "airplan" is close to "airplane", "house" is not to "horse"
_FEWEST_LETTERS = 4  # shorter names are a letter apart from too many others
_MOST_PAIRS = 50_000  # names compared letter by letter, at most


def key(name: str) -> str:
    """What is compared in place of a name: two names of one class have the same key.

    It is Unicode's composed form (NFC) without case and without what cannot be seen, in which a run of blanks,
    underscores and hyphens is one space. A name that is nothing but these is its own key.
    """
    name = _INVISIBLE.sub("", name)
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())
    return _SEPARATORS.sub(" ", folded).strip() or folded.strip()


def unnumbered(name: str) -> tuple[str, str]:
    """The number in front of a name, and the rest.

    Example:
        >>> unnumbered("001.ak47"), unnumbered("cat")
        (('1', 'ak47'), ('', 'cat'))

    """
    found = _NUMBERED.fullmatch(name)
    return (found[1], found[2]) if found else ("", name)


def near(strange: Iterable[str], known: Sequence[str]) -> dict[str, str]:
    """Which names are probably meant as one of `known`: a plural, another spacing, a letter or a word apart.

    Args:
        strange: names whose keys are none of those of `known`.
        known: the names that there are.

    Returns:
        for those of `strange` that come close, the name that they are close to.

    """
    exact: dict[str, str] = {}
    by_word: dict[str, list[str]] = defaultdict(list)
    for name in known:
        exact.setdefault(_bare(key(name)), name)
        for word in key(name).split(" "):
            by_word[word].append(name)
    keys = {key(name): name for name in known}
    found: dict[str, str] = {}
    for number, name in enumerate(dict.fromkeys(strange)):
        own = key(name)
        match = exact.get(_bare(own)) or _word_apart(own, by_word)
        if match is None and len(own) >= _FEWEST_LETTERS and (number + 1) * len(keys) <= _MOST_PAIRS:
            match = _letters_apart(own, keys)
        if match is not None:
            found[name] = match
    return found


def _bare(name: str) -> str:
    """A key without spaces, accents, apostrophes, wide letters and plural endings."""
    joined = _LITTLE.sub("", unicodedata.normalize("NFKD", name)).replace(" ", "")
    for ending, singular in _ENDINGS:
        if joined.endswith(ending) and len(joined) > len(ending) + 2:
            return joined[: -len(ending)] + singular
    return joined


def _word_apart(own: str, by_word: dict[str, list[str]]) -> str | None:
    """A known name that has all words of this one and one more, or all but one."""
    words = set(own.split(" "))
    for word in words:
        for name in by_word.get(word, [])[:100]:
            theirs = set(key(name).split(" "))
            if len(words ^ theirs) == 1 and (words <= theirs or theirs <= words):
                return name
    return None


def _letters_apart(own: str, keys: dict[str, str]) -> str | None:
    close = difflib.get_close_matches(own, keys, n=1, cutoff=_CLOSE)
    swapped = [other for other in keys if len(other) == len(own) and sorted(other) == sorted(own)]
    return keys[(close or swapped)[0]] if close or swapped else None
