"""A store in an object store: `--store s3://bucket/audit`.

The remote folder is the truth, and looks like a local store. A mirror of it in the user's cache serves all readers:
opening a store brings the mirror into step. A writer uploads each file just before the file takes its name in the
mirror, so the mirror is never ahead, and a kill at any moment costs no more than in a local store.

A second writer, on whatever machine, is refused: a writer puts a token into `locks/`, and then looks whether another
token is there. As listings show every object that was put before, of two that begin at once one at least sees the
other.
A token is put anew every minute; one that is ten minutes older than a new one, by the clock of the object store, is of
a writer that has died.
"""

import hashlib
import json
import os
import posixpath
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from ood_audit.errors import StoreError, UsageError
from ood_audit.store.cache import user_cache
from ood_audit.store.files import MIRRORS
from ood_audit.text import printable
from ood_audit.values import JsonObject

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

REFRESH_SECONDS = 60.0
STALE_SECONDS = 600.0
_THREADS = 16
_UNSETTLED_SECONDS = 900.0  # a small file may be written twice within a second, and clocks differ
_SMALL = 1 << 20


def attach(url: str) -> Path:
    """The folder that mirrors a remote store, brought into step with it.

    Raises:
        UsageError: no store can be there.
        StoreError: it can't be reached.

    """
    from ood_audit.images import object_store

    if url.lower().startswith(("http://", "https://")):
        raise UsageError("a store can't be written over HTTP; name a folder, or s3://, gs:// or hdfs://")
    url = object_store.canonical(url)
    root = Path(user_cache(), "stores", hashlib.sha256(url.encode()).hexdigest()[:24])
    if (opened := MIRRORS.find(root)) is not None:
        opened[0].pull()
        return root
    try:
        filesystem, base = object_store.open_place(url)
    except OSError as error:
        raise StoreError(f"cannot reach the store {printable(url)}: {error.strerror}") from error
    mirror = Mirror(url, root, filesystem, base)
    mirror.pull()
    MIRRORS.register(root, mirror)
    return root


