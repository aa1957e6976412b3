"""How a long operation reports its progress: in stages, each of which has a name and, where it is known, an end."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn, Protocol

if TYPE_CHECKING:
    from tqdm.auto import tqdm


_WIDTH = 80  # of a terminal that does not say how wide it is


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
    drawn = Bars()
    try:
        yield drawn
    finally:
        drawn.close()


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")  # it is there where it runs this code
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "IPKernelApp" in shell.config


def _width_is_known() -> bool:
    """Whether the terminal says how wide it is. Those of some programs say 0, and tqdm would draw nothing."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError, AttributeError):
        return True  # no terminal but a notebook


class Bars:
    """A `Progress` that draws one bar at a time.

    Each has a clock of its own, so that the rate and the end it shows are those of its stage.
    """

    _COUNTED = (
        "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
    )
    _OPEN = "{desc} … [{elapsed}]"

    def __init__(self) -> None:
        self._stage: str | None = None
        self._bar: tqdm[NoReturn] | None = None

    def __call__(self, stage: str, done: int = 0, total: int | None = None, /) -> None:
        """See `Progress`."""
        bar = self._bar
        if bar is None or stage != self._stage or (bar.total is None) != (total is None):
            bar = self._begin(stage, done, total)
        bar.total = total
        bar.set_description_str(stage if total is not None or not done else f"{stage}: {done:,}", refresh=False)
        bar.update(done - bar.n)

    def show(self, figures: Mapping[str, float]) -> None:
        """Show numbers beside the bar."""
        if self._bar is not None:
            self._bar.set_postfix({name: f"{value:.3f}" for name, value in figures.items()})

    def _begin(self, stage: str, done: int, total: int | None) -> "tqdm[NoReturn]":
        from tqdm.auto import tqdm

        self.close()
        layout = self._OPEN if total is None else self._COUNTED
        self._stage = stage
        width = None if _width_is_known() else _WIDTH
        self._bar = tqdm(
            desc=stage,
            total=total,
            initial=done,  # what was done before the clock began says nothing of the rate
            bar_format=layout,
            unit="",
            ncols=width,
            dynamic_ncols=width is None,
            leave=False,
        )
        return self._bar

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
        self._stage = self._bar = None
