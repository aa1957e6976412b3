"""Files of a store: written whole or not at all, under temporary names that tell who writes them.

A temporary file is called `.WHAT.PID@HOST.tmp`. It is a leftover where the process no longer lives on this machine. The
processes of other machines cannot be seen from here, so their files are leftovers only when they have not been touched
for a day.
"""

import errno
import json
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Protocol

from ood_audit.errors import StoreError
from ood_audit.text import printable
from ood_audit.values import JsonObject

_ABANDONED_SECONDS = 24 * 3600.0
_OWNED = re.compile(r".*\.(?P<pid>\d+)@(?P<host>[^@]*?)(?:\.\w+)?\.tmp")
_WINDOWS = os.name == "nt"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class Remote(Protocol):
    """A remote store that a folder on this machine mirrors; see `remote.Mirror`."""

    url: str

    def pull(self) -> None:
        """Fetch what is new or changed."""

    def putting(self, path: Path, name: str) -> AbstractContextManager[None]:
        """Upload a file or a folder under a name, then let the caller give it that name here."""

    def remove(self, name: str) -> None:
        """Delete a file."""

    def push_removals(self, name: str) -> None:
        """Delete the files below a name that are no longer here."""

    def lock(self, name: str) -> AbstractContextManager[None]:
        """Hold a lock against writers on other machines."""


class Mirrors:
    """The mirrors that this process has opened.

    What is written to a folder that is registered here, or deleted in it, is first written or deleted remotely.
    """

    def __init__(self) -> None:
        self._by_root: dict[str, Remote] = {}

    def register(self, root: str | os.PathLike[str], mirror: Remote) -> None:
        """Have what is written below `root` uploaded by `mirror`."""
        self._by_root[os.path.abspath(root)] = mirror

    def find(self, path: str | os.PathLike[str]) -> tuple[Remote, str] | None:
        """The mirror that a path is in, and its name there; None for a path of a local store."""
        place = os.path.abspath(path) if self._by_root else ""
        for root, mirror in self._by_root.items():
            if place == root or place.startswith(root + os.sep):
                return mirror, os.path.relpath(place, root).replace(os.sep, "/").removeprefix(".")
        return None


MIRRORS = Mirrors()


def shown(root: Path) -> str:
    """What to call a store in messages: its folder, or its URI."""
    mirrored = MIRRORS.find(root)
    return printable(str(root) if mirrored is None else "/".join(filter(None, (mirrored[0].url, mirrored[1]))))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; flushed to disk and renamed to `path` on success, else removed.

    Serves files and folders. A reader sees the old one or the new one, never a part of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        yield temporary
        if temporary.is_dir():
            for file in temporary.iterdir():
                flush(file)
            with _uploaded(temporary, path):
                if path.exists():
                    old = temporary_name(path, kind=".old")
                    _rename(path, old)
                    try:
                        _rename(temporary, path)
                    except OSError:
                        _rename(old, path)
                        raise
                    shutil.rmtree(old)
                else:
                    _rename(temporary, path)
        else:
            flush(temporary)
            with _uploaded(temporary, path):
                _rename(temporary, path)
        flush(path.parent)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Delete a file of a store, if it is there: first where it is in force."""
    mirrored = MIRRORS.find(path)
    if mirrored is not None:
        mirrored[0].remove(mirrored[1])
    path.unlink(missing_ok=True)


def read_json(path: Path) -> JsonObject:
    """Read an object that `write_json` wrote; StoreError where it is damaged."""
    try:
        values = json.loads(path.read_bytes())
        if isinstance(values, dict):
            return values
    except ValueError:
        pass
    raise StoreError(f"{printable(str(path))} is damaged; delete it and run the command again")


def write_json(path: Path, values: Mapping[str, object]) -> None:
    """Write a JSON file in one piece."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def flush(path: str | os.PathLike[str]) -> None:
    """Have a file, or the names in a folder, written to disk."""
    try:
        # Windows flushes only what is open for writing, and no folders: it keeps their names safe by itself.
        handle = os.open(path, os.O_RDWR if _WINDOWS else os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def explaining_full_disks(root: Path) -> Iterator[None]:
    """Turn the error of a full or read-only disk into a StoreError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise StoreError(no_room(root, error)) from error


def full_disk(error: Exception) -> OSError | None:
    """The error of a full or read-only disk in the text of a library's own error; None where it is of another kind."""
    code = next((code for code in _NO_ROOM if os.strerror(code) in str(error)), None)
    return None if code is None else OSError(code, os.strerror(code))


def no_room(root: Path, error: OSError) -> str:
    """What to say when a store can't be written to any more."""
    reason = os.strerror(error.errno) if error.errno else str(error)  # Arrow's own text has it twice
    return (
        f"cannot write to the store {printable(str(root))}: {reason.lower()}; "
        "finished work is kept, free some space and run the same command again"
    )


def temporary_name(path: Path, *, kind: str = "") -> Path:
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


def clear_leftover(leftover: Path) -> None:
    """Remove what a killed writer left behind; a folder that it had put aside and not replaced yet is put back."""
    aside = re.fullmatch(r"\.(.+)\.\d+(?:@[^@]*)?\.old\.tmp", leftover.name)
    if aside and not (leftover.parent / aside[1]).exists():
        _rename(leftover, leftover.parent / aside[1])
    elif leftover.is_dir():
        shutil.rmtree(leftover)
    else:
        leftover.unlink()


def _rename(old: Path, new: Path) -> None:
    """Rename a file, over an existing one, or a folder."""
    for pause in (0.01, 0.03, 0.1, 0.3, 1) if _WINDOWS else ():
        with suppress(PermissionError):  # Windows renames nothing that another program is just reading
            old.replace(new)
            return
        time.sleep(pause)
    old.replace(new)


def _uploaded(temporary: Path, path: Path) -> AbstractContextManager[None]:
    """Upload what is about to be called `path`, where that is in the mirror of a remote store."""
    mirrored = MIRRORS.find(path)
    return nullcontext() if mirrored is None else mirrored[0].putting(temporary, mirrored[1])


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
