"""Prototypes: what the classes look like, learned from reference pictures, beside what their names say.

With image feature z, text feature t_k, prototype weight β, and the mean μ_k of the reference pictures of class k:

    s_k = (1 − β) z·t_k + β cos(W(z − μ), W(μ_k − μ))         W Wᵀ = Σ⁻¹

μ is the mean of all references and Σ their covariance within the classes, shrunk by Ledoit and Wolf's rule: in the
whitened space, directions in which pictures of one class differ anyway (light, background, pose) count for little. This
is linear discriminant analysis with cosines in place of distances. Every score takes s in place of the cosines to text.

References are never scored by prototypes that have seen them: where they are images under audit, there are several
sets of prototypes, each made without a part of them (`FOLDS`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Literal
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from ood_audit.arrays import Array, beside, namespace
from ood_audit.encoders.cpu import mapped

Floats = NDArray[np.float32]
FOLDS = 5
DEFAULT_WEIGHT = 0.2
MOST = 20_000  # references: more do not help a mean and a covariance
_LINE_PAIRS = 1 << 20  # pairs of a reference and a class: more do not help a line


@dataclass(frozen=True)
class References:
    """Pictures of known classes.

    Attributes:
        features: (M, D) float32 of length 1.
        labels: (M,) int, the class of each.
        folds: (M,) int: in 0 … FOLDS − 1 for images under audit, see `fold_of`; −1 for others.
        source: where they are from: `labelled` (given to `tune`), `folders` (named as a class), `labelled and folders`,
            or `presumed` (the most confident half of the images, as the text features label them).

    """

    features: Floats
    labels: NDArray[np.int64]
    folds: NDArray[np.int64]
    source: Literal["labelled", "folders", "labelled and folders", "presumed"]


@dataclass(frozen=True)
class Prototypes:
    """The classes in the whitened space.

    Attributes:
        center: (D,) float32, μ.
        whiten: (D, D) float32, W, applied as (z − μ) W.
        means: (K, D) float32 of length 1; zero for a class without references, or whose mean is that of all.
        slope, intercept: for such classes the cosine is guessed from that to the text, by the line for the others.

    """

    center: Floats
    whiten: Floats
    means: Floats
    slope: float
    intercept: float

    def cosines(self, images: Array, to_text: Array) -> Array:
        """(N, D) image features and their (N, K) cosines to the text features → (N, K); arrays, or tensors on a GPU."""
        center, whiten, means, missing = self._beside(images)
        whitened = (images - center) @ whiten
        whitened /= _lengths(whitened)
        found = whitened @ means.T
        if not self.missing.any():
            return found
        return namespace(found).where(missing, self.slope * to_text + self.intercept, found)

    def _beside(self, images: Array) -> tuple[Array, ...]:
        """`center`, `whiten`, `means` and `missing` as what the images are; moved to a GPU once."""
        arrays = (self.center, self.whiten, self.means, self.missing)
        if isinstance(images, np.ndarray):
            return arrays
        where, tensors = self.__dict__.get("_moved", (None, ()))
        if where != images.device:
            tensors = tuple(beside(array, images) for array in arrays)
            self.__dict__["_moved"] = images.device, tensors  # the class is frozen
        return tuple(tensors)

    @cached_property
    def missing(self) -> NDArray[np.bool_]:
        """(K,): the classes without a mean."""
        missing: NDArray[np.bool_] = (self.means == 0).all(axis=1)
        return missing


def unseen_cosines(made: "Sequence[Prototypes | None]", images: Array, folds: Array | None, to_text: Array) -> Array:
    """(N, K) cosines of images to the prototypes that have not seen them; to the text where there are none.

    Args:
        made: as `fit_folds` gives them.
        images: (N, D) image features, a NumPy array, or a torch tensor as what follows.
        folds: (N,) the fold of each image; those of no fold are compared with the text. None where one set is for all.
        to_text: (N, K) their cosines to the text features.

    """
    if folds is None or len(made) < 2:
        return made[0].cosines(images, to_text) if made and made[0] is not None else to_text
    xp = namespace(to_text)
    found = xp.asarray(to_text, copy=True)
    for fold, those in enumerate(made):
        rows = folds == fold
        if those is not None and xp.any(rows):
            found[rows] = those.cosines(images[rows], to_text[rows])
    return found


def joined(to_text: Array, to_prototypes: Array, weight: float) -> Array:
    """(N, K) cosines to the text features and to the prototypes, these with a weight, as the scores take them."""
    found = to_prototypes - to_text
    found *= weight
    found += to_text
    return found


def save(path: Path, made: "Sequence[Prototypes | None]") -> None:
    """Keep prototypes in a file, for `load`."""
    from safetensors.numpy import save as as_bytes

    arrays = {
        f"{fold}.{field.name}": np.ascontiguousarray(getattr(those, field.name), np.float32)
        for fold, those in enumerate(made)
        if those is not None
        for field in fields(those)
    }
    path.write_bytes(as_bytes(arrays, {"folds": str(len(made))}))


def load(path: Path) -> "list[Prototypes | None]":
    """What `save` has kept; OSError, ValueError or SafetensorError where it cannot be read."""
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        there = set(file.keys())
        folds = range(int(file.metadata()["folds"]))
        return [_read(file.get_tensor, fold) if f"{fold}.center" in there else None for fold in folds]


def _read(tensor: Callable[[str], NDArray[np.float32]], fold: int) -> Prototypes:
    center, whiten, means, slope, intercept = (tensor(f"{fold}.{field.name}") for field in fields(Prototypes))
    return Prototypes(center, whiten, means, slope.item(), intercept.item())


def fold_of(names: Sequence[str]) -> NDArray[np.int64]:
    """The fold of each image, from its path within its source: the same in every run, wherever the images lie."""
    return np.fromiter((crc32(name.encode(errors="replace")) % FOLDS for name in names), np.int64, len(names))


def fit(features: Floats, labels: NDArray[np.int64], text: Floats) -> Prototypes | None:
    """The prototypes of K classes; None where the references are too few (two that differ, of two classes).

    Args:
        features: (M, D) of length 1.
        labels: (M,) int.
        text: (K, D) text features of the classes.

    """
    classes, dimension = text.shape
    counts = np.bincount(labels, minlength=classes)
    there = counts > 0
    if there.sum() < 2:  # the mean of a lone class is that of all, and has no direction
        return None
    one_hot = csr_matrix((np.ones(len(labels), np.float32), (labels, np.arange(len(labels)))), (classes, len(labels)))
    means = one_hot @ features / np.maximum(counts, 1)[:, None].astype(np.float32)
    center = features.mean(axis=0)
    within = features - means[labels]
    if np.abs(within).max() < 1e-6:  # there is one picture of each class
        within = features - center
    if np.abs(within).max() < 1e-6:
        return None
    covariance = (within.T @ within / len(within)).astype(np.float64)
    shrinkage = _shrinkage(within, covariance)
    variance = float(np.trace(covariance)) / dimension
    covariance *= 1 - shrinkage
    covariance.flat[:: dimension + 1] += max(shrinkage, 1e-3) * variance
    whiten = _whitening(covariance)
    apart = np.where(np.abs(means - center).max(axis=1, keepdims=True) < 1e-6, 0, means - center)
    unit = np.where(there[:, None], _unit(apart @ whiten), 0)
    slope, intercept = 0.0, 0.0
    if not there.all():
        some = features[sample(len(features), most=max(2, _LINE_PAIRS // classes))]
        x, y = some @ text[there].T, _unit((some - center) @ whiten) @ unit[there].T
        slope = ((x - x.mean()) * y).sum() / max(float(((x - x.mean()) ** 2).sum()), 1e-12)  # by least squares
        intercept = y.mean() - slope * x.mean()
    return Prototypes(
        center, whiten.astype(np.float32), unit.astype(np.float32), slope=float(slope), intercept=float(intercept)
    )


def _shrinkage(rows: Floats, covariance: NDArray[np.float64]) -> float:
    """How far to shrink the (D, D) covariance of (M, D) centred rows, from 0 to 1, by Ledoit and Wolf (2004).

    scikit-learn has it too, but takes three times as long to import as a fit takes, and makes the product again.
    """
    variance = float(np.trace(covariance)) / len(covariance)
    spread = float((covariance**2).sum()) - len(covariance) * variance**2
    error = float((np.einsum("ij,ij->i", rows, rows).astype(np.float64) ** 2).mean() - (covariance**2).sum()) / len(
        rows
    )
    return min(1.0, max(0.0, error) / spread) if spread > 0 else 0.0


def _whitening(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """(D, D) W with W Wᵀ = Σ⁻¹."""
    from scipy.linalg import LinAlgError
    from scipy.linalg.lapack import dpotrf, dtrtri

    lower, failed = dpotrf(covariance, lower=1, clean=1)
    if failed:
        raise LinAlgError(f"the covariance is not positive definite (minor {failed})")
    whiten: NDArray[np.float64] = dtrtri(lower, lower=1)[0].T
    return whiten


def _unit(rows: NDArray[np.floating]) -> NDArray[np.floating]:
    unit: NDArray[np.floating] = rows / _lengths(rows)
    return unit


def _lengths(rows: Array) -> Array:
    """(N, 1), none of them 0, to divide by."""
    xp = namespace(rows)
    lengths = xp.linalg.vector_norm(rows, axis=1, keepdims=True)
    return xp.where(lengths > 1e-12, lengths, 1e-12)


def fit_folds(references: References, text: Floats) -> list[Prototypes | None]:
    """One set of prototypes, or one for each fold, made without that fold's references."""
    if (references.folds < 0).all():
        return [fit(references.features, references.labels, text)]

    def without(fold: int) -> Prototypes | None:
        rows = references.folds != fold
        return fit(references.features[rows], references.labels[rows], text)

    return list(mapped(without, range(FOLDS)))


def sample(rows: int, seed: int = 0, most: int = MOST) -> NDArray[np.int64]:
    """The row numbers of at most `most` of `rows`, in order."""
    if rows <= most:
        return np.arange(rows)
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
