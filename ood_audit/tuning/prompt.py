"""Learned context vectors in front of class names, for any text tower of open_clip.

CoOp (Zhou et al., IJCV 2022) puts n learned vectors where a prompt has "a photo of a". Here n tokens that stand for
them are tokenized along, and a hook on the tower's token embedding replaces their rows. So nothing of the tower is
rebuilt: `CLIP`, `CustomTextCLIP` and Hugging Face towers are served alike, and their pooling and masks see ordinary
token ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ood_audit.encoders.clip import ClipEncoder
from ood_audit.errors import UsageError
from ood_audit.text import printable

_CHUNK = 256  # prompts in a forward pass
_STAND_INS = ("a", "x", "the", "of")  # words that tokenizers know as one token


@dataclass(frozen=True)
class Tokenized:
    """Tokenized class names behind places for the context.

    Attributes:
        tokens: (P, L) int64, a row for each name, on the encoder's device.
        start: where the context begins: behind the start-of-text token, where the model has one.
        owners: (P,) int64, the class that a row names; rows of synonyms have the same.

    """

    tokens: Tensor
    start: int
    owners: Tensor

    def of(self, classes: Sequence[int]) -> "Tokenized":
        """The prompts of some of the classes, renumbered in this order."""
        rows = [torch.nonzero(self.owners == k).flatten() for k in classes]
        owners = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(r) for r in rows]))
        return Tokenized(self.tokens[torch.cat(rows)], self.start, owners.to(self.owners.device))


def prepare(
    encoder: ClipEncoder, classes: Sequence[Sequence[str]], *, init: str | None, vectors: int | None, seed: int
) -> tuple[Tokenized, NDArray[np.float32]]:
    """Tokenize the class names and make the context to start from.

    Args:
        encoder: the encoder.
        classes: for each class its name, then its synonyms.
        init: words whose token embeddings the context starts as (the prompt is then "WORDS NAME."); None for
            N(0, 0.02).
        vectors: n; None for as many as the words have tokens. Of more, those in front are drawn from N(0, 0.02).
        seed: of the draw.

    Returns:
        The prompts, and the (n, W) context.

    Raises:
        UsageError: a prompt is longer than the model's context, or `vectors` is less than the words need.

    """
    words = init or ""
    empty = encoder.tokenize([""])[0]
    start, given = _common_prefix(encoder, words)
    count = given if vectors is None else vectors
    if count < max(1, given):
        hint = f"the words {printable(words)!r} need {given}" if given else "1 or more are needed"
        raise UsageError(f"`context_vectors` {count}: {hint}")
    if count >= len(empty):
        raise UsageError(f"{count} context vectors are more than the model reads ({len(empty)} tokens); use fewer")
    stand_ins = _stand_ins(encoder, words, count - given)
    texts = [f"{stand_ins} {name}." for names in classes for name in names]
    tokens = encoder.tokenize(texts)
    padding = empty.mode().values
    longer = encoder.tokenize(texts, context_length=2 * len(empty))
    cut = (tokens != padding).sum(1) != (longer != padding).sum(1)
    if cut.any():
        text = [name for names in classes for name in names][int(cut.nonzero()[0])]
        raise UsageError(
            f"{count} context vectors and the name {printable(text)!r} are more than the {len(empty)} tokens that the "
            "model reads; use fewer `context_vectors` or a shorter name"
        )
    owners = torch.tensor([k for k, names in enumerate(classes) for _ in names])
    with torch.no_grad():
        embedded = encoder.token_embedding(tokens[:1].to(encoder.device))[0, start : start + count].float().cpu()
    drawn = torch.randn(count - given, embedded.shape[1], generator=torch.Generator().manual_seed(seed)) * 0.02
    context = torch.cat([drawn, embedded[count - given :]]).numpy()
    return Tokenized(tokens.to(encoder.device), start, owners.to(encoder.device)), context


def class_features(encoder: ClipEncoder, prompts: Tokenized, context: Tensor) -> Tensor:
    """(K, D) float32 of length 1, differentiable in the (n, W) context: the re-normalised mean over synonyms.

    If there are more prompts than a pass takes, the backward pass computes each chunk's activations again.
    """
    chunks = torch.split(prompts.tokens, min(_CHUNK, encoder.text_limit))
    if len(chunks) == 1 or not torch.is_grad_enabled():
        rows = [_encode(encoder, tokens, prompts.start, context) for tokens in chunks]
    else:
        rows = [checkpoint(_encode, encoder, tokens, prompts.start, context, use_reentrant=False) for tokens in chunks]
    features = torch.cat(rows)
    sums = features.new_zeros(int(prompts.owners.max()) + 1, features.shape[1])
    return torch.nn.functional.normalize(sums.index_add(0, prompts.owners, features), dim=1)


def _encode(encoder: ClipEncoder, tokens: Tensor, start: int, context: Tensor) -> Tensor:
    def put_in(module: torch.nn.Module, arguments: object, embedded: Tensor) -> Tensor:
        own = context.to(embedded.dtype).expand(len(embedded), -1, -1)
        return torch.cat([embedded[:, :start], own, embedded[:, start + len(context) :]], dim=1)

    hook = encoder.token_embedding.register_forward_hook(put_in)
    try:
        return encoder.text_features(tokens)
    finally:
        hook.remove()


def _common_prefix(encoder: ClipEncoder, words: str) -> tuple[int, int]:
    """Where text begins in a row of tokens, and how many tokens the words have there whatever follows them."""
    empty, first, second = encoder.tokenize(["", f"{words} cat", f"{words} dog"])
    start = _agree(empty, first)
    return start, _agree(first, second) - start


def _agree(a: Tensor, b: Tensor) -> int:
    return int((a == b).cumprod(0).sum())


def _stand_ins(encoder: ClipEncoder, words: str, more: int) -> str:
    """`words` behind `more` words of one token each."""
    for word in _STAND_INS:
        text = " ".join([word] * more + ([words] if words else []))
        own = _common_prefix(encoder, words)[1] if words else 0
        if _common_prefix(encoder, text)[1] == own + more:
            return text
    raise UsageError(f"{more} context vectors are more than the model reads; use fewer `context_vectors`")
