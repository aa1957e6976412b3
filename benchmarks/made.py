"""Stores of made-up images of any size, for what is measured by the million; no picture and no encoder is needed.

The features are clustered as those of real pictures are: around their classes, with more variance in some directions
than in others, and some images far from all classes. `multiply` makes many images of those that a real store has.
"""

import hashlib
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.numpy import save_file

from ood_audit.classes.vocabulary import Vocabulary
from ood_audit.encoders.identity import EncoderIdentity, ScoreDefaults
from ood_audit.images.sources import ScanNotes, scan
from ood_audit.images.uri import local_path
from ood_audit.store import Store, create_store
from ood_audit.store.files import write_json
from ood_audit.store.parts import INHERITED, SCHEMA, PartWriter, write_part
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


_COPIED = 0.02  # of the images that `multiply` makes


def multiply(store: Store, files: Path, root: Path, images: int) -> Store:
    """A store of so many images, each made of one of `store`: a link to its file, in its folder, and all facts of it.

    Features are the one's, moved by half the way between two others that come near in the order of names. Hashes are
    made up, so that no two images look alike but pairs: one in fifty images is a near copy of another one, with the
    same file, six other bits in its hash, and a cosine of 0.99.
    """
    rng = np.random.default_rng(0)
    table = pa.concat_tables([pq.read_table(part) for part in store.parts])
    table = table.filter(pc.equal(table["status"], "ok")).sort_by("path")
    known = np.stack(table["embedding"].to_numpy()).astype(np.float32)
    facts = table.select(INHERITED).to_pylist()
    first = np.arange(images)
    copied = rng.permutation(images)[: 2 * round(_COPIED * images)].reshape(2, -1)
    first[copied[1]] = copied[0]
    hashes = rng.integers(0, 256, (images, 64), np.uint8)[first]
    hashes[copied[1], :6] ^= 1
    own = first % len(known)
    one, other = (own + rng.integers(-10, 11, (2, images))[:, first]) % len(known)
    noise = 0.14 * (first != np.arange(images))
    _link(table["uri"].to_pylist(), table["path"].to_pylist(), files, own)
    made = create_store(root, store.encoder)
    with PartWriter(made, "made-up") as writer:
        for image in scan(os.path.realpath(files), ScanNotes()):
            row = int(image.path.rpartition("/")[2].partition(".")[0])
            feature = known[own[row]] + 0.5 * (known[one[row]] - known[other[row]])
            turned = rng.standard_normal((1, known.shape[1]), np.float32)
            feature = Features.unit(feature[None]) + np.float32(noise[row]) * Features.unit(turned)
            own_facts = {"picture_hash": hashes[row].tobytes().hex(), "content_hash": None}
            writer.adopt(
                image,
                facts[own[row]] | own_facts,
                Features.unit(feature)[0].astype(np.float16),
                supersedes=False,
            )
    return made


def _link(uris: list[str], paths: list[str], into: Path, own: NDArray[np.int64]) -> None:
    """For each number of one of some files a link to a copy of it, called by its own place, in folders as theirs."""
    copies = into.with_name("originals")
    copies.mkdir()
    for number, (uri, path) in enumerate(zip(uris, paths, strict=True)):
        shutil.copyfile(local_path(uri), copies / str(number))
        (into / path).parent.mkdir(parents=True, exist_ok=True)
    for row, number in enumerate(own.tolist()):
        os.link(copies / str(number), (into / paths[number]).with_name(f"{row:08}{Path(paths[number]).suffix}"))
