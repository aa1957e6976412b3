"""The store on disk: opening one, making one, and asking it with SQL."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ood_audit._version import __version__
from ood_audit.encoders.identity import EncoderIdentity
from ood_audit.errors import StoreError
from ood_audit.images.uri import is_remote
from ood_audit.store.files import read_json, shown, write_json
from ood_audit.store.folder import StoreFolder
from ood_audit.text import printable, storable

if TYPE_CHECKING:
    from ood_audit.store.views import Rows

FORMAT_VERSION = 2
_READABLE = (1, 2)  # 1 is 2 without merged parts; `raise_version` is all that it takes
DEFAULT_STORE = ".ood-audit"


@dataclass(frozen=True)
class Store(StoreFolder):
    """An audit's folder, and the encoder whose features are in it."""

    encoder: EncoderIdentity

    def query(self, sql: str) -> "Rows":
        """Run one read-only SELECT over the views `images`, `scores`, `labels`, `report` and `findings`.

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
        raise StoreError(f"no store at {where}; make one with `ood-audit embed FOLDER`, or name one with `store=DIR`")
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
        f"reads up to version {FORMAT_VERSION}; use the ood-audit that made it, or start another store with `store=DIR`"
    )


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


def raise_version(store: Store) -> None:
    """Note that a store has what an older ood-audit would misread; to be done before it has. The caller holds the lock.

    Version 2 has merged parts. A store of version 1 is read, and added to, as it is.
    """
    values = read_json(store.root / "store.json")
    if values["version"] != FORMAT_VERSION:
        write_json(store.root / "store.json", {**values, "version": FORMAT_VERSION})


def store_root(path: str | os.PathLike[str]) -> Path:
    """The folder of the store that `path` names: itself, or the mirror of a remote one, brought into step.

    Raises:
        StoreError: DuckDB and the manifests need the name to be text; or the remote one can't be reached.

    """
    if is_remote(os.fspath(path)):
        from ood_audit.store import remote

        return remote.attach(os.fspath(path))
    try:
        os.path.abspath(path).encode()
    except UnicodeEncodeError:
        name = printable(storable(os.fspath(path)))
        raise StoreError(f"the store's path is not valid UTF-8: {name}; name another with `store=DIR`") from None
    return Path(path)
