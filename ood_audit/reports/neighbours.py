"""What stands around the listed images: classes, their nearest neighbours, and a map of a sample of the store."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ood_audit.arrays import largest, unit
from ood_audit.classes.prototypes import Prototypes, fold_of, joined, sample, unseen_cosines
from ood_audit.encoders.cpu import mapped
from ood_audit.findings.map import coordinates
from ood_audit.store import Store
from ood_audit.store.parts import iter_features

NEIGHBOURS = 6
CLASSES = 5
LISTED = 500  # images whose neighbours are looked for in any store; in a small one it is more
MAPPED = 2000
_PAIRS = 1 << 27  # pairs of a listed image and another one that are compared at most, beyond those
_BLOCK = 512  # listed images at a time

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Compared:
    """What the images were scored against.

    Attributes:
        text: (K, D) the text features of the classes.
        prototypes: as `prototypes.fit_folds` gives them; empty where the names alone count.
        weight: of the prototypes.

    """

    text: Floats
    prototypes: Sequence[Prototypes | None] = ()
    weight: float = 0.0

    def similarities(self, images: Floats, paths: Sequence[str]) -> Floats:
        """(N, D) features → (N, K), as the score has them."""
        to_text: Floats = images @ self.text.T
        if not self.prototypes:
            return to_text
        to_prototypes = unseen_cosines(self.prototypes, images, fold_of(paths), to_text)
        found: Floats = joined(to_text, to_prototypes, self.weight)
        return found


@dataclass(frozen=True)
class Listed:
    """An image on the page.

    Attributes:
        image_id: Its id.
        path: Its path within its source.
        nearest: The numbers of the nearest class and of the runner-up, if any.
        given: The number of the class that it is labelled with, if any.

    """

    image_id: str
    path: str
    nearest: tuple[int, ...]
    given: int | None


@dataclass(frozen=True)
class Surroundings:
    """Ids, and places on the map.

    Attributes:
        neighbours: by image id, the ids of the nearest images, the nearest first.
        places: by image id, x and y in 0 … 1.
        classes: by image id, the numbers of the nearest classes, and last of the given one, and the similarities to
            them, the best first.

    """

    neighbours: dict[str, list[str]]
    places: dict[str, tuple[float, float]]
    classes: dict[str, list[tuple[int, float]]]


def look_around(store: Store, listed: list[Listed], total: int, compared: Compared) -> Surroundings:
    """Two passes over the features: for those of the listed images and of the sample, then for the neighbours.

    Args:
        store: the store.
        listed: the listed images.
        total: how many readable images there are.
        compared: what they were scored against.

    """
    looked_at = pa.array([image.image_id for image in listed], pa.string())
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
    most = max(LISTED, _PAIRS // max(total, 1))
    return Surroundings(
        neighbours=_nearest(store, looked_at[:most], own[:most]),
        places={i: (float(x), float(y)) for i, (x, y) in zip([*ids, *apart], places.tolist(), strict=True)},
        classes=dict(zip(looked_at.to_pylist(), _classes(listed, own, compared), strict=True)),
    )


def _classes(listed: list[Listed], own: Floats, compared: Compared) -> list[list[tuple[int, float]]]:
    """For each image the nearest classes with their similarities, first those that the scores name as the nearest.

    Two similarities that are the same but for rounding can be in another order here than in the scores.
    """

    def of(start: int) -> list[list[tuple[int, float]]]:
        some = listed[start : start + _BLOCK]
        block = compared.similarities(own[start : start + _BLOCK], [image.path for image in some])
        found = []
        order = np.argsort(-block, axis=1, kind="stable")[:, : CLASSES + 2].tolist()  # the nearest and the runner-up
        for image, similarities, others in zip(some, block, order, strict=True):
            best = list(dict.fromkeys([*image.nearest, *others]))[:CLASSES]
            values = similarities[best]
            values[0] = values.max()
            bars = list(zip(best, np.minimum.accumulate(values).tolist(), strict=True))
            if image.given is not None and image.given not in best:
                bars.append((image.given, min(float(similarities[image.given]), bars[-1][1])))
            found.append(bars)
        return found

    # Products so small by threads of BLAS's own take ten times as long where another process has one of the cores.
    return list(chain.from_iterable(mapped(of, range(0, len(own), _BLOCK))))


def _places(ids: pa.Array, looked_at: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where images are that are looked for: their rows, and their numbers among those looked for."""
    found = pc.index_in(ids, value_set=looked_at)
    rows = np.flatnonzero(found.is_valid().to_numpy(zero_copy_only=False))
    return rows, found.take(rows).to_numpy(zero_copy_only=False).astype(np.int64)


def _nearest(store: Store, looked_at: pa.Array, own: Floats) -> dict[str, list[str]]:
    best = np.full((len(own), NEIGHBOURS), -np.inf, np.float32)
    names = np.full((len(own), NEIGHBOURS), "", dtype=object)
    for batch in iter_features(store):
        rows, which = _places(batch.image_ids, looked_at)
        for start in range(0, len(own), _BLOCK):
            block = slice(start, start + _BLOCK)
            cosines = own[block] @ batch.features.T
            itself = (which >= start) & (which < start + _BLOCK)
            cosines[which[itself] - start, rows[itself]] = -np.inf  # not its own neighbour
            # The nearest of the batch, in its order, then of both.
            few = min(NEIGHBOURS, cosines.shape[1])
            near = np.sort(largest(cosines, few)[1], axis=1)
            ids = np.array(batch.image_ids.take(near.ravel()).to_pylist(), dtype=object).reshape(near.shape)
            both = np.concatenate([best[block], np.take_along_axis(cosines, near, axis=1)], axis=1)
            labels = np.concatenate([names[block], ids], axis=1)
            order = np.argsort(-both, axis=1, kind="stable")[:, :NEIGHBOURS]
            best[block] = np.take_along_axis(both, order, axis=1)
            names[block] = np.take_along_axis(labels, order, axis=1)
    found = zip(looked_at.to_pylist(), names.tolist(), best.tolist(), strict=True)
    return {
        image_id: [name for name, cosine in zip(near, values, strict=True) if cosine > -1]
        for image_id, near, values in found
    }
