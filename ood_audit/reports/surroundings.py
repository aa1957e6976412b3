"""What stands around the listed images: classes, their nearest neighbours, and a map of a sample of the store."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ood_audit.prototypes import sample
from ood_audit.reports.mapping import coordinates
from ood_audit.store import Store
from ood_audit.store.parts import iter_features

NEIGHBOURS = 6
CLASSES = 5
LISTED = 500  # images whose neighbours are looked for in any store; in a small one it is more
MAPPED = 3000
_PAIRS = 1 << 27  # of listed images and all images, compared at most beyond those
_BLOCK = 512  # listed images at a time

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Surroundings:
    """Ids, and places on the map.

    Attributes:
        neighbours: by image id, the ids of the nearest images, the nearest first.
        places: by image id, x and y in 0 … 1.
        classes: by image id, the numbers of the nearest classes and the cosines to their text features, the best first.

    """

    neighbours: dict[str, list[str]]
    places: dict[str, tuple[float, float]]
    classes: dict[str, list[tuple[int, float]]]


def look_around(store: Store, listed: list[str], total: int, text: Floats) -> Surroundings:
    """Two passes over the features: for those of the listed images and of the sample, then for the neighbours.

    Args:
        store: the store.
        listed: ids of the listed images.
        total: how many readable images there are.
        text: (K, D) the text features of the classes.

    """
    wanted = {image_id: row for row, image_id in enumerate(listed)}
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
    most = max(LISTED, _PAIRS // max(total, 1))
    return Surroundings(
        neighbours=_nearest(store, listed[:most], own[:most]),
        places={i: (float(x), float(y)) for i, (x, y) in zip([*ids, *apart], places.tolist(), strict=True)},
        classes=dict(zip(listed, _classes(own, text), strict=True)),
    )


def _classes(own: Floats, text: Floats) -> list[list[tuple[int, float]]]:
    """For each row the nearest classes, with their cosines."""
    found = []
    for start in range(0, len(own), _BLOCK):
        cosines = own[start : start + _BLOCK] @ text.T
        best = np.argsort(-cosines, axis=1, kind="stable")[:, :CLASSES]
        values = np.take_along_axis(cosines, best, axis=1)
        found += [list(zip(*row, strict=True)) for row in zip(best.tolist(), values.tolist(), strict=True)]
    return found


def _nearest(store: Store, listed: list[str], own: Floats) -> dict[str, list[str]]:
    best = np.full((len(listed), NEIGHBOURS), -np.inf, np.float32)
    names = np.full((len(listed), NEIGHBOURS), "", dtype=object)
    row_of = {image_id: row for row, image_id in enumerate(listed)}
    for batch in iter_features(store, batch_rows=16_384):
        ids = np.array(batch.image_ids.to_pylist(), dtype=object)
        itself = [(row_of[name], column) for column, name in enumerate(ids) if name in row_of]
        for start in range(0, len(listed), _BLOCK):
            block = slice(start, start + _BLOCK)
            cosines = own[block] @ batch.features.T
            for row, column in itself:
                if start <= row < start + _BLOCK:
                    cosines[row - start, column] = -np.inf  # not its own neighbour
            # The nearest of the batch, in its order, then of both.
            few = min(NEIGHBOURS, cosines.shape[1])
            near = np.sort(np.argpartition(-cosines, few - 1, axis=1)[:, :few], axis=1)
            both = np.concatenate([best[block], np.take_along_axis(cosines, near, axis=1)], axis=1)
            labels = np.concatenate([names[block], ids[near]], axis=1)
            order = np.argsort(-both, axis=1, kind="stable")[:, :NEIGHBOURS]
            best[block] = np.take_along_axis(both, order, axis=1)
            names[block] = np.take_along_axis(labels, order, axis=1)
    found = zip(listed, names.tolist(), best.tolist(), strict=True)
    return {
        image_id: [name for name, cosine in zip(near, values, strict=True) if cosine > -1]
        for image_id, near, values in found
    }
