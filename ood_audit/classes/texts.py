"""Who turns texts into features for a store: its encoder, or the vectors that were imported for its names."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ood_audit.encoders.identity import IMPORTED
from ood_audit.errors import EncoderError, UsageError
from ood_audit.names import key
from ood_audit.progress import Progress, silent
from ood_audit.store.files import read_json, write_json
from ood_audit.store.store import Store
from ood_audit.text import printable
from ood_audit.values import JsonObject

if TYPE_CHECKING:
    import torch

    from ood_audit.encoders.clip import ClipEncoder
    from ood_audit.encoders.identity import ScoreDefaults
    from ood_audit.encoders.loading import Encoder

_Encoder = TypeVar("_Encoder", bound="Encoder")


class TextEncoder(Protocol):
    """What is needed of an encoder once the images are embedded."""

    @property
    def score_defaults(self) -> "ScoreDefaults":
        """The ΔEnergy settings that suit it."""

    def tokenize(self, texts: Sequence[str]) -> "torch.Tensor | NDArray[np.int64]":
        """(N, L) token ids: what the text tower sees of each text, cut off at its context length."""

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(N, D) features of length 1."""


def encoder_of(store: Store, device: str = "auto", on_progress: Progress = silent) -> Callable[[], TextEncoder]:
    """A function that gives the text encoder of a store. It is loaded when the function is first called, and once.

    Raises:
        EncoderError: when called: the model is not there any more, or the store was imported without one.

    """

    @cache
    def encoder() -> TextEncoder:
        from ood_audit.encoders.loading import load_encoder, load_same_encoder

        on_progress("loading the model")
        return _load(store, device, load_encoder, load_same_encoder)

    return encoder


def tunable_encoder_of(store: Store, device: str, on_progress: Progress) -> Callable[[], "ClipEncoder"]:
    """As `encoder_of`, by torch, whatever the model: prompts are learnt through it."""

    @cache
    def encoder() -> "ClipEncoder":
        from ood_audit.encoders.clip import load_encoder, load_same_encoder

        on_progress("loading the model")
        return _load(store, device, load_encoder, load_same_encoder)

    return encoder


def _load(
    store: Store, device: str, load_encoder: "Callable[..., _Encoder]", load_same_encoder: "Callable[..., _Encoder]"
) -> "_Encoder":
    if not store.encoder.is_imported:
        return load_same_encoder(store.encoder, device=device)
    if store.encoder.model == "imported":
        raise EncoderError(
            "this store was imported without a model, so that no text can be encoded; give the vectors of the "
            "names with `ood-audit import --texts FILE`, or the model with `model`"
        )
    own = load_encoder(store.encoder.model, weights=store.encoder.weights, device=device)
    if own.identity.dimension != store.encoder.dimension:
        raise EncoderError(
            f"the model {store.encoder.model} makes vectors of {own.identity.dimension} numbers, those of "
            f"this store have {store.encoder.dimension}; import them again with the right `model`"
        )
    return own


def encoder_defaults(store: Store, encoder: Callable[[], TextEncoder]) -> JsonObject:
    """The encoder's card, see `ScoreDefaults`: read from its weights once, and kept in the store."""
    path = store.root / "score_defaults.json"
    if not path.exists() or "duplicate" not in read_json(path):  # older ones had other settings
        own = IMPORTED if store.encoder.is_imported else encoder().score_defaults
        write_json(path, asdict(own))
    return read_json(path)


def class_names(store: Store) -> list[str]:
    """The names whose vectors were imported with --texts, in their order; none where there are none."""
    found = _read(store, "classes")
    return [] if found is None else found[0]


def class_features(store: Store, classes: Sequence[Sequence[str]]) -> NDArray[np.float32] | None:
    """(K, D) the imported vectors of classes, each the mean of those of its names; None without imported texts.

    Raises:
        UsageError: a class has no vector under any of its names.

    """
    found = _read(store, "classes")
    if found is None:
        return None
    row_of = {key(name): row for row, name in enumerate(found[0])}
    rows = [[row_of[own] for name in names if (own := key(name)) in row_of] for names in classes]
    if missing := [names[0] for names, own in zip(classes, rows, strict=True) if not own]:
        some = ", ".join(printable(name) for name in missing[:3]) + (", …" if len(missing) > 3 else "")
        raise UsageError(
            f"{len(missing)} of {len(classes)} classes have no imported vector ({some}); import them with `texts=FILE`"
        )
    sums = np.stack([found[1][own].sum(axis=0) for own in rows])
    unit: NDArray[np.float32] = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    return unit


def background(store: Store) -> tuple[list[str], NDArray[np.float32]] | None:
    """The imported background names and their (M, D) vectors; None where there are none."""
    return _read(store, "background")


def _read(store: Store, what: Literal["classes", "background"]) -> tuple[list[str], NDArray[np.float32]] | None:
    path = store.imported_texts(what)
    if not path.exists():
        return None
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    values = table["vector"].combine_chunks().flatten().to_numpy()
    return table["name"].to_pylist(), values.reshape(len(table), -1).astype(np.float32)
