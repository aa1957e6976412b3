"""The store on disk: where things lie, how files are written, and the lock against a second writer."""

import errno
import json
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ood_audit._version import __version__
from ood_audit.encoders.identity import EncoderIdentity
from ood_audit.errors import StoreError
from ood_audit.images.storage import is_remote
from ood_audit.store import owned
from ood_audit.text import printable, storable

if TYPE_CHECKING:
    from ood_audit.store.remote import Mirror
    from ood_audit.store.views import Rows

FORMAT_VERSION = 2
_READABLE = (1, 2)  # 1 is 2 without merged parts; `raise_version` is all that it takes
DEFAULT_STORE = ".ood-audit"
_WINDOWS = os.name == "nt"
COMMIT_SECONDS = 20.0  # how long a finished score run or report waits for another one to take its name
_WRITES = {  # the temporary files of each kind of writer
    "images": ("images/.*", "index/.*", "runs/.*", "texts/.*", ".import*", ".store.json.*", ".images.writer.json.*"),
    "scores": (
        *("vocabularies/.*", "prompts/.*", "scores/.*", "reports/.*", "verdicts/.*"),
        *(
            ".current.json.*",
            ".score_defaults.json.*",
            ".duplicates.parquet.*",
            ".spill*",
            ".scores.writer.json.*",
            ".reader-*",
        ),
    ),
}


@dataclass(frozen=True)
class Store:
    """An audit's folder. See CONTRIBUTING.md for its layout."""

    root: Path
    encoder: EncoderIdentity

    @property
    def images(self) -> Path:
        """Parquet parts, one row an image."""
        return self.root / "images"

    @property
    def runs(self) -> Path:
        """One JSON a run of `embed`."""
        return self.root / "runs"

    @property
    def index(self) -> Path:
        """The FAISS index."""
        return self.root / "index" / "features.faiss"

    @property
    def vocabularies(self) -> Path:
        """Class names and their text features."""
        return self.root / "vocabularies"

    def imported_texts(self, what: Literal["classes", "background"]) -> Path:
        """The text features that were imported for the classes, or for the background names."""
        return self.root / "texts" / f"{what}.parquet"

    @property
    def prompts(self) -> Path:
        """Tuned prompts."""
        return self.root / "prompts"

    @property
    def scores(self) -> Path:
        """One Parquet file a score run."""
        return self.root / "scores"

    @property
    def reports(self) -> Path:
        """One folder a report."""
        return self.root / "reports"

    @property
    def parts(self) -> list[Path]:
        """The complete parts in force, oldest first: those that `compact` has merged into another are not."""
        found: list[Path] = []
        covered = 0
        files = ((span(path), path) for path in self.images.glob("part-*.parquet"))
        for (_, last), path in sorted(files, key=lambda file: (file[0][0], -file[0][1], -len(file[1].name))):
            if last > covered:
                found.append(path)
                covered = last
        return found

    @property
    def generation(self) -> int:
        """The number of the newest part, 0 for none; it grows with every change of the images."""
        parts = self.parts
        return span(parts[-1])[1] if parts else 0

    @property
    def next_part(self) -> int:
        """The number for a new part: above all that an index or scores were made from, even if those are deleted."""
        made_from = [self.generation]
        for path in (self.index.with_name("index.json"), *self.scores.glob("*.json")):
            with suppress(OSError, ValueError, KeyError, TypeError):
                made_from.append(int(json.loads(path.read_bytes())["generation"]))
        return max(made_from) + 1

    def current(self) -> dict[str, Any]:
        """What later commands take up: the ids of the last used `vocabulary`, `scores` and `report`."""
        path = self.root / "current.json"
        return read_json(path) if path.exists() else {}

    def set_current(self, **ids: str) -> None:
        """Change what `current` gives."""
        write_json(self.root / "current.json", {**self.current(), **ids})

    @property
    def current_report(self) -> str:
        """The name of the report whose findings are the view `issues`."""
        return str(self.current().get("report", "latest"))

    def query(self, sql: str) -> "Rows":
        """Run one read-only SELECT over the views `images`, `scores`, `labels`, `report` and `issues`.

        Raises:
            UsageError: the statement is not a SELECT, or DuckDB refuses it.

        """
        from ood_audit.store.views import query

        return query(self, sql)


