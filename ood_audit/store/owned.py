"""Temporary files that name the process that writes them, so that what a killed process left behind can be told apart.

A file is called `.WHAT.PID@HOST.tmp`. It is a leftover where the process no longer lives on this machine. The processes
of other machines cannot be seen from here, so their files are leftovers only when they have not been touched for a day.
"""

import os
import re
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_ABANDONED_SECONDS = 24 * 3600.0
_OWNED = re.compile(r".*\.(?P<pid>\d+)@(?P<host>[^@]*?)(?:\.old)?\.tmp")
_READER = "reader"


def temporary(path: Path, *, kind: str = "") -> Path:
    """The name beside `path` under which this process writes it; `kind` tells two such files apart."""
    return path.with_name(f".{path.name}.{os.getpid()}@{_host()}{kind}.tmp")


def is_leftover(path: Path) -> bool:
    """Whether the process that wrote this temporary file is gone; also for files named by older versions."""
    match = _OWNED.fullmatch(path.name)
    if match is None:
        return True
    if match["host"] == _host() and sys.platform != "win32":
        return not _lives(int(match["pid"]))
    with suppress(FileNotFoundError):
        return time.time() - path.stat().st_mtime > _ABANDONED_SECONDS
    return False


def delete(path: Path) -> None:
    """Delete a file, or a folder with all that is in it, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def reading(root: Path) -> Iterator[None]:
    """Let `compact` know that the parts of the store at `root` are being read, so that it deletes none of them.

    Unlike a lock it keeps no one else from reading or writing. A store on a read-only disk can be read as well: nothing
    on this machine can delete its parts.
    """
    marker = temporary(root / f"{_READER}-{secrets.token_hex(4)}")
    try:
        with suppress(OSError):
            marker.touch()
        yield
    finally:
        with suppress(OSError):
            marker.unlink(missing_ok=True)


def has_readers(root: Path) -> bool:
    """Whether a live process is inside of `reading`; deletes the markers of those that were killed."""
    live = False
    for marker in root.glob(f".{_READER}-*.tmp"):
        if is_leftover(marker):
            delete(marker)
        else:
            live = True
    return live


def _host() -> str:
    return re.sub(r"[^\w.-]", "-", socket.gethostname())


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
