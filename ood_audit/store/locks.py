"""Who may write to a store, and who is reading it."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from ood_audit.errors import StoreError
from ood_audit.store.files import (
    MIRRORS,
    clear_leftover,
    delete,
    explaining_full_disks,
    is_leftover,
    shown,
    temporary_name,
    write_json,
)

COMMIT_SECONDS = 20.0  # how long a finished score run or report waits for another one to take its name
_WRITES = {  # the temporary files of each kind of writer
    "images": (
        "images/.*",
        "index/.*",
        "runs/.*",
        ".totals.json.*",
        "texts/.*",
        ".import*",
        ".store.json.*",
        ".images.writer.json.*",
    ),
    "scores": (
        "vocabularies/.*",
        "prompts/.*",
        "verdicts/.*",
        "scores/.*",
        "reports/.*",
        ".current.json.*",
        ".score_defaults.json.*",
        ".duplicates.parquet.*",
        ".comparison.html.*",
        ".spill*",
        ".scores.writer.json.*",
        ".reader-*",
    ),
}
_READER = "reader"


@contextmanager
def writing(root: Path, what: Literal["images", "scores"], *, wait: float = 0.0) -> Iterator[None]:
    """Hold a lock of the store at `root` against a second writer; clears what a killed writer left behind.

    Images (with their index and runs) have one writer at a time, and so have scores (with vocabularies and reports):
    a report can be made while a long `embed` runs. `embed` holds its lock while it runs. Scores and reports are
    computed without one, into temporary files, and the lock is held for the moment in which these take their names.

    The system releases the lock when its process dies, however it dies, so no lock is ever stale.

    Args:
        root: the store's folder.
        what: which of the two locks.
        wait: how many seconds to wait for another writer before giving up.

    Raises:
        StoreError: another process is writing, or `root` can't be written to or is some other folder.

    """
    from filelock import FileLock, Timeout

    where = shown(root)
    owner, lock = root / f"{what}.writer.json", FileLock(root / f"{what}.lock")
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not any((root / name).exists() for name in ("images.lock", "store.json")) and any(root.iterdir()):
            raise StoreError(f"{where} is a folder with other things in it; name a new one with `store=DIR`")
        lock.acquire(timeout=wait)
    except Timeout:
        raise StoreError(
            f"{_owner(owner)} is writing to {where}; wait for it to finish, or use another `store`"
        ) from None
    except OSError as error:
        raise StoreError(f"cannot write to the store {where}: {error.strerror or error}") from error
    except NotImplementedError as error:
        raise StoreError(
            f"the file system of {where} has no locks; put the store on another with `store=DIR`"
        ) from error
    try:
        with _remote_lock(root, what), explaining_full_disks(root):
            write_json(owner, {"pid": os.getpid(), "host": socket.gethostname()})
            for pattern in _WRITES[what]:
                for leftover in filter(is_leftover, root.glob(f"{pattern}.tmp")):
                    clear_leftover(leftover)
            yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


@contextmanager
def computing(root: Path) -> Iterator[None]:
    """Hold nothing but a marker while scores or a report are computed; see `writing` and `reading`."""
    with reading(root), explaining_full_disks(root):
        yield


@contextmanager
def reading(root: Path) -> Iterator[None]:
    """Let `compact` know that the parts of the store at `root` are being read, so that it deletes none of them.

    Unlike a lock it keeps no one else from reading or writing. A store on a read-only disk can be read as well: nothing
    on this machine can delete its parts.
    """
    marker = temporary_name(root / f"{_READER}-{os.urandom(4).hex()}")
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


@contextmanager
def _remote_lock(root: Path, what: str) -> Iterator[None]:
    """Where the store is a mirror: hold the lock of the remote one, in step with it; at the end deletions follow."""
    mirrored = MIRRORS.find(root)
    if mirrored is None:
        yield
        return
    mirror, name = mirrored
    with mirror.lock(f"{name}/locks/{what}".lstrip("/")):
        mirror.pull()
        yield
        for folder in dict.fromkeys(pattern.partition("/")[0] for pattern in _WRITES[what] if "/" in pattern):
            mirror.push_removals(f"{name}/{folder}".lstrip("/"))


def _owner(path: Path) -> str:
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        return f"another ood-audit (process {owner['pid']} on {owner['host']})"
    except (OSError, ValueError, KeyError):
        return "another ood-audit"
