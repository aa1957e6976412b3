"""The images in an archive."""

import os
from collections.abc import Iterator
from urllib.parse import quote_from_bytes

from ood_audit.images import archives, webdataset
from ood_audit.images.access import open_file
from ood_audit.images.formats import extensions
from ood_audit.images.found import ScanNotes
from ood_audit.images.uri import ARCHIVES, is_remote, local_path
from ood_audit.text import storable


def members(uri: str, path: str, notes: ScanNotes) -> Iterator[tuple[str, str, int, int, str | None]]:
    """The images of an archive: rows of `found.COLUMNS`, and one of the archive itself where it is damaged.

    In an archive of WebDataset's, an image `0001.jpg` has its label in the member `0001.cls` or `0001.json`.

    Args:
        uri: The URI of the archive.
        path: What the archive is called relative to its source.
        notes: Filled in along the way. If the archive can't be read at all now, its images are left alone.

    """
    try:
        with open_file(uri) as (file, size, mtime_ns):
            index = archives.index(uri, file, size, mtime_ns)
            labels = webdataset.labels(index, file, path, notes)
    except OSError as error:
        notes.unreadable[uri if is_remote(uri) else local_path(uri)] = error.strerror or str(error)
        return
    for name, length in index.sizes.items():
        parts = [part for part in name.split("/") if part not in ("", ".")]
        suffix = os.path.splitext(name)[1].lower()
        is_hidden = any(part.startswith(".") and part != ".." for part in parts)
        # An archive within an archive is a row, so that its images are not passed over in silence.
        if is_hidden or (suffix not in extensions() and suffix not in ARCHIVES):
            notes.skipped[storable(suffix) or "no extension"] += 1
            continue
        label = None if labels is None else labels.get(webdataset.key(name), "")
        if label is not None and len(parts) > 1 and (not label or label.isdecimal()):
            label = None  # the folder in the archive says more than a number does
        if label == "":
            notes.add_problem("pictures without annotation", f"{path}/{storable(name)}")
        own = f"{uri}#{quote_from_bytes(os.fsencode(name))}"
        yield own, f"{path}/{storable('/'.join(parts))}", length, mtime_ns, label
    if index.others:
        notes.skipped["not a regular file"] += index.others
    if index.damage:
        yield uri, path, size, mtime_ns, None
