"""What every engine is handed, and what becomes of it in the store."""

from dataclasses import dataclass

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


def write_row(
    writer: PartWriter, item: Work, decoded: Decoded, features: NDArray[np.float32] | None
) -> tuple[str, ImageRef, str | None]:
    """Write the row of an image, with its features (D,) or the error in `decoded`.

    The row of an image that the store knows to be unreadable, for the same reason, is there already.

    Returns:
        Its outcome (`added`, `changed` or `unreadable`), the image, and its error.

    """
    if decoded.error is None:
        writer.add(item.image, decoded, features, supersedes=not item.is_new)
        return "added" if item.is_new else "changed", item.image, None
    if decoded.error != item.known_error:
        writer.add(item.image, decoded, None, supersedes=not item.is_new)
    return "unreadable", item.image, decoded.error