def open_store(path: str | os.PathLike[str] = DEFAULT_STORE) -> Store:
    """Open a store that `embed` has made.

    Raises:
        StoreError: there is none, or it is of another version.

    """
    root = store_root(path)
    manifest = root / "store.json"
    if not manifest.is_file():
        where = shown(root)
        raise StoreError(f"no store at {where}; make one with `ood-audit embed FOLDER`, or name one with --store DIR")
    try:
        values = json.loads(manifest.read_text(encoding="utf-8"))
        version = values["version"]
        if version in _READABLE:
            return Store(root, EncoderIdentity.from_json(values["encoder"]))
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{printable(str(manifest))} is damaged ({error}); restore it, or start another store"
        ) from error
    raise StoreError(
        f"the store at {printable(str(root))} has format version {printable(str(version))}, ood-audit {__version__} "
        f"reads up to version {FORMAT_VERSION}; use the ood-audit that made it, or start another store with --store DIR"
    )


def raise_version(store: Store) -> None:
    """Note that a store has what an older ood-audit would misread; to be done before it has. The caller holds the lock.

    Version 2 has merged parts. A store of version 1 is read, and added to, as it is.
    """
    values = read_json(store.root / "store.json")
    if values["version"] != FORMAT_VERSION:
        write_json(store.root / "store.json", {**values, "version": FORMAT_VERSION})


def span(part: Path) -> tuple[int, int]:
    """The numbers of the parts that a file holds: of `part-00000003.parquet` 3 and 3, of `part-00000001-00000007` 1, 7.

    Raises:
        StoreError: the file has another name.

    """
    if (match := re.fullmatch(r"part-(\d{8,})(?:-(\d{8,}))?\.parquet", part.name)) is None:
        raise StoreError(f"{printable(str(part))} is no part of a store; take it away")
    return int(match[1]), int(match[2] or match[1])


def store_root(path: str | os.PathLike[str]) -> Path:
    """The folder of the store that `path` names: itself, or the mirror of a remote one, brought into step.

    Raises:
        StoreError: DuckDB and the manifests need the name to be text; or the remote one can't be reached.

    """
    if is_remote(os.fspath(path)):
        from ood_audit.store import remote

        return remote.attach(os.fspath(path)).root
    try:
        os.path.abspath(path).encode()
    except UnicodeEncodeError:
        name = printable(storable(os.fspath(path)))
        raise StoreError(f"the store's path is not valid UTF-8: {name}; name another with --store DIR") from None
    return Path(path)


def shown(root: Path) -> str:
    """What to call a store in messages: its folder, or its URI."""
    mirrored = _mirrored(root)
    return printable(str(root) if mirrored is None else "/".join(filter(None, (mirrored[0].url, mirrored[1]))))


def create_store(path: str | os.PathLike[str], encoder: EncoderIdentity) -> Store:
    """Make a new, empty store; or note the new place of the encoder of an existing one."""
    store = Store(Path(path), encoder)
    where = shown(store.root)
    if store.parts and not (store.root / "store.json").exists():
        raise StoreError(f"{where} has images but no store.json; restore that file, or start another store")
    try:
        store.images.mkdir(parents=True, exist_ok=True)
        manifest = {"version": FORMAT_VERSION, "created_by": f"ood-audit {__version__}", "encoder": encoder.to_json()}
        write_json(store.root / "store.json", manifest)
    except OSError as error:
        raise StoreError(f"cannot make a store at {where}: {error.strerror or error}") from error
    return store


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
            raise StoreError(f"{where} is a folder with other things in it; name a new one with --store DIR")
        lock.acquire(timeout=wait)
    except Timeout:
        raise StoreError(f"{_owner(owner)} is writing to {where}; wait for it, or use another --store") from None
    except OSError as error:
        raise StoreError(f"cannot write to the store {where}: {error.strerror or error}") from error
    except NotImplementedError as error:
        raise StoreError(
            f"the file system of {where} has no locks; put the store on another with --store DIR"
        ) from error
    try:
        with _remote_lock(root, what), explaining_full_disks(root):
            write_json(owner, {"pid": os.getpid(), "host": socket.gethostname()})
            for pattern in _WRITES[what]:
                for leftover in filter(owned.is_leftover, root.glob(f"{pattern}.tmp")):
                    _clear(leftover)
            yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


