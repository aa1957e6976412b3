"""The FAISS index of the image features, by inner product; see `search` for its kinds."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ood_audit.store.files import remove, replacing, write_json
from ood_audit.store.folder import span
from ood_audit.store.parts import iter_features
from ood_audit.store.search import EXACT, build, read_index, write_index
from ood_audit.store.store import Store
from ood_audit.store.views import count_readable

# What `embed` builds right away: an index is held in memory, and the memory of `embed` must not grow with the images.
# Larger ones are built when a command first needs them.
BUILD_NOW_BYTES = 256 << 20


def build_index(
    store: Store, *, limit_bytes: int | None = None, on_note: Callable[[str], None] = lambda note: None
) -> bool:
    """Bring `index/features.faiss` into step with the parts; row i of it is line i of `index/image_ids.txt`.

    Args:
        store: the store.
        limit_bytes: give up beyond this size of the codes, and where the index would have to be trained.
        on_note: see `search.build`.

    Returns:
        Whether the index is in step now.

    """
    meta = store.index.with_name("index.json")
    parts = store.parts
    generation = span(parts[-1])[1] if parts else 0
    if _generation(meta) == generation:
        return True
    total, dimension = count_readable(store, parts), store.encoder.dimension
    if limit_bytes is not None and (2 * dimension * total > limit_bytes or total > EXACT):
        return False
    image_ids: list[str] = []

    def batches() -> Iterator[NDArray[np.float32]]:
        image_ids.clear()
        for batch in iter_features(store, parts=parts):
            image_ids.extend(batch.image_ids.to_pylist())
            yield batch.features

    index, kind = build(batches, total, dimension, on_note=on_note)
    remove(meta)
    with replacing(store.index) as temporary:
        write_index(index, temporary)
    with replacing(store.index.with_name("image_ids.txt")) as temporary:
        temporary.write_text("".join(f"{image_id}\n" for image_id in image_ids), encoding="utf-8")
    write_json(meta, {"generation": generation, "images": len(image_ids), **kind.as_json()})
    return True


def neighbours(store: Store, features: NDArray[np.float32], k: int) -> tuple[list[list[str]], NDArray[np.float32]]:
    """The k nearest images of the store by cosine.

    Args:
        store: the store; its index is built where that is due.
        features: (N, D) float32, of length 1.
        k: how many.

    Returns:
        Image ids, nearest first, N lists of at most k; and the (N, k) cosines.

    """
    build_index(store)
    index = read_index(store.index)
    image_ids = store.index.with_name("image_ids.txt").read_text(encoding="utf-8").splitlines()
    if index.ntotal == 0:
        return [[] for _ in features], np.empty((len(features), 0), np.float32)
    cosines, rows = index.search(np.ascontiguousarray(features, np.float32), min(k, index.ntotal))
    return [[image_ids[i] for i in row if i >= 0] for row in rows.tolist()], cosines


def _generation(meta: Path) -> int | None:
    try:
        return int(json.loads(meta.read_text(encoding="utf-8"))["generation"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
