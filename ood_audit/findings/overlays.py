"""Overlays: shortcuts that no name tells, such as a banner or a watermark that the pictures of one class share.

Pictures are seen in grey in three ways: scaled to 96 × 96 pixels whatever their shape, and from their upper left and
their lower right corner, so many pixels of the shorter side. Of each view, what is left by a Gaussian filter (σ = 1) is
divided by its local size (7 × 7 pixels), so that neither contrast nor brightness counts. With r these residuals, the
strength of what n pictures of a class share is the mean correlation of two of them,

    ρ = Σ_{i≠j} ⟨r_i, r_j⟩ / ((n − 1) Σ_i |r_i|²)

less the same where one of the two is shifted by two pixels each way: objects that are in line with each other have
edges near the same place, not at it. A class has an overlay where that is more than 0.03 in one of the views. A picture
shows the overlay where its residual correlates with the mean of the others of the class at least half as much as the
median picture of the class does. No more than a fifth of the pictures of other classes may show it. Where more than one
class in ten has an overlay of its own, the pictures of the dataset are in line, as digits or faces are, and none is
said.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image

from ood_audit.findings.shortcuts import Shortcut
from ood_audit.images.access import readers
from ood_audit.images.decode import grey
from ood_audit.images.uri import is_remote

WORD = "look alike in one place, as by a banner, a frame or a watermark"
FEWEST = 12  # pictures of a class
_SIDE = 96
_EACH = 24  # pictures of a class that are looked at first
_MOST = 1500  # in all: of more classes, the largest ones are looked at
_BYTES = 600_000_000  # of files in all
_ALL = 2000  # pictures of a class with an overlay that are looked at, to tell which of them show it
# On 30 classes of Caltech-101, 7 of PACS in four styles, and the example's, it is at most 0.021 (motorcycles, which are
# in line), but for leopards, whose pictures have black frames (0.11).
_STRENGTH = 0.03
_SHIFT = 2
_LEAST_SIDE = 64  # pixels: smaller pictures have no edges to compare at this size
_USUAL = 0.1  # of the classes
_SHARE, _SHARE_OTHERS = 0.6, 0.2

Floats = NDArray[np.float32]
Views = NDArray[np.uint8]  # (N, 3, 96, 96)
Read = Callable[[str], Image.Image | None]


def find(images: pa.Table, read: Read | None = None) -> list[Shortcut]:
    """The classes with an overlay, the strongest first.

    Args:
        images: The columns image_id, uri, size_bytes, width, height and given_label of the readable images. Boxes,
            small pictures and what is remote are passed over.
        read: Gives the picture of a URI in grey with 96 pixels of the shorter side, or None where it can't be read; by
            default from its file.

    """
    read = read or (lambda uri: grey(uri, _SIDE))
    looked_at: dict[str, tuple[list[str], Views]] = {}
    found = []
    with readers(()) as pool:  # what is remote is passed over
        classes = dict(_classes(images))
        for name, rows in classes.items():
            looked_at[name] = _views(rows[:_EACH], pool, read)
        for name, (ids, own) in looked_at.items():
            if len(own) < FEWEST:
                continue
            strengths = list(pool.map(strength, pool.map(residuals, own.swapaxes(0, 1))))
            view = int(np.argmax(strengths))
            if strengths[view] < _STRENGTH:
                continue
            first = residuals(own[:, view])
            mean = first.mean(axis=0)
            likes = _leaving_out(first)
            least = float(np.median(likes)) / 2
            others = [
                _like(residuals(theirs[:, view]), mean) for other, (_, theirs) in looked_at.items() if other != name
            ]
            share_others = float((np.concatenate(others) >= least).mean()) if others else 0.0
            more, rest = _views(classes[name][_EACH:_ALL], pool, read)
            shows = np.concatenate([likes, _like(residuals(rest[:, view]), mean)]) >= least
            if share_others <= _SHARE_OTHERS and shows.mean() >= _SHARE:
                showing = tuple(one for one, does in zip([*ids, *more], shows, strict=True) if does)
                found.append(Shortcut(name, False, WORD, strengths[view], float(shows.mean()), share_others, showing))
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


def residuals(pictures: NDArray[np.uint8]) -> Floats:
    """(N, S, S) pictures → (N, S, S), what is finer than a pixel or so in them, by its local size."""
    from scipy.ndimage import gaussian_filter, uniform_filter

    grey = pictures.astype(np.float32)
    fine = grey - gaussian_filter(grey, (0, 1, 1), truncate=3)
    found: Floats = fine / (np.sqrt(uniform_filter(fine**2, (0, 7, 7)).clip(0)) + 2)
    return found


def strength(own: Floats) -> float:
    """How much (N, S, S) residuals have in common at the same place, from 0 to 1."""

    def common(one: Floats, other: Floats) -> float:
        return float(np.vdot(one.sum(axis=0), other.sum(axis=0)) - np.vdot(one, other))

    up, down, left, right = own[:, _SHIFT:], own[:, :-_SHIFT], slice(_SHIFT, None), slice(-_SHIFT)
    shifted = max(0.0, common(up[..., left], down[..., right]), common(up[..., right], down[..., left]))
    return (common(own, own) - shifted) / max((len(own) - 1) * float(np.vdot(own, own)), 1e-6)


def _views(rows: Sequence[tuple[str, str]], pool: ThreadPoolExecutor, read: Read) -> tuple[list[str], Views]:
    """The ids of the pictures that can be read, and their views."""
    pictures = list(pool.map(lambda row: _three(read(row[1])), rows))
    ids = [one for (one, _), views in zip(rows, pictures, strict=True) if views is not None]
    return ids, np.array([views for views in pictures if views is not None], np.uint8).reshape(-1, 3, _SIDE, _SIDE)


def _three(picture: Image.Image | None) -> Views | None:
    """The whole picture, its upper left and its lower right corner; (3, 96, 96)."""
    if picture is None:
        return None
    width, height = picture.size
    whole = picture.resize((_SIDE, _SIDE), Image.Resampling.BOX)
    upper = picture.crop((0, 0, _SIDE, _SIDE))
    lower = picture.crop((width - _SIDE, height - _SIDE, width, height))
    return np.stack([np.asarray(one) for one in (whole, upper, lower)])


def _like(own: Floats, mean: Floats) -> Floats:
    """(N,): the correlation of residuals with a mean."""
    size = np.linalg.norm(own, axis=(1, 2)) * np.linalg.norm(mean)
    found: Floats = np.einsum("nij,ij->n", own, mean) / np.maximum(size, 1e-6)
    return found


def _leaving_out(own: Floats) -> Floats:
    """(N,): the same with the mean of the others."""
    total, count = own.sum(axis=0), len(own)
    return np.array([_like(one[None], (total - one) / (count - 1))[0] for one in own], np.float32)
