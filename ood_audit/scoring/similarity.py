"""What images are compared with, and the comparison: features → similarities to the classes and to other things."""

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from ood_audit.arrays import log_sum_exp, without
from ood_audit.classes import prototypes
from ood_audit.classes.prototypes import Prototypes, References
from ood_audit.encoders.cpu import worker_count
from ood_audit.encoders.device import (
    CPU,
    choose_device,
    enter_forward_thread,
    forward_threads,
    is_out_of_memory,
    release_memory,
)
from ood_audit.encoders.warn import warn_once
from ood_audit.scoring import outside, scores
from ood_audit.scoring.scores import Options, Score
from ood_audit.store import Store
from ood_audit.store.parts import FeatureBatch, iter_features

if TYPE_CHECKING:
    from ood_audit.classes.pools import Pool

_Value = TypeVar("_Value")
_CHUNK_BYTES = 4 << 20  # float32 cosines at a time, as the caches of a processor hold
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
    """Some images, on a device, beside a target; what is derived is computed once, when it is asked for.

    By `_once`: a cached_property of Python 3.11 has one lock for all chunks, behind which those of other threads wait.
    """

    batch: FeatureBatch
    images: torch.Tensor
    target: Target
    tensors: dict[str, torch.Tensor]
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
    def folds(self) -> torch.Tensor:
        """(N,) int64."""
        return self._once("folds", lambda: torch.from_numpy(prototypes.fold_of(self.paths)).to(self.images.device))

    @property
    def to_text(self) -> torch.Tensor:
        """(N, K) cosines to the text features."""
        return self._once("to_text", lambda: self.images @ self.tensors["classes"].T)

    @property
    def to_prototypes(self) -> torch.Tensor:
        """(N, K) cosines to the prototypes that have not seen the image; those to text where there are none."""
        made = self.target.prototypes
        folds = self.folds if len(made) > 1 else None
        found: torch.Tensor = self._once(
            "to_prototypes", lambda: prototypes.unseen_cosines(made, self.images, folds, self.to_text)
        )
        return found

    @property
    def to_background(self) -> torch.Tensor:
        """(N, B) cosines to the background vocabulary."""
        return self._once("to_background", lambda: self.images @ self.tensors["background"].T)

    @property
    def lead(self) -> torch.Tensor:
        """(N,) cosine to the nearest name of a class, less that to the nearest name of another thing (background)."""
        return self._once("lead", lambda: self.to_text.amax(dim=1) - self.nearest_thing)

    @property
    def to_text_corrected(self) -> torch.Tensor:
        """(N, K) cosines to the text features with what the target corrects them by."""
        return self._once("to_text_corrected", lambda: self.to_text + self.tensors["classes_correction"])

    def similarities(self, weight: float, *, corrected: bool = False) -> torch.Tensor:
        """(N, K): text and prototypes joined, with this weight of the prototypes."""
        to_text = self.to_text_corrected if corrected else self.to_text
        if not weight:
            return to_text
        key = ("similarities", weight, corrected)
        return self._once(key, lambda: torch.lerp(to_text, self.to_prototypes, weight))

    def largest(self, weight: float, count: int, *, corrected: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """The `count` largest similarities of each image and their classes, (N, count) each; fewer of fewer classes."""
        found = min(max(count, 2), len(self.target.text))  # two are always asked for
        similarities = self.similarities(weight, corrected=corrected)
        top, where = self._once(("largest", weight, found, corrected), lambda: similarities.topk(found, dim=1))
        return top[:, :count], where[:, :count]

    def log_sum(self, weight: float, temperature: float) -> torch.Tensor:
        """(N,) log Σ exp(s/τ) of the similarities."""
        key = "log_sum", weight, temperature
        found: torch.Tensor = self._once(key, lambda: log_sum_exp(self.similarities(weight), temperature))
        return found

    def outside(self, temperature: float, *, corrected: bool = False) -> torch.Tensor:
        """(N,) log Σ exp(s/τ) of the cosines to the background vocabulary."""
        return self._once(("outside", temperature, corrected), lambda: self._outside(temperature, corrected))

    def _outside(self, temperature: float, corrected: bool) -> torch.Tensor:
        correction = self.tensors["background_correction"] if corrected else None
        found, largest = outside.sums(self.images, self.tensors["background"], temperature, correction)
        self._once("nearest thing", lambda: largest)
        return found

    @property
    def nearest_thing(self) -> torch.Tensor:
        """(N,) the cosine to the nearest name of the background vocabulary."""
        return self._once("nearest thing", lambda: outside.nearest(self.images, self.tensors["background"]))

    def energies(self, settings: Options) -> tuple[torch.Tensor, torch.Tensor]:
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
    ) -> tuple[torch.Tensor, torch.Tensor]:
        from ood_audit.scoring.scores.delta_energy import changes_of

        similarities = self.similarities(prototypes, corrected=corrected)
        top, where = self.largest(prototypes, top_c, corrected=corrected)
        with without(similarities, where, top):
            rest = log_sum_exp(similarities, temperature)
        if background:
            rest = torch.logaddexp(rest, self.outside(temperature / (1 - prototypes), corrected=corrected))
        changes, energy = changes_of(top, rest, temperature, reset_to)
        return changes.sum(dim=1), energy

    def _once(self, key: Hashable, value: Callable[[], _Value]) -> _Value:
        if key not in self._known:
            self._known[key] = value()
        found: _Value = self._known[key]
        return found

    def raw(self, function: Score, settings: Options) -> torch.Tensor:
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
        given: dict[str, torch.Tensor | None] = {}
        for name in scores.inputs(function):
            if name == "background":
                given[name] = (1 - weight) * self.to_background if background else None
            elif name in ("images", "folds"):
                given[name] = getattr(self, name)
            else:
                given[name] = self.tensors[name]
        result: torch.Tensor = function(self.similarities(weight), **given, **own)
        return result


