"""What C libraries below Pillow write to stderr by themselves.

libtiff prints a line or more for each damaged file that it reads, which `decode` reports as the file's error.
Pillow has no way to silence it, but libtiff itself has one, wherever it is a shared library.
"""

import ctypes
import faulthandler
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache

_SETTERS = ("TIFFSetErrorHandler", "TIFFSetWarningHandler")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep them quiet for the command line, and in worker processes; a caller of the Python API decides for itself."""
    logger, handler = logging.getLogger("PIL"), logging.NullHandler()
    logger.addHandler(handler)  # else Python prints Pillow's own warnings for want of a handler
    library = libtiff()
    try:
        if library is None:
            with _away_from_stderr():
                yield
            return
        before = [(setter, getattr(library, setter)(None)) for setter in _SETTERS]
        try:
            yield
        finally:
            for setter, value in before:
                getattr(library, setter)(value)
    finally:
        logger.removeHandler(handler)


@lru_cache(maxsize=1)
def libtiff() -> ctypes.CDLL | None:
    """The libtiff that Pillow uses; None where it is linked into Pillow itself, as on Windows."""
    from PIL import _imaging

    try:
        library = ctypes.CDLL(_imaging.__file__)  # which is loaded already, and finds what it depends on
        for setter in _SETTERS:
            function = getattr(library, setter)
            function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_void_p
        library.TIFFIsCODECConfigured.argtypes = [ctypes.c_uint16]
    except (OSError, AttributeError):
        return None
    return library


@contextmanager
def _away_from_stderr() -> Iterator[None]:
    """Point the file descriptor 2, where C libraries write, to nothing; Python's own stderr stays what it is."""
    try:
        is_real = sys.stderr.fileno() == 2
        real = os.dup(2)
    except (AttributeError, OSError, ValueError):  # closed, or replaced: nothing would be seen
        yield
        return
    before = sys.stderr
    before.flush()
    traced = faulthandler.is_enabled()
    null = os.open(os.devnull, os.O_WRONLY)
    with open(real, "w", encoding=before.encoding, errors=before.errors, buffering=1) as ours:
        if is_real:
            sys.stderr = ours
        if traced:
            faulthandler.enable(ours)
        os.dup2(null, 2)
        try:
            yield
        finally:
            ours.flush()
            with suppress(OSError):
                os.dup2(real, 2)
            os.close(null)
            if is_real and sys.stderr is ours:
                sys.stderr = before
            if traced:
                faulthandler.enable(before)
