"""Warnings about the machine, such as that a GPU cannot be used. This module needs no torch."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

_log = logging.getLogger(__name__)
_listeners: list[Callable[[str], None]] = []


def warn_once(message: str) -> None:
    """Log a warning, once per process, which the command line shows. `warnings_to` gives it to a listener instead."""
    if _listeners:
        _listeners[-1](message)
    else:
        log_once(message)


@lru_cache(maxsize=256)
def log_once(message: str) -> None:
    """Log a warning, once per process."""
    _log.warning(message)


@contextmanager
def warnings_to(listener: Callable[[str], None]) -> Iterator[None]:
    """Give `listener` the warnings of all threads of this process, which are then not logged."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