def chunks(store: Store, target: Target, device: str) -> Iterator[Chunk]:
    """Stream all readable images, beside `target`; memory holds one chunk.

    What is derived from a chunk on a GPU can run out of memory, which `map_chunks` handles and this does not.
    """
    where = choose_device(device)
    tensors = _tensors(target, where)
    with torch.inference_mode():
        for part in _parts(iter_features(store), target, where):
            yield _chunk(part, where, target, tensors)


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
    where = choose_device(device)
    batches: Iterator[FeatureBatch] = iter_features(store, parts=parts)
    if where.type != "cpu":
        left: list[FeatureBatch] = []
        batches = _parts(batches, target, where)
        yield from _map_on_gpu(batches, target, where, function, left)
        if not left:
            return
        warn_once(f"out of memory on {where}: it has no room for scoring; continuing on the CPU")
        batches = chain(left, batches)
    yield from _map_on_cpu(_parts(batches, target, CPU), target, function)


def _map_on_gpu(
    parts: Iterator[FeatureBatch],
    target: Target,
    where: torch.device,
    function: Callable[[Chunk], _Value],
    left: list[FeatureBatch],
) -> Iterator[_Value]:
    """What `map_chunks` gives, until there is no memory for a single image. Then `left` gets the part in hand."""
    tensors: dict[str, torch.Tensor] = {}
    limit = _GPU_MOST_IMAGES
    for part in parts:
        start = 0
        while start < len(part.codes):
            some = part.slice(start, limit)
            try:
                with torch.inference_mode():
                    tensors = tensors or _tensors(target, where)
                    value = function(_chunk(some, where, target, tensors))
                start += len(some.codes)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                size = len(some.codes) if tensors else 1
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


def _map_on_cpu(parts: Iterator[FeatureBatch], target: Target, function: Callable[[Chunk], _Value]) -> Iterator[_Value]:
    tensors = _tensors(target, CPU)

    def work(part: FeatureBatch) -> _Value:
        with torch.inference_mode():  # each thread has a mode of its own
            return function(_chunk(part, CPU, target, tensors))

    threads_before = torch.get_num_threads()
    passes, threads = forward_threads(CPU, worker_count())
    pool = ThreadPoolExecutor(passes, "chunk", initializer=enter_forward_thread, initargs=(CPU, threads))
    pending: deque[Future[_Value]] = deque()
    try:
        for part in parts:
            pending.append(pool.submit(work, part))
            if len(pending) > 2 * passes:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads_before)  # what a thread sets is also the default of new ones


def _parts(batches: Iterator[FeatureBatch], target: Target, where: torch.device) -> Iterator[FeatureBatch]:
    """The images in the chunks that suit a device: slices of the batches, or on a GPU also several of them joined."""
    widest = max([len(target.text), *(len(pool.names) for name, pool in target.pools.items() if name == "background")])
    if where.type == "cpu":
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


def _chunk(part: FeatureBatch, where: torch.device, target: Target, tensors: dict[str, torch.Tensor]) -> Chunk:
    images = torch.tensor(part.codes, device=where).float()
    images /= images.norm(dim=1, keepdim=True)  # float16 rounding
    return Chunk(part, images, target, tensors)


def chunk_of(names: Sequence[str], features: NDArray[np.float32], target: Target) -> Chunk:
    """Some images that are not in the store, on the CPU; `names` stand for their paths."""
    tensors = _tensors(target, CPU)
    own = pa.array(names, pa.string())
    return Chunk(
        FeatureBatch(own, own, pa.array([""] * len(names)), features), torch.from_numpy(features), target, tensors
    )


def _tensors(target: Target, where: torch.device) -> dict[str, torch.Tensor]:
    tensors = {"classes": torch.from_numpy(target.text).to(where)}
    if target.references is not None:
        tensors["references"] = torch.from_numpy(target.references.features).to(where)
        tensors["reference_folds"] = torch.from_numpy(target.references.folds).to(where)
    for name, pool in target.pools.items():
        if name == "background":
            tensors["background"] = torch.from_numpy(pool.negatives).to(where)
        else:
            tensors[f"{name}_classes"] = torch.from_numpy(pool.classes).to(where)
            tensors[f"{name}_negatives"] = torch.from_numpy(pool.negatives).to(where)
    if target.correction is not None:
        correction = torch.from_numpy(target.correction).to(where)
        for name in tensors.keys() & {"classes", "background"}:
            tensors[f"{name}_correction"] = tensors[name] @ correction
    return tensors
