"""What stands around the listed images: their nearest neighbours, and a map of a sample of the store."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ood_audit.prototypes import sample
from ood_audit.reports.mapping import coordinates
from ood_audit.store import Store
from ood_audit.store.parts import iter_features

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
    wanted = {image_id: row for row, image_id in enumerate(listed[:LISTED])}
    chosen = sample(total, most=MAPPED)
    own = np.zeros((len(wanted), store.encoder.dimension), np.float32)
    sampled, ids, start = [own[:0]], [], 0
    for batch in iter_features(store):
        names = batch.image_ids.to_pylist()
        rows = chosen[(chosen >= start) & (chosen < start + len(names))] - start
        start += len(names)
        sampled.append(batch.features[rows])
        ids += [names[row] for row in rows]
        for row, name in enumerate(names):
            if name in wanted:
                own[wanted[name]] = batch.features[row]
    # The listed images are on the map too, whether they are in the sample or not.
    there = set(ids)
    apart = [image_id for image_id in wanted if image_id not in there]
    features = np.concatenate([*sampled, own[[wanted[image_id] for image_id in apart]]])
    places = coordinates(features) if len(features) else features
    return Surroundings(
        neighbours=_nearest(store, list(wanted), own),
        places={i: (float(x), float(y)) for i, (x, y) in zip([*ids, *apart], places.tolist(), strict=True)},
    )


def _nearest(store: Store, listed: list[str], own: NDArray[np.float32]) -> dict[str, list[str]]:
    best = np.full((len(listed), NEIGHBOURS), -np.inf, np.float32)
    names = np.full((len(listed), NEIGHBOURS), "", dtype=object)
    for batch in iter_features(store, batch_rows=16_384):
        ids = np.array(batch.image_ids.to_pylist(), dtype=object)
        cosines = own @ batch.features.T
        cosines[np.array(listed, dtype=object)[:, None] == ids[None, :]] = -np.inf  # not its own neighbour
        both = np.concatenate([best, cosines], axis=1)
        order = np.argsort(-both, axis=1, kind="stable")[:, :NEIGHBOURS]
        labels = np.concatenate([names, np.broadcast_to(ids, cosines.shape)], axis=1)
        best, names = np.take_along_axis(both, order, axis=1), np.take_along_axis(labels, order, axis=1)
    found = zip(listed, names.tolist(), best.tolist(), strict=True)
    return {
        image_id: [name for name, cosine in zip(near, values, strict=True) if cosine > -1]
        for image_id, near, values in found
    }
