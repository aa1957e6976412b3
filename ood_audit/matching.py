"""What images are compared with, and the comparison: features → similarities to the classes and to other things."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ood_audit import prototypes, scores
from ood_audit.prototypes import Prototypes, References
from ood_audit.store import Store
from ood_audit.store.parts import iter_features

if TYPE_CHECKING:
    import torch

    from ood_audit.pools import Pool

_CHUNK_BYTES = 32 << 20  # of float32 cosines at a time, whatever the number of classes


@dataclass(frozen=True)
class Target:
    """What images are compared with, as far as a score needs it.

    Attributes:
        text: (K, D) float32, the text features of the classes.
        references: pictures of the classes.
        prototypes: of the classes, one a fold or one for all; None where the references are too few for a fold.
        pools: by name, see `ood_audit.pools`.

    """

    text: NDArray[np.float32]
    references: References | None = None
    prototypes: Sequence[Prototypes | None] = ()
    pools: "dict[str, Pool]" = field(default_factory=dict)


@dataclass(frozen=True)
class Chunk:
    """Some images, on a device, beside a target; what is derived is computed once, when it is asked for."""

    image_ids: Sequence[str]
    paths: Sequence[str]
    folders: Sequence[str]
    images: "torch.Tensor"
    target: Target
    tensors: "dict[str, torch.Tensor]"

    @cached_property
    def folds(self) -> "torch.Tensor":
        """(N,) int64."""
        import torch

        return torch.from_numpy(prototypes.fold_of(self.paths)).to(self.images.device)

    @cached_property
    def to_text(self) -> "torch.Tensor":
        """(N, K) cosines to the text features."""
        return self.images @ self.tensors["classes"].T

    @cached_property
    def to_prototypes(self) -> "torch.Tensor":
        """(N, K) cosines to the prototypes that have not seen the image; those to text where there are none."""
        found = self.to_text.clone()
        several = len(self.target.prototypes) > 1
        for fold, those in enumerate(self.target.prototypes):
            rows = (self.folds == fold) if several else slice(None)
            if those is not None:
                found[rows] = those.cosines(self.images[rows], self.to_text[rows])
        return found

    @cached_property
    def to_background(self) -> "torch.Tensor":
        """(N, B) cosines to the background vocabulary."""
        return self.images @ self.tensors["background"].T

    @cached_property
    def lead(self) -> "torch.Tensor":
        """(N,) cosine to the nearest name of a class, less that to the nearest name of another thing (background)."""
        return self.to_text.amax(dim=1) - self.to_background.amax(dim=1)

    def similarities(self, weight: float) -> "torch.Tensor":
        """(N, K): text and prototypes joined, with this weight of the prototypes."""
        return (1 - weight) * self.to_text + weight * self.to_prototypes if weight else self.to_text

    def raw(self, function: Callable[..., Any], settings: dict[str, Any]) -> "torch.Tensor":
        """(N,) the raw values of a score.

        Args:
            function: the score.
            settings: its options; and, for all scores, `prototypes`, their weight, and `background`, whether to use it.

        """
        own = dict(settings)
        weight = own.pop("prototypes", 0.0)
        background = own.pop("background", False)
        given: dict[str, Any] = {}
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
    """Stream all readable images, beside `target`; memory holds one chunk."""
    import torch

    from ood_audit.encoders.device import choose_device

    where = choose_device(device)
    tensors = _tensors(target, where)
    widest = max([len(target.text), *(len(pool.names) for name, pool in target.pools.items() if name == "background")])
    rows = max(1, _CHUNK_BYTES // (4 * widest))
    with torch.inference_mode():
        for batch in iter_features(store):
            for start in range(0, len(batch.features), rows):
                part = slice(start, start + rows)
                images = torch.from_numpy(batch.features[part]).to(where)
                ids, paths, folders = (c[part].to_pylist() for c in (batch.image_ids, batch.paths, batch.folders))
                yield Chunk(ids, paths, folders, images, target, tensors)


def chunk_of(names: Sequence[str], features: NDArray[np.float32], target: Target) -> Chunk:
    """Some images that are not in the store, on the CPU; `names` stand for their paths."""
    import torch

    tensors = _tensors(target, torch.device("cpu"))
    return Chunk(names, names, [""] * len(names), torch.from_numpy(features), target, tensors)


def _tensors(target: Target, where: "torch.device") -> "dict[str, torch.Tensor]":
    import torch

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
    return tensors
