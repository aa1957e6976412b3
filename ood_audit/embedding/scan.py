"""Scans of the sources: each goes as far as its first image at once, and to its end when the listing is compared."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pyarrow as pa

from ood_audit.errors import OodAuditError, UsageError
from ood_audit.images.sources import ScanNotes, listing, resolve
from ood_audit.images.splits import canonical
from ood_audit.images.uri import is_remote
from ood_audit.store import open_store
from ood_audit.store.files import shown
from ood_audit.store.views import connect
from ood_audit.text import printable, storable

_MOST_COUNTED = 32_768  # images: more make no difference to where the encoder is loaded


@dataclass
class Scan:
    """A source that has been looked into as far as its first image, and goes on from there."""

    source: str
    split: str | None  # the split that the user gives all its images
    images: str | None  # the folder that the user gives for the images of a dataset
    tables: Iterator[pa.Table]
    notes: ScanNotes

    def count(self) -> int:
        """How many images there are, or, where they are more than `_MOST_COUNTED`, how many have been counted."""
        tables, count = [], 0
        while count < _MOST_COUNTED and (table := next(self.tables, None)) is not None:
            tables.append(table)
            count += len(table)
        self.tables = chain(tables, self.tables)
        return count


def with_splits(
    splits: Mapping[str, str | os.PathLike[str]] | Iterable[tuple[str, str | os.PathLike[str]]], root: Path
) -> dict[str, str | None]:
    """Resolved sources with the splits that they hold; UsageError where one is said to hold two."""
    found: dict[str, str | None] = {}
    for name, source in splits.items() if isinstance(splits, Mapping) else splits:
        if not name.strip():
            raise UsageError("a split needs a name: `splits=NAME=SOURCE`")
        place, split = resolved(source, root), canonical(storable(name.strip()))
        if found.setdefault(place, split) != split:
            raise UsageError(
                f"{printable(os.fspath(source))} is given as the split {printable(str(found[place]))} and as "
                f"{printable(split)}; name it once"
            )
    return found


def begin(source: str, root: Path, split: str | None, images: str | None) -> Scan:
    """Begin a scan; OodAuditError where the source holds no image."""
    notes = ScanNotes()
    tables = listing(source, notes, exclude=store_in(source, root), images=images)
    first = next(tables, None)
    if first is None:
        raise OodAuditError(_nothing_found(source, notes) + _if_it_moved(source, root))
    return Scan(source, split, images, chain([first], tables), notes)


def resolved(source: str | os.PathLike[str], root: Path) -> str:
    """`resolve`; where nothing is there any more, the error says what to do about the images in the store."""
    try:
        return resolve(source)
    except UsageError as error:
        name = os.fspath(source)
        hint = "" if not name or is_remote(name) else _if_it_moved(os.path.realpath(name), root)
        raise UsageError(f"{error}{hint}") from error


def _if_it_moved(source: str, root: Path) -> str:
    """What to do about a source that has nothing in it, where the store has images of it; else nothing."""
    from ood_audit.store.sources import forgetting

    if not (root / "store.json").exists():
        return ""
    with connect(open_store(root)) as db:
        if not db.execute("SELECT 1 FROM images WHERE source = ? LIMIT 1", [storable(source)]).fetchall():
            return ""
    return f"; if it moved, embed its new place instead, or drop its images with `{forgetting(source)}`"


def store_in(source: str, root: Path) -> str:
    """What names the store where the source is, not to be searched for images."""
    return shown(root) if is_remote(source) else os.path.realpath(root)


def _nothing_found(source: str, notes: ScanNotes) -> str:
    where = printable(source)
    if notes.unreadable:
        return f"cannot read {where}: {next(iter(notes.unreadable.values())).lower()}"
    passed = ", ".join(f"{n} {printable(kind)}" for kind, n in notes.skipped.most_common(5))
    return f"no images in {where}" + (f" (passed over: {passed})" if passed else "") + "; the store is left as it was"
