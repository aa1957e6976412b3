"""Folders of linked images, and stores of them that need no encoder: each picture is embedded once."""

import hashlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import ood_audit
from ood_audit.images.decode import Decoded
from ood_audit.images.sources import ScanNotes, local_path, resolve, scan
from ood_audit.store import Store, create_store, open_store
from ood_audit.store.parts import PartWriter, iter_features, looks_of


@dataclass(frozen=True)
class Embedded:
    """Pictures that are embedded, by their real path, and a store from which others take its encoder and its texts."""

    store: Store
    pictures: dict[str, tuple[Decoded, np.ndarray]]

    @classmethod
    def of(cls, folders: Iterable[Path], root: Path, model: str) -> "Embedded":
        """Embed the images of some folders into a store at `root`."""
        store = ood_audit.embed(list(folders), store=root, model=model).store
        columns = "image_id, uri, width, height, format, size_bytes, mtime_ns, content_hash"
        rows = store.query(f"SELECT {columns} FROM images WHERE status = 'ok'").rows
        decoded = {row[0]: (os.path.realpath(local_path(row[1])), Decoded(*row[2:])) for row in rows}
        pictures = {}
        for batch in iter_features(store):
            ids = batch.image_ids.to_pylist()
            for image_id, feature, look in zip(ids, batch.features, looks_of(store, ids), strict=True):
                path, facts = decoded[image_id]
                pictures[path] = (replace(facts, look=look), feature)
        return cls(open_store(root), pictures)

    def store_of(self, folder: Path, root: Path) -> Store:
        """A store of `folder`, of links to pictures that are embedded, as `embed` would make it."""
        store = create_store(root, self.store.encoder)
        with PartWriter(store, "run") as writer:
            for image in sorted(scan(resolve(folder), ScanNotes()), key=lambda image: image.path):
                facts, feature = self.pictures[os.path.realpath(local_path(image.uri))]
                writer.add(image, facts, feature, supersedes=False)
        if (self.store.root / "score_defaults.json").exists():
            shutil.copy(self.store.root / "score_defaults.json", store.root)
        if self.store.vocabularies.exists():  # the names of other things, encoded
            shutil.copytree(self.store.vocabularies, store.vocabularies, dirs_exist_ok=True)
        return open_store(root)

    def register(self, store: Store, labelled: Path, labels: Path, name: str = "own") -> None:
        """`tune --from LABELLED --epochs 0` on links to pictures that are embedded, which it finds embedded."""
        from ood_audit.tuning.settings import TuneSettings

        inner = store.root / "labelled" / hashlib.sha256(os.fsencode(os.path.abspath(labelled))).hexdigest()[:16]
        self.store_of(labelled, inner)
        ood_audit.tune(store, labels=labels, folder=labelled, settings=TuneSettings(epochs=0), name=name)

    def keep_texts(self, store: Store) -> None:
        """Take over the names of other things that `store` has encoded, for the next ones."""
        self.store.vocabularies.mkdir(exist_ok=True)
        for path in [*store.vocabularies.iterdir(), store.root / "score_defaults.json"]:
            place = self.store.root / path.relative_to(store.root)
            if not place.exists():
                shutil.copy(path, place)


def link(files: dict[str, Path], folder: Path) -> Path:
    """A folder of links: what each is called, and what it points to."""
    for name, target in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(target.resolve())
    return folder
