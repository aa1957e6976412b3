"""Overlays: shortcuts that no name tells, a banner or a frame that the pictures of one class share at the same place.

Pictures are scaled to 64 × 64 grey pixels, whatever their shape. With g the gradient at a pixel by the root mean square
of those of its picture, and n pictures of a class, the coherence of the pixel is

    c² = (n |mean g|² − mean |g|²) / ((n − 1) mean |g|²)

which is 1 where all gradients are the same, and 0 on average where they have nothing in common. A class has an overlay
where at least 2% of the area has c > 0.8: objects that are in line with each other have edges near the same place, not
at it. A picture shows the overlay where its gradients correlate to 0.5 with their mean over the others of the class, in
that area. No more than a fifth of the pictures of other classes may show it. Where more than one class in ten has an
overlay of its own, the pictures of the dataset are in line, as digits or faces are, and none is said.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ood_audit.findings.shortcuts import Shortcut
from ood_audit.images.decode import grey_square
from ood_audit.images.uri import is_remote

WORD = "look alike in one place, as by a banner or a frame"
FEWEST = 12  # pictures of a class
_SIDE = 64
_EACH = 24  # pictures of a class that are looked at first
_MOST = 1500  # in all: of more classes, the largest ones are looked at
_BYTES = 600_000_000  # of files in all
_ALL = 2000  # pictures of a class with an overlay that are looked at, to tell which of them show it
# On 30 classes of Caltech-101, 7 of PACS in four styles, and the example's, the area is at most 0.2%, but for leopards,
# whose pictures have black frames (11%). It is 2% and more for a banner planted in 29 of 30 classes.
_COHERENT, _AREA = 0.8, 0.02
_LEAST_SIDE = 64  # pixels: smaller pictures have no edges to compare at this size
_USUAL = 0.1  # of the classes
_LIKE = 0.5
_SHARE, _SHARE_OTHERS = 0.6, 0.2

Floats = NDArray[np.float32]
Read = Callable[[str], Floats | None]


def find(images: pa.Table, read: Read | None = None) -> list[Shortcut]:
    """The classes with an overlay, the one with the largest first.

    Args:
        images: The columns image_id, uri, size_bytes, width, height and given_label of the readable images. Boxes,
            small pictures and what is remote are passed over.
        read: Gives the picture of a URI in grey, (64, 64), or None where it can't be read; by default from its file.

    """
    read = read or (lambda uri: grey_square(uri, _SIDE))
    looked_at: dict[str, tuple[list[str], Floats]] = {}
    found = []
    with ThreadPoolExecutor() as pool:
        classes = dict(_classes(images))
        for name, rows in classes.items():
            looked_at[name] = _fields(rows[:_EACH], pool, read)
        for name, (ids, own) in looked_at.items():
            if len(own) < FEWEST:
                continue
            area = coherence(own) > _COHERENT
            if area.mean() < _AREA:
                continue
            mean = own.mean(axis=0)
            others = [_like(theirs, mean, area) for other, (_, theirs) in looked_at.items() if other != name]
            share_others = float((np.concatenate(others) > _LIKE).mean()) if others else 0.0
            more, rest = _fields(classes[name][_EACH:_ALL], pool, read)
            shows = np.concatenate([_leaving_out(own, area), _like(rest, mean, area)]) > _LIKE
            if share_others <= _SHARE_OTHERS and shows.mean() >= _SHARE:
                showing = tuple(one for one, does in zip([*ids, *more], shows, strict=True) if does)
                size = float(area.mean())
                found.append(Shortcut(name, False, WORD, size, float(shows.mean()), share_others, showing))
    if len(found) > max(1, _USUAL * len(looked_at)):
        return []
    return sorted(found, key=lambda one: -one.effect)


def _classes(images: pa.Table) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The largest classes, as many as are looked at: the ids and URIs of their pictures, in the order of the ids."""
    whole = pc.invert(pc.match_substring(images["uri"], "#box="))
    large = pc.greater_equal(pc.min_element_wise(images["width"], images["height"]), _LEAST_SIDE)
    images = images.filter(pc.and_(pc.is_valid(images["given_label"]), pc.and_(whole, large)))
    images = images.set_column(
        images.schema.get_field_index("given_label"), "given_label", images["given_label"].cast(pa.string())
    ).sort_by("image_id")  # which is a hash
    counts = images.group_by("given_label").aggregate([("image_id", "count")])
    counts = counts.filter(pc.greater_equal(counts["image_id_count"], FEWEST))
    size = 0
    ordered = counts.sort_by([("image_id_count", "descending"), ("given_label", "ascending")])
    for name in ordered["given_label"].to_pylist()[: _MOST // _EACH]:
        own = images.filter(pc.equal(images["given_label"], name))
        size += pc.sum(own["size_bytes"].slice(0, _EACH)).as_py() or 0
        if size > _BYTES:
            return
        pairs = zip(own["image_id"].to_pylist(), own["uri"].to_pylist(), strict=True)
        yield name, [(one, uri) for one, uri in pairs if not is_remote(uri)]


def coherence(fields: Floats) -> Floats:
    """(N, 2, S, S) gradients → (S, S), how much they agree."""
    count = len(fields)
    size = np.maximum((fields**2).sum(axis=1).mean(axis=0), 1e-6)
    mean = (fields.mean(axis=0) ** 2).sum(axis=0)
    found: Floats = np.sqrt(np.clip((count * mean - size) / ((count - 1) * size), 0, 1))
    return found


def _fields(rows: Sequence[tuple[str, str]], pool: ThreadPoolExecutor, read: Read) -> tuple[list[str], Floats]:
    """The ids of the pictures that can be read, and their gradients, (N, 2, 64, 64)."""
    pictures = list(pool.map(read, [uri for _, uri in rows]))
    ids = [one for (one, _), picture in zip(rows, pictures, strict=True) if picture is not None]
    whole = np.array([picture for picture in pictures if picture is not None], np.float32).reshape(-1, _SIDE, _SIDE)
    fields = np.stack(np.gradient(whole, axis=(1, 2)), axis=1).astype(np.float32)
    size = np.sqrt((fields**2).sum(axis=1).mean(axis=(1, 2)))
    return ids, fields / np.maximum(size, 1e-3)[:, None, None, None]


def _like(fields: Floats, mean: Floats, mask: NDArray[np.bool_]) -> Floats:
    """(N,): the correlation of the gradients of pictures with their mean, over an area."""
    own, theirs = fields[:, :, mask].reshape(len(fields), 2 * int(mask.sum())), mean[:, mask].ravel()
    size = np.linalg.norm(own, axis=1) * np.linalg.norm(theirs)
    found: Floats = own @ theirs / np.maximum(size, 1e-6)
    return found


def _leaving_out(fields: Floats, mask: NDArray[np.bool_]) -> Floats:
    """(N,): the same for pictures that are in the mean, each left out of it."""
    total, count = fields.sum(axis=0), len(fields)
    means = ((total - own) / (count - 1) for own in fields)
    return np.array([_like(own[None], mean, mask)[0] for own, mean in zip(fields, means, strict=True)], np.float32)