@contextmanager
def explaining_full_disks(root: Path) -> Iterator[None]:
    """Turn the error of a full or read-only disk into a StoreError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            raise
        raise StoreError(no_room(root, error)) from error


@contextmanager
def computing(root: Path) -> Iterator[None]:
    """Hold nothing but a marker while scores or a report are computed; see `writing` and `owned.reading`."""
    with owned.reading(root), explaining_full_disks(root):
        yield


@contextmanager
def _remote_lock(root: Path, what: str) -> Iterator[None]:
    """Where the store is a mirror: hold the lock of the remote one, in step with it; at the end deletions follow."""
    mirrored = _mirrored(root)
    if mirrored is None:
        yield
        return
    mirror, name = mirrored
    with mirror.lock(f"{name}/locks/{what}".lstrip("/")):
        mirror.pull()
        yield
        for folder in dict.fromkeys(pattern.partition("/")[0] for pattern in _WRITES[what] if "/" in pattern):
            mirror.push_removals(f"{name}/{folder}".lstrip("/"))


def _mirrored(path: Path) -> "tuple[Mirror, str] | None":
    module = sys.modules.get("ood_audit.store.remote")  # where no remote store is open it need not be imported
    return None if module is None else module.mirror_of(path)


def remove(path: Path) -> None:
    """Delete a file of a store, if it is there: first where it is in force."""
    mirrored = _mirrored(path)
    if mirrored is not None:
        mirrored[0].remove(mirrored[1])
    path.unlink(missing_ok=True)


def no_room(root: Path, error: OSError) -> str:
    """What to say when a store can't be written to any more."""
    return (
        f"cannot write to the store {printable(str(root))}: {(error.strerror or str(error)).lower()}; "
        "what was done before is kept, make room and run the same command again"
    )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; flushed to disk and renamed to `path` on success, else removed.

    Serves files and folders. A reader sees the old one or the new one, never a part of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = owned.temporary(path)
    try:
        yield temporary
        if temporary.is_dir():
            for file in temporary.iterdir():
                flush(file)
            with _uploaded(temporary, path):
                if path.exists():
                    old = owned.temporary(path, kind=".old")
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


def _rename(old: Path, new: Path) -> None:
    """Rename a file, over an existing one, or a folder."""
    for pause in (0.01, 0.03, 0.1, 0.3, 1) if _WINDOWS else ():
        with suppress(PermissionError):  # Windows renames nothing that another program is just reading
            old.replace(new)
            return
        time.sleep(pause)
    old.replace(new)


def _clear(leftover: Path) -> None:
    """Remove what a killed writer left behind; a folder that it had put aside and not replaced yet is put back."""
    aside = re.fullmatch(r"\.(.+)\.\d+(?:@[^@]*)?\.old\.tmp", leftover.name)
    if aside and not (leftover.parent / aside[1]).exists():
        _rename(leftover, leftover.parent / aside[1])
    elif leftover.is_dir():
        shutil.rmtree(leftover)
    else:
        leftover.unlink()


def _uploaded(temporary: Path, path: Path) -> AbstractContextManager[None]:
    """Upload what is about to be called `path`, where that is in the mirror of a remote store."""
    mirrored = _mirrored(path)
    return nullcontext() if mirrored is None else mirrored[0].putting(temporary, mirrored[1])


def read_json(path: Path) -> dict[str, Any]:
    """Read an object that `write_json` wrote; StoreError where it is damaged."""
    try:
        values = json.loads(path.read_bytes())
        if isinstance(values, dict):
            return values
    except ValueError:
        pass
    raise StoreError(f"{printable(str(path))} is damaged; delete it and run the command again")


def write_json(path: Path, values: dict[str, Any]) -> None:
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


def _owner(path: Path) -> str:
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        return f"another ood-audit (process {owner['pid']} on {owner['host']})"
    except (OSError, ValueError, KeyError):
        return "another ood-audit"
