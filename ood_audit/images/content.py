"""What reading an image gives: its bytes, or an error that says why there are none."""

from dataclasses import dataclass
from hashlib import blake2b

from ood_audit.images.uri import Box


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of an image, with the size and time that stand for their state.

    `mtime_ns` is the time of the file; for a member, of its archive; over HTTP, see `http`.
    """

    data: bytes
    size_bytes: int
    mtime_ns: int


def content_hash(data: bytes) -> str:
    """128 bits of BLAKE2b of the bytes of an image, in hexadecimal."""
    return blake2b(data, digest_size=16).hexdigest()


def box_hash(image_hash: str, box: Box) -> str:
    """The same for a box: of the hash of its image, and of its place there."""
    place = (box.x, box.y, box.width, box.height)
    return content_hash(f"{image_hash}{place!r}".encode())


class UnreadableError(OSError):
    """There is nothing to read, and `strerror` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(0, reason)
