"""Moving one file: never over another one, and never lost, whatever stops it and wherever.

A move is a hard link of the new name and then the removal of the old one, as a link, unlike a rename, fails where the
new name is taken. Between file systems it is a copy under a temporary name, which is linked that way once it is on disk
and has been read back. `settle` ends a move that was stopped.
"""

import errno
import os
import shutil
import stat
from contextlib import suppress
from hashlib import blake2b
from typing import Literal

from ood_audit.store.files import flush

_WINDOWS = os.name == "nt"
_CHUNK = 1 << 20
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def content_hash(path: str) -> str:
    """128 bits of BLAKE2b of a file's bytes, in hexadecimal, as in the store."""
    digest = blake2b(digest_size=16)
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def move(source: str, target: str, temporary: str) -> None:
    """Move a file, or a symbolic link as such, and have it on disk.

    Args:
        source: what to move.
        target: where to; its folders are made.
        temporary: a name beside `target` that is this move's own, for a copy.

    Raises:
        FileExistsError: something has the name `target`.
        OSError: whatever else is wrong. The source is then where it was, and nothing is at `target`.

    """
    _make_folders(os.path.dirname(target))
    try:
        _rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        info = os.lstat(source)
        _copy(source, target, temporary)
        _remove(source, info, target)
    with suppress(OSError):  # the removal will be on disk some time; till then both names are the file
        flush(os.path.dirname(source))


def settle(source: str, target: str, temporary: str, *, dry_run: bool = False) -> Literal["source", "target"] | None:
    """End a move that was stopped somewhere: on, if `target` was reached, else back.

    Returns:
        where the file is now (in a dry run: would be); None if it is in neither place.

    """
    here, there = os.path.lexists(source), os.path.lexists(target)
    if (here or there) and not dry_run:
        with suppress(FileNotFoundError):
            _unlink(temporary)
    if there and (not here or _same(source, target)):
        if here and not dry_run:
            _unlink(source)
        return "target"
    return "source" if here else None


def _rename(source: str, target: str) -> None:
    """Rename within a file system, but not over an existing file."""
    if _WINDOWS:  # where a rename never replaces a file, and a file that is read-only has no second name to remove
        os.rename(source, target)
        return
    info = os.lstat(source)
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        # No hard links here (exFAT, some network drives). Between these two lines another program could make a file
        # of that name; there is no portable call without that gap.
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from None
        os.rename(source, target)
    else:
        _remove(source, info, target)


def _remove(source: str, info: os.stat_result, target: str) -> None:
    """Remove the old name, once the new one is on disk. Where that can't be, the new one is removed instead."""
    try:
        flush(os.path.dirname(target))
        if _state(os.lstat(source)) != _state(info):
            raise OSError(errno.EBUSY, "it changed while it was moved", source)
        _unlink(source)
    except FileNotFoundError:  # somebody else has removed it: ours may be the last one
        pass
    except OSError:
        _unlink(target)
        raise


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except PermissionError:
        if not _WINDOWS:
            raise
        os.chmod(path, stat.S_IWRITE)  # Windows removes no file that is read-only
        os.unlink(path)


def _state(info: os.stat_result) -> tuple[int, int, int, int]:
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns


def _copy(source: str, target: str, temporary: str) -> None:
    if os.path.islink(source):
        os.symlink(os.readlink(source), target)
        return
    digest = blake2b(digest_size=16)
    try:
        with open(source, "rb") as reading, open(temporary, "xb") as writing:
            info = os.fstat(reading.fileno())
            while chunk := reading.read(_CHUNK):
                digest.update(chunk)
                writing.write(chunk)
            writing.flush()
            with suppress(OSError, AttributeError):  # only root gives files away, and nobody on Windows
                os.fchown(writing.fileno(), info.st_uid, info.st_gid)
            with suppress(PermissionError):  # the other file system may have no such modes
                shutil.copystat(source, temporary)
            os.fsync(writing.fileno())
        if content_hash(temporary) != digest.hexdigest():
            raise OSError(errno.EIO, "the copy differs from it", source)
        _rename(temporary, target)
    except OSError:
        with suppress(FileNotFoundError):
            _unlink(temporary)
        raise


def _make_folders(folder: str) -> None:
    missing = []
    while not os.path.isdir(folder) and folder != os.path.dirname(folder):  # a drive may be missing, too
        missing.append(folder)
        folder = os.path.dirname(folder)
    for new in reversed(missing):
        with suppress(FileExistsError):  # by another program; if it is no folder, the link says so
            os.mkdir(new)
        flush(os.path.dirname(new))


def _same(first: str, second: str) -> bool:
    """Two names of one file, or equal contents."""
    one, other = os.lstat(first), os.lstat(second)
    if os.path.samestat(one, other):
        return True
    if stat.S_ISLNK(one.st_mode) and stat.S_ISLNK(other.st_mode):
        return os.readlink(first) == os.readlink(second)
    if not (stat.S_ISREG(one.st_mode) and stat.S_ISREG(other.st_mode)) or one.st_size != other.st_size:
        return False
    return content_hash(first) == content_hash(second)
