"""What stands around the listed images: their nearest neighbours, and a map of a sample of the store."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ood_audit.prototypes import sample
from ood_audit.reports.mapping import coordinates
from ood_audit.store import Store
from ood_audit.store.parts import iter_features, unit

NEIGHBOURS = 6
LISTED = 500  # images whose neighbours are looked for
MAPPED = 3000


@dataclass(frozen=True)
class Surroundings:
    """Ids, and places on the map.

    Attributes:
        neighbours: by image id, the ids of the nearest images, the nearest first.
        places: by image id, x and y in 0 … 1.

    """

    neighbours: dict[str, list[str]]
    places: dict[str, tuple[float, float]]


def look_around(store: Store, listed: list[str], total: int) -> Surroundings:
    """Two passes over the features: for those of the listed images and of the sample, then for the neighbours.

    Args:
        store: the store.
        listed: ids of the listed images, of which the first 500 are looked around.
        total: how many readable images there are.

    """
    looked_at = pa.array(listed[:LISTED], pa.string())
    chosen = sample(total, most=MAPPED)
    own = np.zeros((len(looked_at), store.encoder.dimension), np.float32)
    sampled, ids, start = [own[:0]], [], 0
    for batch in iter_features(store):
        rows = chosen[(chosen >= start) & (chosen < start + len(batch.codes))] - start
        start += len(batch.codes)
        sampled.append(unit(batch.codes[rows]))
        ids += batch.image_ids.take(rows).to_pylist()
        there, which = _places(batch.image_ids, looked_at)
        own[which] = unit(batch.codes[there])
    wanted = {image_id: row for row, image_id in enumerate(looked_at.to_pylist())}
    # The listed images are on the map too, whether they are in the sample or not.
    on_map = set(ids)
    apart = [image_id for image_id in wanted if image_id not in on_map]
    features = np.concatenate([*sampled, own[[wanted[image_id] for image_id in apart]]])
    places = coordinates(features) if len(features) else features
    return Surroundings(
        neighbours=_nearest(store, looked_at, own),
        places={i: (float(x), float(y)) for i, (x, y) in zip([*ids, *apart], places.tolist(), strict=True)},
    )


def _places(ids: pa.Array, looked_at: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where images are that are looked for: their rows, and their numbers among those looked for."""
    found = pc.index_in(ids, value_set=looked_at)
    rows = np.flatnonzero(found.is_valid().to_numpy(zero_copy_only=False))
    return rows, found.take(rows).to_numpy(zero_copy_only=False).astype(np.int64)


def _nearest(store: Store, looked_at: pa.Array, own: NDArray[np.float32]) -> dict[str, list[str]]:
    best = np.full((len(own), NEIGHBOURS), -np.inf, np.float32)
    names = np.full((len(own), NEIGHBOURS), "", dtype=object)
    for batch in iter_features(store, batch_rows=16_384):
        cosines = own @ batch.features.T
        rows, which = _places(batch.image_ids, looked_at)
        cosines[which, rows] = -np.inf  # not its own neighbour
        most = min(NEIGHBOURS, cosines.shape[1])
        near = np.sort(np.argpartition(-cosines, most - 1, axis=1)[:, :most], axis=1)
        ids = np.array(batch.image_ids.take(near.ravel()).to_pylist(), dtype=object).reshape(near.shape)
        both = np.concatenate([best, np.take_along_axis(cosines, near, axis=1)], axis=1)
        order = np.argsort(-both, axis=1, kind="stable")[:, :NEIGHBOURS]
        labels = np.concatenate([names, ids], axis=1)
        best, names = np.take_along_axis(both, order, axis=1), np.take_along_axis(labels, order, axis=1)
    found = zip(looked_at.to_pylist(), names.tolist(), best.tolist(), strict=True)
    return {
        image_id: [name for name, cosine in zip(near, values, strict=True) if cosine > -1]
        for image_id, near, values in found
    }
