"""What images are compared with, and the comparison: features → similarities to the classes and to other things."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ood_audit.arrays import Array, Spanned, beside, largest, log_sum_exp, namespace, unit, without
from ood_audit.classes import prototypes
from ood_audit.classes.prototypes import Prototypes, References
from ood_audit.encoders.cpu import mapped
from ood_audit.encoders.gpu import choose_gpu
from ood_audit.encoders.warn import warn_once
from ood_audit.scoring import outside, scores
from ood_audit.scoring.scores import Options, Score
from ood_audit.store import Store
from ood_audit.store.parts import FeatureBatch, iter_features

if TYPE_CHECKING:
    import torch

    from ood_audit.classes.pools import Pool

_Value = TypeVar("_Value")
_CHUNK_BYTES = 16 << 20  # float32 cosines at a time; with a quarter of that, Python's share of the time is a tenth
_GPU_CHUNK_BYTES = 256 << 20  # cosines at a time; what is derived from them takes several times as much
_GPU_MOST_IMAGES = 65_536
_WIDEST = 4096  # classes; with more, the product of a few images would be slow on a CPU


@dataclass(frozen=True)
class Target:
    """What images are compared with, as far as a score needs it.

    Attributes:
        text: (K, D) float32, the text features of the classes.
        references: pictures of the classes.
        prototypes: of the classes, one a fold or one for all; None where the references are too few for a fold.
        pools: by name, see `ood_audit.classes.pools`.
        correction: (D,) its product with the text feature of a name is what a corrected cosine to that name has more,
            see `scoring.joining`; None where nothing is corrected.

    """

    text: NDArray[np.float32]
    references: References | None = None
    prototypes: Sequence[Prototypes | None] = ()
    pools: "dict[str, Pool]" = field(default_factory=dict)
    correction: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Chunk:
    """Some images beside a target; what is derived is computed once, when it is asked for.

    On a CPU all arrays are NumPy's, on a GPU torch tensors.

    By `_once`: a cached_property of Python 3.11 has one lock for all chunks, behind which those of other threads wait.
    """

    batch: FeatureBatch
    images: Array
    target: Target
    arrays: dict[str, Array]
    _known: dict[Hashable, Any] = field(default_factory=dict)

    @property
    def image_ids(self) -> list[str]:
        """(N,)."""
        ids: list[str] = self.batch.image_ids.to_pylist()
        return ids

    @property
    def paths(self) -> list[str]:
        """(N,) within the sources."""
        paths: list[str] = self.batch.paths.to_pylist()
        return paths

    @property
    def folds(self) -> Array:
        """(N,) int64."""
        return self._once("folds", lambda: beside(prototypes.fold_of(self.paths), self.images))

    @property
    def to_text(self) -> Array:
        """(N, K) cosines to the text features."""
        return self._once("to_text", lambda: self.images @ self.arrays["classes"].T)

    @property
    def to_prototypes(self) -> Array:
        """(N, K) cosines to the prototypes that have not seen the image; those to text where there are none."""
        made = self.target.prototypes
        folds = self.folds if len(made) > 1 else None
        return self._once("to_prototypes", lambda: prototypes.unseen_cosines(made, self.images, folds, self.to_text))

    @property
    def _background(self) -> Spanned:
        return Spanned(self.arrays["background"], self.arrays.get("background_directions"))

    @property
    def to_background(self) -> Array:
        """(N, B) cosines to the background vocabulary."""
        return self._once("to_background", lambda: self._background.products(self.images))

    @property
    def lead(self) -> Array:
        """(N,) cosine to the nearest name of a class, less that to the nearest name of another thing (background)."""
        return self._once("lead", lambda: namespace(self.images).max(self.to_text, axis=1) - self.nearest_thing)

    @property
    def to_text_corrected(self) -> Array:
        """(N, K) cosines to the text features with what the target corrects them by."""
        return self._once("to_text_corrected", lambda: self.to_text + self.arrays["classes_correction"])

    def similarities(self, weight: float, *, corrected: bool = False) -> Array:
        """(N, K): text and prototypes joined, with this weight of the prototypes."""
        to_text = self.to_text_corrected if corrected else self.to_text
        if not weight or not (corrected or any(self.target.prototypes)):
            return to_text
        key = "similarities", weight, corrected
        return self._once(key, lambda: prototypes.joined(to_text, self.to_prototypes, weight))

    def largest(self, weight: float, count: int, *, corrected: bool = False) -> tuple[Array, Array]:
        """The `count` largest similarities of each image and their classes, (N, count) each; fewer of fewer classes."""
        found = min(max(count, 2), len(self.target.text))  # two are always asked for
        similarities = self.similarities(weight, corrected=corrected)
        top, where = self._once(("largest", weight, found, corrected), lambda: largest(similarities, found))
        return top[:, :count], where[:, :count]

    def log_sum(self, weight: float, temperature: float) -> Array:
        """(N,) log Σ exp(s/τ) of the similarities."""
        highest = self.largest(weight, 1)[0][:, 0]
        key = "log_sum", weight, temperature
        return self._once(key, lambda: log_sum_exp(self.similarities(weight), temperature, highest))

    def outside(self, temperature: float, *, corrected: bool = False) -> Array:
        """(N,) log Σ exp(s/τ) of the cosines to the background vocabulary."""
        return self._once(("outside", temperature, corrected), lambda: self._outside(temperature, corrected))

    def _outside(self, temperature: float, corrected: bool) -> Array:
        correction = self.arrays["background_correction"] if corrected else None
        found, largest = outside.sums(self.images, self._background, temperature, correction)
        self._once("nearest thing", lambda: largest)
        return found

    @property
    def nearest_thing(self) -> Array:
        """(N,) the cosine to the nearest name of the background vocabulary."""
        return self._once("nearest thing", lambda: outside.nearest(self.images, self._background))

    def energies(self, settings: Options) -> tuple[Array, Array]:
        """ΔE and E_0, (N,) each, by these settings of ΔEnergy."""
        return self._once(("energies", *sorted(settings.items())), lambda: self._energies(**settings))

    def _energies(
        self,
        *,
        temperature: float,
        top_c: int,
        reset_to: float,
        background: bool = False,
        prototypes: float = 0.0,
        corrected: bool = False,
    ) -> tuple[Array, Array]:
        from ood_audit.scoring.scores.delta_energy import changes_of

        similarities = self.similarities(prototypes, corrected=corrected)
        found, where = self.largest(prototypes, top_c + 1, corrected=corrected)  # and that of the rest
        top = found[:, :top_c]
        with without(similarities, where[:, :top_c], top):
            rest = log_sum_exp(similarities, temperature, found[:, top_c] if found.shape[1] > top_c else None)
        if background:
            others = self.outside(temperature / (1 - prototypes), corrected=corrected)
            rest = namespace(rest).logaddexp(rest, others)
        changes, energy = changes_of(top, rest, temperature, reset_to)
        return namespace(changes).sum(changes, axis=1), energy

    def _once(self, key: Hashable, value: Callable[[], _Value]) -> _Value:
        if key not in self._known:
            self._known[key] = value()
        found: _Value = self._known[key]
        return found

    def raw(self, function: Score, settings: Options) -> Array:
        """(N,) the raw values of a score.

        Args:
            function: the score.
            settings: its options; and, for all scores, `prototypes`, their weight, and `background`, whether to use it.

        """
        if function is scores.load("delta-energy"):
            return self.energies(settings)[0]
        own = dict(settings)
        weight = own.pop("prototypes", 0.0)
        background = own.pop("background", False)
        given: dict[str, Array] = {}
        for name in scores.inputs(function):
            if name == "background":
                given[name] = (1 - weight) * self.to_background if background else None
            elif name in ("images", "folds"):
                given[name] = getattr(self, name)
            else:
                given[name] = self.arrays[name]
        return function(self.similarities(weight), **given, **own)


def chunks(store: Store, target: Target, device: str) -> Iterator[Chunk]:
    """Stream all readable images, beside `target`; memory holds one chunk.

    What is derived from a chunk on a GPU can run out of memory, which `map_chunks` handles and this does not.
    """
    where = choose_gpu(device)
    arrays = _arrays(target, where)
    for part in _parts(iter_features(store), target, where):
        yield _chunk(part, where, target, arrays)


def map_chunks(
    store: Store,
    target: Target,
    device: str,
    function: Callable[[Chunk], _Value],
    parts: list[Path] | None = None,
) -> Iterator[_Value]:
    """`function` of each chunk, in order. A CPU works on several at once, one for each core, so that none is idle.

    `parts` are those of the store to read; None for those that are in force now.

    If a GPU runs out of memory, the chunks are halved. If it has no room for a single image, the CPU goes on.
    """
    where = choose_gpu(device)
    batches: Iterator[FeatureBatch] = iter_features(store, parts=parts)
    if where is not None:
        left: list[FeatureBatch] = []
        batches = _parts(batches, target, where)
        yield from _map_on_gpu(batches, target, where, function, left)
        if not left:
            return
        warn_once(f"out of memory on {where}: it has no room for scoring; continuing on the CPU")
        batches = chain(left, batches)
    arrays = _arrays(target, None)
    yield from mapped(lambda part: function(_chunk(part, None, target, arrays)), _parts(batches, target, None))


def _map_on_gpu(
    parts: Iterator[FeatureBatch],
    target: Target,
    where: "torch.device",
    function: Callable[[Chunk], _Value],
    left: list[FeatureBatch],
) -> Iterator[_Value]:
    """What `map_chunks` gives, until there is no memory for a single image. Then `left` gets the part in hand."""
    from ood_audit.encoders.device import is_out_of_memory, release_memory

    arrays: dict[str, Array] = {}
    limit = _GPU_MOST_IMAGES
    for part in parts:
        start = 0
        while start < len(part.codes):
            some = part.slice(start, limit)
            try:
                arrays = arrays or _arrays(target, where)
                value = function(_chunk(some, where, target, arrays))
                start += len(some.codes)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                size = len(some.codes) if arrays else 1
                if size == 1:
                    left.append(part.slice(start, len(part.codes)))
            else:
                yield value
                continue
            # Outside of `except`: the error holds the frames, and they the memory.
            release_memory(where)
            if left:
                return
            limit = size // 2


def _parts(batches: Iterator[FeatureBatch], target: Target, where: "torch.device | None") -> Iterator[FeatureBatch]:
    """The images in chunks: on a CPU slices of the batches, on a GPU also several of them joined."""
    widest = max([len(target.text), *(len(pool.names) for name, pool in target.pools.items() if name == "background")])
    if where is None:
        rows = max(1, _CHUNK_BYTES // (4 * min(widest, _WIDEST)))
    else:
        rows = min(_GPU_MOST_IMAGES, max(1, _GPU_CHUNK_BYTES // (4 * widest)))
        batches = _joined(batches, rows)
    for batch in batches:
        for start in range(0, len(batch.codes), rows):
            yield batch.slice(start, rows)


def _joined(batches: Iterator[FeatureBatch], rows: int) -> Iterator[FeatureBatch]:
    """Batches of a multiple of `rows` images, except for the last, each joined from smaller ones."""
    waiting: list[FeatureBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(len(one.codes) for one in waiting) >= rows:
            joined = _concatenated(waiting)
            whole = len(joined.codes) // rows * rows
            yield joined.slice(0, whole)
            waiting = [joined.slice(whole, rows)]
    if waiting:
        yield _concatenated(waiting)


def _concatenated(batches: Sequence[FeatureBatch]) -> FeatureBatch:
    if len(batches) == 1:
        return batches[0]
    return FeatureBatch(
        pa.concat_arrays([batch.image_ids for batch in batches]),
        pa.concat_arrays([batch.paths for batch in batches]),
        pa.concat_arrays([batch.folders for batch in batches]),
        np.concatenate([batch.codes for batch in batches]),
    )


def _chunk(part: FeatureBatch, where: "torch.device | None", target: Target, arrays: dict[str, Array]) -> Chunk:
    if where is None:
        return Chunk(part, unit(part.codes), target, arrays)  # not `features`: a cached property has one lock for all
    import torch

    images = torch.tensor(part.codes, device=where).float()
    images /= images.norm(dim=1, keepdim=True)  # float16 rounding
    return Chunk(part, images, target, arrays)


def chunk_of(names: Sequence[str], features: NDArray[np.float32], target: Target) -> Chunk:
    """Some images that are not in the store, on the CPU; `names` stand for their paths."""
    own = pa.array(names, pa.string())
    part = FeatureBatch(own, own, pa.array([""] * len(names)), features)
    return Chunk(part, features, target, _arrays(target, None))


def _arrays(target: Target, where: "torch.device | None") -> dict[str, Array]:
    """What scores ask for by name, see `scores.INPUTS`: NumPy arrays, or tensors on a GPU."""
    arrays: dict[str, Array] = {"classes": target.text}
    if target.references is not None:
        arrays["references"] = target.references.features
        arrays["reference_folds"] = target.references.folds
    for name, pool in target.pools.items():
        if name == "background":
            arrays["background"] = pool.spanned.coordinates
            if pool.spanned.directions is not None:
                arrays["background_directions"] = pool.spanned.directions
        else:
            arrays |= {f"{name}_classes": pool.classes, f"{name}_negatives": pool.negatives}
    if target.correction is not None:
        arrays["classes_correction"] = target.text @ target.correction
        if "background" in target.pools:
            names = target.pools["background"].spanned
            arrays["background_correction"] = names.products(target.correction)
    if where is None:
        return arrays
    import torch

    return {name: torch.from_numpy(array).to(where) for name, array in arrays.items()}
