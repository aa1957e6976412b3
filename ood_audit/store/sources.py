"""The sources of a store: which there are, and whether they are still where they were."""

import os
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from ood_audit.images.uri import is_remote
from ood_audit.store.store import DEFAULT_STORE, Store, open_store
from ood_audit.store.totals import Total, totals
from ood_audit.text import printable

State = Literal["present", "missing", "empty", "link", "not checked"]


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
    return list(map(source_of, totals(opened)))


def source_of(total: Total) -> Source:
    """A source, with what there is of it in the store."""
    return Source(total.source, total.images, total.unreadable, state_of(total.source))


def warning(known: Sequence[Source]) -> str | None:
    """What to say of sources that are missing, and what to do; None where there is none."""
    missing = [source for source in known if source.is_missing]
    if not missing:
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
