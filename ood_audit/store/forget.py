"""How a source is forgotten: its images leave the store, its files stay."""

import difflib
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timezone

from ood_audit._version import __version__
from ood_audit.errors import UsageError
from ood_audit.images.access import canonical
from ood_audit.images.found import ImageRef
from ood_audit.images.spelling import Spelling
from ood_audit.images.uri import is_remote
from ood_audit.store import annotations, totals
from ood_audit.store.files import write_json
from ood_audit.store.locks import writing
from ood_audit.store.parts import PartWriter
from ood_audit.store.sources import Source, sources
from ood_audit.store.store import DEFAULT_STORE, Store, open_store
from ood_audit.store.views import connect
from ood_audit.text import printable, storable

_NEAR = 3  # names that a message suggests


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
        totals.keep(opened)
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


def _images(store: Store, names: list[str]) -> Iterator[ImageRef]:
    with connect(store) as db:
        answer = db.execute(
            "SELECT uri, source, path, size_bytes, mtime_ns FROM images "
            "WHERE list_contains($names, source) ORDER BY uri",
            {"names": names},
        )
        while rows := answer.fetchmany(4096):
            yield from (ImageRef(*row) for row in rows)
