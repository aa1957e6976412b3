"""The two sets of images that `compare` compares: what their names mean, and their features."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from duckdb import DuckDBPyConnection
from numpy.typing import NDArray

from ood_audit.classes.prototypes import sample
from ood_audit.errors import UsageError
from ood_audit.findings.drift import FEWEST
from ood_audit.images.splits import is_split
from ood_audit.store.parts import iter_features
from ood_audit.store.schema import IMAGES
from ood_audit.store.store import Store, open_store
from ood_audit.store.views import connect
from ood_audit.text import printable, storable

MOST = 10_000  # images of a side; a random sample stands for more
SIZES = {  # numeric columns of `images` as words: more of it, less of it
    "width": ("wider", "narrower"),
    "height": ("taller", "less tall"),
    "size_bytes": ("larger files", "smaller files"),
}
LOOKS = {
    "brightness": ("brighter", "darker"),
    "sharpness": ("sharper", "blurrier"),
    "entropy": ("more detailed", "less detailed"),
    "saturation": ("more colourful", "less colourful"),
}
MEASURES = {name: words for name, words in (SIZES | LOOKS).items() if name in IMAGES}


@dataclass(frozen=True)
class Side:
    """One of the two sets of images.

    Attributes:
        name: As it was given.
        total: How many readable images it has.
        images: Those that are compared: the columns image_id, uri, path and folder, what `recordings` asks for, and the
            measures.
        features: (N, D) float32 of length 1, in the order of `images`.

    """

    name: str
    total: int
    images: pa.Table
    features: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.features)

    def values(self, column: str) -> list[Any]:
        """The values of a column, an image each."""
        values: list[Any] = self.images[column].to_pylist()
        return values


def both(store: Store, reference: str, other: str) -> tuple[Side, Side]:
    """The two sides, each by the name of a split, a source, a folder or another store.

    Raises:
        UsageError: A name means nothing, or too few images; the sides share images; or their encoders differ.

    """
    a, b = _Chosen.of(store, reference), _Chosen.of(store, other)
    if reason := _incomparable(a.store, b.store):
        raise UsageError(reason)
    shared = pc.sum(pc.is_in(b.images["image_id"], value_set=a.images["image_id"].combine_chunks())).as_py() or 0
    if a.store.root.resolve() == b.store.root.resolve() and shared:
        raise UsageError(
            f"{shared} images are both in {printable(reference)} and in {printable(other)}; name two sets without "
            "images in common"
        )
    return a.side(), b.side()


def independent(a: Side, b: Side, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of either side that are independent of each other.

    Of pictures with the same bytes, or of one recording, one at random stands for all, whichever sides they are of.
    """
    from ood_audit.findings import recordings  # it imports SciPy

    images = pa.concat_tables([a.images, b.images])
    labels = [
        "/".join(part for part in folder.split("/") if not is_split(part)) for folder in images["folder"].to_pylist()
    ]
    pictures = images.append_column("label", pa.array(labels))
    features = np.concatenate([a.features, b.features])
    groups = [recordings.find(pictures, features.astype(np.float16)).number, _same_bytes(images)]
    one, other = np.concatenate([recordings.chained(numbers) for numbers in groups], axis=1)
    group = recordings.connected(one, other, len(images))
    order = np.random.default_rng(seed).permutation(len(images))
    _, first = np.unique(np.where(group < 0, len(images) + np.arange(len(images)), group)[order], return_index=True)
    rows = np.sort(order[first])
    return rows[rows < len(a)], rows[rows >= len(a)] - len(a)


def _same_bytes(images: pa.Table) -> NDArray[np.int64]:
    """(N,) a number for each content; -1 where it is unknown."""
    codes = images["content_hash"].combine_chunks().dictionary_encode().indices
    numbers: NDArray[np.int64] = codes.fill_null(-1).to_numpy().astype(np.int64)
    return numbers


@dataclass(frozen=True)
class _Chosen:
    """The images that a name means."""

    name: str
    store: Store
    images: pa.Table

    @classmethod
    def of(cls, store: Store, name: str) -> "_Chosen":
        """Of the store, or of another one that `name` is the folder of."""
        given = storable(name)
        if os.path.isfile(os.path.join(name, "store.json")):
            store, conditions = open_store(name), [("TRUE", given)]
        else:
            conditions = list(_meanings(given))
        columns = ", ".join(("image_id", "uri", "path", "folder", "content_hash", "taken_at", "camera", *MEASURES))
        with connect(store) as db:
            for condition, value in conditions:
                sql = f"SELECT {columns} FROM images WHERE status = 'ok' AND $value = $value AND {condition}"
                images = db.sql(f"{sql} ORDER BY image_id", params={"value": value}).to_arrow_table()
                if len(images):
                    break
            else:
                raise UsageError(_nothing(db, given))
        if len(images) < FEWEST:
            raise UsageError(f"{printable(given)} has {len(images)} images; at least {FEWEST} are needed to compare")
        return cls(given, store, images)

    def side(self) -> Side:
        """With the features of a random sample where there are more than `MOST`."""
        images = self.images.take(pa.array(sample(len(self.images), most=MOST)))
        wanted = images["image_id"].combine_chunks()
        features = np.empty((len(images), self.store.encoder.dimension), np.float32)
        for batch in iter_features(self.store):
            rows = pc.index_in(batch.image_ids, value_set=wanted)
            there = rows.is_valid().to_numpy(zero_copy_only=False)
            features[rows.drop_null().to_numpy()] = batch.features[there]
        return Side(self.name, len(self.images), images, features)


def _meanings(name: str) -> Iterator[tuple[str, str]]:
    """What a name may mean, as conditions on the view `images` and their value, the likeliest first."""
    yield "split = $value", name
    for path in dict.fromkeys((name, storable(os.path.abspath(name)), storable(os.path.realpath(name)))):
        path = path.rstrip("/") or "/"
        yield "source = $value", path
        yield "starts_with(source || '/' || path, $value)", f"{path}/"
    folder = name.strip("/")
    if folder:
        yield "starts_with(path, $value)", f"{folder}/"


def _incomparable(a: Store, b: Store) -> str:
    """Why the features of two stores can't be compared, and the remedy; "" where they can."""
    differences = a.encoder.differences(b.encoder)
    if a.encoder.is_imported and a.encoder.model != b.encoder.model:
        differences.append(f"model {a.encoder.model} here, {b.encoder.model} there")
    if not differences:
        return ""
    return (
        f"{printable(str(b.root))} was embedded by another encoder than {printable(str(a.root))} "
        f"({printable(differences[0])}); embed both with the same --model"
    )


def _nothing(db: DuckDBPyConnection, name: str) -> str:
    splits = [
        row[0]
        for row in db.execute("SELECT DISTINCT split FROM images WHERE split IS NOT NULL ORDER BY 1 LIMIT 5").fetchall()
    ]
    there = f"the splits are {', '.join(map(printable, splits))}; " if splits else ""
    return (
        f"no readable image is in {printable(name) or '(an empty name)'}: it is no split, source or folder of the "
        f"store, and no other store; {there}`ood-audit sources` lists the sources"
    )
