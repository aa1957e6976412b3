"""What every engine is handed, and what becomes of it in the store."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ood_audit.images.decode import Decoded
from ood_audit.images.sources import ImageRef
from ood_audit.store.parts import PartWriter


@dataclass(frozen=True, slots=True)
class Work:
    """An image to embed: new, changed, or unreadable so far (with the `known_error` in the store)."""

    image: ImageRef
    is_new: bool
    known_error: str | None = None


# Batches with the facts of their images, and the (N, D) features of those without an error.
Results: TypeAlias = "Iterator[tuple[list[Work], list[Decoded], NDArray[np.float32] | None]]"
Outcome: TypeAlias = "tuple[str, ImageRef, str | None]"


class Engine(Protocol):
    """Where images are read and embedded: the modules `local` and `ray`."""

    def embed_images(
        self,
        work: Iterable[Work],
        encoder: Any,
        writer: PartWriter,
        *,
        batch_size: int | None = None,
        on_note: Callable[[str], None] = ...,
    ) -> Iterator[Outcome]:
        """Decode and embed images, and write their rows.

        Args:
            work: The images.
            encoder: An encoder of this engine, see its `load_encoder`.
            writer: It is written to by this process alone.
            batch_size: Images in a forward pass; None for what suits the device.
            on_note: Called with a sentence where something went otherwise than planned.

        """


def write_batch(
    writer: PartWriter, batch: Sequence[Work], decoded: Sequence[Decoded], features: NDArray[np.float32] | None
) -> Iterator[Outcome]:
    """Write the rows of some images.

    The row of an image that the store knows to be unreadable, for the same reason, is there already.

    Args:
        writer: of the store.
        batch: the images.
        decoded: the facts of each, with its error if it has one.
        features: (N, D) of those without an error, in order; None where there is none. An image whose features are
            not finite gets a row with that error.

    Yields:
        For each its outcome (`added`, `changed` or `unreadable`), the image, and its error.

    """
    rows = iter(() if features is None else features)
    for item, facts in zip(batch, decoded, strict=True):
        row = next(rows) if facts.error is None else None
        if row is not None and not (np.isfinite(row).all() and row.any()):
            facts = replace(facts, error=_not_finite(writer.store.encoder.precision))
        if facts.error is None:
            writer.add(item.image, facts, row, supersedes=not item.is_new)
            yield "added" if item.is_new else "changed", item.image, None
        else:
            if facts.error != item.known_error:
                writer.add(item.image, facts, None, supersedes=not item.is_new)
            yield "unreadable", item.image, facts.error


def _not_finite(precision: str) -> str:
    remedy = "embed into a new store with --precision fp32" if precision != "fp32" else "choose another model"
    return f"features are not finite in {precision}; {remedy}"
