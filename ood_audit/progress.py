"""How a long operation reports its progress: in stages, each of which has a name and, where it is known, an end."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn, Protocol

if TYPE_CHECKING:
    from tqdm.auto import tqdm


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


@contextmanager
def bars() -> Iterator[Progress]:
    """Draw a progress bar for each stage, in a notebook or on stderr where that is a terminal; elsewhere none."""
    if not (sys.stderr.isatty() or _in_notebook()):
        yield silent
        return
    drawn = _Bars()
    try:
        yield drawn
    finally:
        drawn.close()


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")  # it is there where it runs this code
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "IPKernelApp" in shell.config


class _Bars:
    """One bar at a time. Each has a clock of its own, so that the rate and the end it shows are those of its stage."""

    _COUNTED = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]"
    _OPEN = "{desc} … [{elapsed}]"

    def __init__(self) -> None:
        self._stage: str | None = None
        self._bar: tqdm[NoReturn] | None = None

    def __call__(self, stage: str, done: int = 0, total: int | None = None, /) -> None:
        bar = self._bar
        if bar is None or stage != self._stage or (bar.total is None) != (total is None):
            bar = self._begin(stage, total)
        bar.total = total
        bar.set_description_str(stage if total is not None or not done else f"{stage}: {done:,}", refresh=False)
        bar.update(done - bar.n)

    def _begin(self, stage: str, total: int | None) -> "tqdm[NoReturn]":
        from tqdm.auto import tqdm

        self.close()
        layout = self._OPEN if total is None else self._COUNTED
        self._stage = stage
        self._bar = tqdm(desc=stage, total=total, bar_format=layout, unit="", dynamic_ncols=True, leave=False)
        return self._bar

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._stage = self._bar = None
