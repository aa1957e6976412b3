"""Stores with made-up features, for which no picture and no encoder is needed."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from ood_audit.arrays import Spanned
from ood_audit.classes.pools import Pool
from ood_audit.classes.vocabulary import Vocabulary
from ood_audit.encoders.identity import EncoderIdentity, ScoreDefaults
from ood_audit.images.decode import Decoded
from ood_audit.images.sources import ImageRef
from ood_audit.store import Store, create_store
from ood_audit.store.files import write_json
from ood_audit.store.parts import PartWriter


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def make_store(
    root: Path,
    features,
    paths: Sequence[str],
    vocabulary: Vocabulary,
    text,
    hashes: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
) -> Store:
    """A store of images with these (N, D) features at these paths, whose last used vocabulary has (K, D) features.

    `hashes` are those of their bytes, by default all different.
    """
    identity = EncoderIdentity("made-up", None, "none", "0" * 64, {}, "gelu", "fp32", text.shape[1])
    store = create_store(root, identity)
    with PartWriter(store, "run") as writer:
        for i, (path, vector) in enumerate(zip(paths, features, strict=True)):
            split = splits[i] if splits else None
            image = ImageRef(f"file:///made-up/{path}", "/made-up", path, 1, 1, split=split)
            decoded = Decoded(8, 8, "PNG", 1, 1, hashes[i] if hashes else image.image_id)
            writer.add(image, decoded, np.asarray(vector, np.float32), supersedes=False)
    write_json(store.root / "score_defaults.json", asdict(ScoreDefaults(1.0, 2, 0.0)))
    add_vocabulary(store, vocabulary, text)
    store.set_current(vocabulary=vocabulary.id)
    return store


def add_vocabulary(store: Store, vocabulary: Vocabulary, text) -> None:
    """Keep (K, D) text features for a vocabulary in the store, as `vocabulary.cached_features` does."""
    store.vocabularies.mkdir(exist_ok=True)
    save_file({"features": text}, store.vocabularies / f"{vocabulary.id}.safetensors")
    values = {"classes": vocabulary.classes, "templates": vocabulary.templates}
    write_json(store.vocabularies / f"{vocabulary.id}.json", values)


def make_pool(text, others: int = 60, seed: int = 9) -> Pool:
    """A background: a name for each class, then others."""
    rng = np.random.default_rng(seed)
    features = np.concatenate([text, unit(rng.normal(size=(others, text.shape[1])))])
    pairs = np.stack([np.arange(len(text))] * 2, axis=1).astype(np.int32)
    return Pool([f"thing {i}" for i in range(len(features))], Spanned(features.astype(np.float16)), text, pairs)


def problem(classes: int, images: int, *, shown: int | None = None, ood: int = 0, seed: int = 0, dimension: int = 16):
    """(N, D) features, (N,) labels and (K, D) text: images of the first `shown` classes, then `ood` of none (−1)."""
    rng = np.random.default_rng(seed)
    text = unit(rng.normal(size=(classes, dimension)))
    labels = np.arange(images) % (shown or classes)
    features = unit(text[labels] + 0.25 * rng.normal(size=(images, dimension)))
    strange = unit(rng.normal(size=(ood, dimension)))
    return np.concatenate([features, strange]), np.concatenate([labels, np.full(ood, -1)]), text
