"""How a long operation reports its progress: in stages, each of which has a name and, where it is known, an end."""

from collections.abc import Callable
from typing import Protocol


class Progress(Protocol):
    """A callback that is told how far an operation has come.

    It is called at the beginning of each stage and then as often as there is something new, always with the name of
    the stage. A stage ends when the next one begins or the operation returns.

    Example:
        >>> def show(stage: str, done: int = 0, total: int | None = None) -> None:
        ...     print(stage if total is None else f"{stage}: {done} of {total}")
        >>> show("scoring", 10, 81)
        scoring: 10 of 81

    """

    def __call__(self, stage: str, done: int = 0, total: int | None = None, /) -> None:
        """Take note of the progress.

        Args:
            stage: what is being done, such as "encoding names".
            done: how much of it is done.
            total: how much there is to do; None where that is not known.

        """


def silent(stage: str, done: int = 0, total: int | None = None, /) -> None:
    """Ignore all progress: the default of every function that takes a `Progress`."""


def counting(progress: Progress, stage: str) -> Callable[[int, int], None]:
    """A callback of done and total alone, for the parts of one stage."""
    return lambda done, total: progress(stage, done, total)
