"""What reading an image gives: its bytes, or an error that says why there are none."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of an image, with the size and time that stand for their state.

    `mtime_ns` is the time of the file; for a member, of its archive; over HTTP, see `http`.
    """

    data: bytes
    size_bytes: int
    mtime_ns: int


class UnreadableError(OSError):
    """There is nothing to read, and `strerror` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(0, reason)
