"""Stores of made-up images of any size, for what is measured by the million; no picture and no encoder is needed.

The features are clustered as those of real pictures are: around their classes, with more variance in some directions
than in others, and some images far from all classes.
"""

import hashlib
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from safetensors.numpy import save_file

from ood_audit.classes.vocabulary import Vocabulary
from ood_audit.encoders.identity import EncoderIdentity, ScoreDefaults
from ood_audit.store import Store, create_store
from ood_audit.store.files import write_json
from ood_audit.store.parts import SCHEMA, write_part
from ood_audit.store.schema import completed


class Features:
    """Draws features of length 1 around the text features of classes."""

    def __init__(self, classes: int, dimension: int, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self.text = self.unit(self._rng.standard_normal((classes, dimension), np.float32))
        # Standard deviations as the singular values of CLIP's features fall: as a power of their rank.
        self._spread = (np.arange(1, dimension + 1, dtype=np.float32) ** -0.5) * np.float32(2.2)

    @staticmethod
    def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows

    def draw(self, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """(N, D) features and the class of each; one in twenty is of no class."""
        labels = self._rng.integers(0, len(self.text), count)
        features = self._rng.standard_normal((count, self.text.shape[1]), np.float32)
        features *= self._spread / np.sqrt(np.float32(self.text.shape[1])) * 8
        features += self.text[labels] * (self._rng.random((count, 1), np.float32) > 0.05)
        return self.unit(features), labels


def make_store(
    root: Path, images: int, classes: int, dimension: int, *, part_rows: int = 65_536, folders: bool = False
) -> Store:
    """A store of so many images, in parts as large as `compact` makes them, that was last used with so many classes."""
    features = Features(classes, dimension)
    store = create_store(root, EncoderIdentity("made-up", None, "none", "0" * 64, {}, "gelu", "fp32", dimension))
    for number, start in enumerate(range(0, images, part_rows), start=1):
        count = min(part_rows, images - start)
        rows, labels = features.draw(count)
        names = [f"{'class ' if folders else 'batch-'}{label:04}/{start + i:09}.jpg" for i, label in enumerate(labels)]
        ids = [hashlib.sha256(name.encode()).hexdigest()[:32] for name in names]
        columns = {
            "image_id": pa.array(ids),
            "part": pa.array(np.full(count, number), pa.int32()),
            "uri": pa.array([f"file:///made-up/{name}" for name in names]),
            "source": pa.array(["/made-up"] * count),
            "path": pa.array(names),
            "folder": pa.array([name.rpartition("/")[0] for name in names]),
            "width": pa.array(np.full(count, 640), pa.int32()),
            "height": pa.array(np.full(count, 480), pa.int32()),
            "format": pa.array(["JPEG"] * count),
            "size_bytes": pa.array(np.arange(start, start + count)),
            "mtime_ns": pa.array(np.arange(start, start + count)),
            "content_hash": pa.array(ids),
            "status": pa.array(["ok"] * count),
            "supersedes": pa.array(np.zeros(count, bool)),
            "run_id": pa.array(["made-up"] * count),
            "embedding": pa.ListArray.from_arrays(
                (np.arange(count + 1) * dimension).astype(np.int32), pa.array(rows.astype(np.float16).ravel())
            ),
        }
        table = completed(pa.table(columns), SCHEMA)
        write_part(table, store.images / f"part-{number:08d}.parquet")
    write_json(store.root / "score_defaults.json", asdict(ScoreDefaults(1.0, 2, 0.0)))
    vocabulary = Vocabulary(tuple((f"class {k:04}",) for k in range(classes)))
    store.vocabularies.mkdir(exist_ok=True)
    save_file({"features": features.text}, store.vocabularies / f"{vocabulary.id}.safetensors")
    values = {"classes": vocabulary.classes, "templates": vocabulary.templates}
    write_json(store.vocabularies / f"{vocabulary.id}.json", values)
    store.set_current(vocabulary=vocabulary.id)
    return store