class Mirror:
    """The copy of a remote store on this machine."""

    def __init__(self, url: str, root: Path, filesystem: "FileSystem", base: str) -> None:
        self.url = url
        self.root = root
        self._filesystem = filesystem
        self._base = base
        self._uploads = ThreadPoolExecutor(1, thread_name_prefix="upload")  # so that no Ctrl-C cuts one off
        self._locks: list[_Lock] = []
        root.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Processes of this machine that share the mirror change it in turn."""
        from filelock import FileLock

        with FileLock(self._beside(".lock")):
            yield

    def pull(self) -> None:
        """Fetch what is new or changed, and drop what is gone."""
        with self._alone():
            there = self._listed("")
            if there and "store.json" not in there:
                raise StoreError(
                    f"{printable(self.url)} is a folder with other things in it; name a new one with `store`, or "
                    "restore store.json"
                )
            notes = self._notes()
            now = time.time()
            wanted = [name for name, facts in there.items() if not self._has(name, facts, notes)]
            try:
                with ThreadPoolExecutor(_THREADS, thread_name_prefix="pull") as pool:
                    list(pool.map(self._fetch, wanted))
            except OSError as error:
                raise self._failed(error) from error
            for path in sorted(self.root.rglob("*"), reverse=True):
                name = path.relative_to(self.root).as_posix()
                if _is_own(name) or name in there:
                    continue
                if path.is_dir():
                    with suppress(OSError):  # it is not empty
                        path.rmdir()
                else:
                    path.unlink(missing_ok=True)
            self._note({name: [*facts, now] for name, facts in there.items()})

    def _has(self, name: str, facts: tuple[int, int], notes: dict[str, list[float]]) -> bool:
        path = self.root / name
        if not path.is_file() or path.stat().st_size != facts[0]:
            return False
        if _is_part(name):  # never written twice
            return True
        size, mtime_ns, looked = notes.get(name, [0, 0, 0])
        # As with Git: what changed just before it was looked at may have changed again within the same second.
        settled = size > _SMALL or looked - mtime_ns / 1e9 > _UNSETTLED_SECONDS
        return settled and (size, mtime_ns) == facts

    @contextmanager
    def putting(self, path: Path, name: str) -> Iterator[None]:
        """Upload a file or a folder under a name, then let the caller give it that name here.

        Of a folder, files that the new one has no more are removed.

        Raises:
            StoreError: that failed, or this writer's lock has been taken from it.

        """
        if _is_own(name):
            yield
            return
        for lock in self._locks:
            lock.check()
        with self._alone():
            self._put_all(path, name)
            yield

    def _put_all(self, path: Path, name: str) -> None:
        if path.is_dir():
            files = {
                f"{name}/{file.relative_to(path).as_posix()}": file
                for file in sorted(path.rglob("*"))
                if file.is_file()
            }
            for inner, file in files.items():
                self._put(file, inner)
            for old in self._listed(name).keys() - files.keys():
                self.remove(old)
        else:
            self._put(path, name)

    def _put(self, path: Path, name: str) -> None:
        try:
            self._uploads.submit(self._upload, path, name).result()
            if not _is_part(name):
                info = self._filesystem.get_file_info(self._path(name))
                self._note({**self._notes(), name: [info.size, _seconds(info), time.time()]})
        except OSError as error:
            raise self._failed(error) from error

    def _upload(self, path: Path, name: str) -> None:
        import pyarrow as pa

        with pa.OSFile(str(path)) as file:
            content = file.read_buffer()
        with self._filesystem.open_output_stream(self._path(name)) as out:
            out.write(content)  # in one piece: a stream that is closed early would leave half an object

    def remove(self, name: str) -> None:
        """Delete a file."""
        try:
            self._filesystem.delete_file(self._path(name))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise self._failed(error) from error

    def push_removals(self, name: str) -> None:
        """Delete what is below a name there, and here no more."""
        for old in self._listed(name):
            if not (self.root / old).exists():
                self.remove(old)

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold a lock against writers on other machines. The caller holds the one against those on this machine.

        Raises:
            StoreError: another one is writing.

        """
        lock = _Lock(self, name)
        try:
            lock.acquire()
        except OSError as error:
            raise self._failed(error) from error
        self._locks.append(lock)
        try:
            yield
        finally:
            self._locks.remove(lock)
            lock.release()

    def identity(self) -> str:
        """A name of this mirror, by which a writer that died here is known."""
        path = self._beside(".id")
        if not path.exists():
            path.write_text(secrets.token_hex(8), encoding="utf-8")
        return path.read_text(encoding="utf-8")

    def _listed(self, below: str) -> dict[str, tuple[int, int]]:
        """The files below a name: size and time (ns) by name."""
        from pyarrow import fs

        try:
            selector = fs.FileSelector(self._path(below), recursive=True, allow_not_found=True)
            found = self._filesystem.get_file_info(selector)
        except OSError as error:
            raise self._failed(error) from error
        names = {info.path[len(self._base) :].strip("/"): info for info in found if info.type == fs.FileType.File}
        return {
            name: (info.size, _seconds(info))
            for name, info in names.items()
            if not _is_own(name) or name.startswith(below or " ")
        }

    def _fetch(self, name: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.pull.tmp")
        try:
            with self._filesystem.open_input_stream(self._path(name)) as source, temporary.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            temporary.replace(path)
        except FileNotFoundError:  # deleted since it was listed
            path.unlink(missing_ok=True)
        finally:
            temporary.unlink(missing_ok=True)

    def _path(self, name: str) -> str:
        return f"{self._base.rstrip('/')}/{name}" if name else self._base

    def _notes(self) -> dict[str, list[float]]:
        try:
            return dict(json.loads(self._beside(".json").read_bytes()))
        except (OSError, ValueError):
            return {}

    def _note(self, notes: dict[str, list[float]]) -> None:
        temporary = self._beside(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(notes), encoding="utf-8")
        temporary.replace(self._beside(".json"))

    def _beside(self, suffix: str) -> Path:
        return self.root.with_name(self.root.name + suffix)

    def _failed(self, error: OSError) -> StoreError:
        from ood_audit.images.object_store import reason

        return StoreError(
            f"the store {printable(unquote(self.url))}: {reason(error)}; what was done before is kept, "
            "run the same command again"
        )


class _Lock:
    """One writer's token in `locks/` of a remote store."""

    def __init__(self, mirror: Mirror, name: str) -> None:
        self._mirror = mirror
        self._folder = name
        self._name = f"{name}/{secrets.token_hex(8)}.json"
        self._done = threading.Event()
        self._lost = False
        self._confirmed = (0.0, 0.0)
        self._since = datetime.now(timezone.utc).isoformat(timespec="seconds")

    def acquire(self) -> None:
        self._write()
        try:
            there = self._mirror._listed(self._folder)
            mine = there.get(self._name, (0, time.time_ns()))[1]
            for other in there.keys() - {self._name}:
                owner = self._owner(other)
                # A writer that used this very mirror has died: its lock on this machine, which we hold, was free.
                if (mine - there[other][1]) / 1e9 > STALE_SECONDS or owner.get("mirror") == self._mirror.identity():
                    self._mirror.remove(other)
                    continue
                who = "another ood-audit"
                if owner:
                    who += f" (process {owner.get('pid')} on {owner.get('host')}, since {owner.get('since')})"
                raise StoreError(
                    f"{who} is writing to {printable(self._mirror.url)}; wait for it, or use another `store` "
                    f"(a lock whose writer has died ends after {STALE_SECONDS / 60:.0f} minutes)"
                )
        except BaseException:
            self._mirror.remove(self._name)
            raise
        threading.Thread(target=self._refresh, daemon=True, name="lock").start()

    def check(self) -> None:
        """Raise StoreError where somebody else may have taken this writer for dead."""
        if self._lost or self._is_old():
            raise StoreError(
                f"the lock of {printable(self._mirror.url)} could not be kept up; what was done before is kept, "
                "run the same command again"
            )

    def _is_old(self) -> bool:
        # By both clocks: one stands still while a machine sleeps, the other can be set.
        ago = (now - then for now, then in zip(_clocks(), self._confirmed, strict=True))
        return max(ago) > STALE_SECONDS / 2

    def release(self) -> None:
        self._done.set()
        with suppress(StoreError):  # it ends by itself
            self._mirror.remove(self._name)

    def _write(self) -> None:
        now = _clocks()
        values = {"pid": os.getpid(), "host": socket.gethostname(), "since": self._since}
        content = json.dumps({**values, "mirror": self._mirror.identity()}).encode()
        with self._mirror._filesystem.open_output_stream(self._mirror._path(self._name)) as out:
            out.write(content)
        self._confirmed = now

    def _owner(self, name: str) -> JsonObject:
        try:
            with self._mirror._filesystem.open_input_stream(self._mirror._path(name)) as file:
                return dict(json.loads(file.read()))
        except (OSError, ValueError):
            return {}

    def _refresh(self) -> None:
        while not self._done.wait(REFRESH_SECONDS):
            with suppress(OSError, StoreError):
                if self._is_old() or self._name not in self._mirror._listed(self._folder):
                    self._lost = True
                    return
                if not self._done.is_set():
                    self._write()


def _clocks() -> tuple[float, float]:
    return time.monotonic(), time.time()


def _is_part(name: str) -> bool:
    return posixpath.basename(name).startswith("part-")


def _seconds(info: "FileInfo") -> int:
    """The time in ns, cut to seconds: a listing and a look at one object do not give the same fraction."""
    return (info.mtime_ns or 0) // 10**9 * 10**9


def _is_own(name: str) -> bool:
    """Names of a mirror or a writer that are not of the store itself."""
    parts = name.split("/")
    return (
        "locks" in parts[:-1]
        or any(part.startswith(".") for part in parts)
        or parts[-1].endswith((".lock", ".writer.json"))
    )
