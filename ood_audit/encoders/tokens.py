"""CLIP's tokenizer without torch, which importing open_clip's would import."""

import gzip
import html
import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ood_audit.errors import EncoderError

if TYPE_CHECKING:
    import tokenizers

_MERGES = 49_152 - 256 - 2
_ENDS = "<start_of_text>", "<end_of_text>"
_WORDS = r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@lru_cache(maxsize=1)
def merges() -> list[tuple[str, str]]:
    """The pairs that are joined, the most frequent first, from the file that open_clip has.

    Raises:
        EncoderError: open_clip is not installed.

    """
    spec = importlib.util.find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        raise EncoderError("open_clip is not installed; install ood-audit again")
    path = Path(spec.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [(first, second) for first, second in map(str.split, islice(file, 1, _MERGES + 1))]  # a fifth of it


def tokenize(texts: Sequence[str], context_length: int) -> NDArray[np.int64]:
    """(N, context_length) token ids; what is longer is cut off, and 0 follows what is shorter."""
    import ftfy

    cleaned = (html.unescape(html.unescape(ftfy.fix_text(text))) for text in texts)
    found = np.zeros((len(texts), context_length), np.int64)
    tokenizer = _tokenizer()
    first = tokenizer.get_vocab_size() - len(_ENDS)
    for row, text in enumerate(tokenizer.encode_batch_fast([" ".join(text.split()).lower() for text in cleaned])):
        ids = text.ids[: context_length - 2]
        found[row, : len(ids) + 2] = [first, *ids, first + 1]
    return found


@lru_cache(maxsize=1)
def _tokenizer() -> "tokenizers.Tokenizer":
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges()), *_ENDS]
    ranks = {word: rank for rank, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(ranks, merges(), end_of_word_suffix="</w>"))
    tokenizer.add_special_tokens(list(_ENDS))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer
