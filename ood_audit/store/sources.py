"""The sources of a store: which there are, whether they are still where they were, and how one is forgotten."""

import difflib
import os
import re
import secrets
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Literal

import duckdb

from ood_audit._version import __version__
from ood_audit.errors import UsageError
from ood_audit.images.access import canonical
from ood_audit.images.spelling import Spelling
from ood_audit.images.uri import is_remote
from ood_audit.store import annotations
from ood_audit.store.files import write_json
from ood_audit.store.locks import writing
from ood_audit.store.store import DEFAULT_STORE, Store, open_store
from ood_audit.store.views import connect
from ood_audit.text import printable, storable

if TYPE_CHECKING:
    from ood_audit.images.found import ImageRef

State = Literal["present", "missing", "empty", "link", "not checked"]
_NEAR = 3  # names that a message suggests


@dataclass(frozen=True)
class Source:
    """A folder, tar file, image or list that images of a store were found in.

    Attributes:
        source: its absolute path, or its URI.
        images: how many readable images the store has of it.
        unreadable: how many images of it could not be read.
        state: `present`; `missing` where nothing has that name any more; `empty` where it is a folder with nothing in
            it, as an unmounted disk leaves behind; `link` where the path now leads elsewhere by a symbolic link;
            `not checked` where it is remote, as nobody should wait for a network to see a list.

    """

    source: str
    images: int
    unreadable: int
    state: State

    @property
    def is_missing(self) -> bool:
        """Whether its images can't be found where the store has them."""
        return self.state in ("missing", "empty")


def sources(store: str | os.PathLike[str] | Store = DEFAULT_STORE) -> list[Source]:
    """List the sources of the images in a store, by name.

    Raises:
        StoreError: there is no store, or it can't be read.

    """
    opened = store if isinstance(store, Store) else open_store(store)
    with connect(opened, reports=False) as db:
        return listed(db)


def listed(db: duckdb.DuckDBPyConnection) -> list[Source]:
    """`sources` of a store that is open in DuckDB, see `views.connect`."""
    rows = db.execute(
        "SELECT source, count(*) FILTER (status = 'ok'), count(*) FILTER (status = 'error') "
        "FROM images GROUP BY source ORDER BY source"
    ).fetchall()
    return [Source(source, images, unreadable, state_of(source)) for source, images, unreadable in rows]


def forget(
    names: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
    store: str | os.PathLike[str] | Store = DEFAULT_STORE,
    *,
    dry_run: bool = False,
) -> list[Source]:
    """Take the images of some sources out of the store. Their files, if there are any, are left alone.

    Args:
        names: the sources, as `sources` lists them, or by any path that leads there.
        store: a store or its folder.
        dry_run: only say what would be forgotten.

    Returns:
        The sources, as they were before.

    Raises:
        UsageError: the store has no such source.
        StoreError: the store is locked or can't be written.

    """
    from ood_audit.store.parts import PartWriter  # which brings PyArrow; a list of the sources needs none

    opened = store if isinstance(store, Store) else open_store(store)
    if isinstance(names, (str, os.PathLike)):
        names = [names]
    if dry_run:
        return _chosen(names, sources(opened))
    with writing(opened.root, "images"):
        chosen = _chosen(names, sources(opened))
        started = datetime.now(timezone.utc)
        run = f"{started:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        removed = 0
        with PartWriter(opened, run) as writer:
            for image in _images(opened, [source.source for source in chosen]):
                writer.remove(image)
                removed += 1
        for source in chosen:
            annotations.forget(opened, source.source)
        finished = datetime.now(timezone.utc)
        record = {
            "run_id": run,
            "version": __version__,
            "finished": finished.isoformat(timespec="seconds"),
            "seconds": round((finished - started).total_seconds(), 3),
            "forgotten": [source.source for source in chosen],
            "counts": {"removed": removed},
            "interrupted": False,
        }
        write_json(opened.runs / f"{run}.json", record)
    return chosen


def warning(store: Store, known: Sequence[Source] | None = None) -> str | None:
    """What to say of a store with sources that are missing, and what to do; None where there is none.

    Args:
        store: the store.
        known: its `sources`, where they have just been listed.

    """
    if known is None:
        with connect(
            store, reports=False
        ) as db:  # one column, and quickly read: this is asked often, and the answer is mostly none
            names = [name for (name,) in db.execute("SELECT DISTINCT source FROM _rows").fetchall()]
        if not any(state_of(name) in ("missing", "empty") for name in names):
            return None
    missing = [source for source in (sources(store) if known is None else known) if source.is_missing]
    if not missing:  # all of them were removed or forgotten
        return None
    count = sum(source.images + source.unreadable for source in missing)
    first = printable(missing[0].source)
    images = f"{count} image{'s' * (count != 1)}"
    if len(missing) == 1:
        return (
            f"the source {first} is {missing[0].state} ({images}); embed the place it moved to, "
            f"or drop it with `{forgetting(first)}`"
        )
    return (
        f"{len(missing)} sources are missing ({images}), the first {first}; embed the places they moved to, or drop "
        "them with `ood-audit sources --forget SOURCE`; `ood-audit sources` lists them"
    )


def forgetting(source: str) -> str:
    """The command that forgets a source."""
    return f"ood-audit sources --forget {shlex.quote(printable(source))}"


def state_of(source: str) -> State:
    """Where a source is now, by the name that it has in the store."""
    if is_remote(source):
        return "not checked"
    for path in dict.fromkeys([source, _exact(source)]):
        try:
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            continue
        except OSError:  # it may well be there: only we can't see it
            return "present"
        if os.path.realpath(path) != path:
            return "link"
        with suppress(OSError):
            if os.path.isdir(path) and not any(os.scandir(path)):
                return "empty"
        return "present"
    return "missing"


def _exact(source: str) -> str:
    r"""The path behind a name in which bytes that are no text became `\xNN`."""
    return os.fsdecode(re.sub(rb"\\x([0-9a-f]{2})", lambda byte: bytes.fromhex(byte[1].decode()), os.fsencode(source)))


def _chosen(names: Sequence[str | os.PathLike[str]], known: list[Source]) -> list[Source]:
    """The sources with these names; UsageError where one is none."""
    by_name = {source.source: source for source in known}
    chosen = []
    for given in dict.fromkeys(os.fspath(name) for name in names):
        match = next((name for name in _spellings(given) if name in by_name), None)
        if match is None:
            raise UsageError(_no_such_source(given, list(by_name)))
        chosen.append(by_name[match])
    return list(dict.fromkeys(chosen))


def _spellings(given: str) -> Iterator[str]:
    """The names that a source which is `given` may have in the store."""
    yield storable(given)
    if is_remote(given):
        with suppress(UsageError):
            yield canonical(given)
    elif given:
        yield storable(os.path.abspath(given))
        yield storable(real := os.path.realpath(given))
        yield storable(Spelling()(real))


def _no_such_source(given: str, known: list[str]) -> str:
    name = printable(storable(given)) or "(an empty name)"
    last = os.path.basename(name.rstrip("/"))
    by_last = {os.path.basename(source): source for source in known}
    near = [source for source in known if os.path.basename(source) == last]
    near += [by_last[found] for found in difflib.get_close_matches(last, by_last, _NEAR)]
    shown = ", ".join(map(printable, list(dict.fromkeys(near))[:_NEAR]))
    hint = f"did you mean {shown}?" if shown else "`ood-audit sources` lists the sources"
    return f"the store has no source {name}; {hint}"


def _images(store: Store, names: list[str]) -> "Iterator[ImageRef]":
    from ood_audit.images.found import ImageRef

    with connect(store) as db:
        answer = db.execute(
            "SELECT uri, source, path, size_bytes, mtime_ns FROM images "
            "WHERE list_contains($names, source) ORDER BY uri",
            {"names": names},
        )
        while rows := answer.fetchmany(4096):
            yield from (ImageRef(*row) for row in rows)
