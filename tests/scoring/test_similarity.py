# mypy: disable-error-code="arg-type, union-attr, func-returns-value, call-arg"
"""What images are compared with: joined, scaled, fold by fold, and in chunks of any size."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from ood_audit.arrays import Spanned
from ood_audit.classes import prototypes
from ood_audit.classes.pools import Pool
from ood_audit.classes.prototypes import FOLDS, References, fit_folds, fold_of
from ood_audit.scoring import outside, scores, similarity
from ood_audit.scoring.scores.delta_energy import delta_energy
from ood_audit.scoring.similarity import Target, chunk_of, chunks
from ood_audit.store.parts import FeatureBatch

CLASSES, DIMENSION, IMAGES = 5, 16, 83
SETTINGS = {"temperature": 0.05, "top_c": 2, "reset_to": 0.0}


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [f"{i:08x}" for i in rng.integers(0, 2**32, IMAGES)], unit(rng.normal(size=(IMAGES, DIMENSION)))


@pytest.fixture(scope="module")
def target(images):
    """All images are references too; a background of 30 names, of which the first five name the classes."""
    ids, features = images
    rng = np.random.default_rng(1)
    text = unit(rng.normal(size=(CLASSES, DIMENSION)))
    references = References(features, (features @ text.T).argmax(1), fold_of(ids), "folders")
    names = unit(rng.normal(size=(30, DIMENSION))).astype(np.float16)
    pairs = np.stack([np.arange(5), np.arange(5)], axis=1).astype(np.int32)
    background = Pool([str(i) for i in range(30)], Spanned(names), text, pairs)
    return Target(text, references, fit_folds(references, text), {"background": background})


def as_store(monkeypatch, images, batches):
    """A stream of feature batches in place of a store."""
    ids, features = images
    parts = [
        FeatureBatch(*(pa.array([ids[i] for i in rows]) for _ in range(3)), features[rows])
        for rows in np.array_split(np.arange(IMAGES), batches)
    ]
    monkeypatch.setattr(similarity, "iter_features", lambda store: iter(parts))
    return SimpleNamespace()


def test_similarities_are_text_and_prototypes_joined(images, target):
    ids, features = images
    chunk = chunk_of(ids, features, target)
    to_text = features @ target.text.T
    np.testing.assert_allclose(chunk.similarities(0.0), to_text, atol=1e-6)
    for row in range(IMAGES):
        those = target.prototypes[fold_of(ids[row : row + 1])[0]]
        found = those.cosines(features[row : row + 1], to_text[row : row + 1])[0]
        expected = 0.7 * to_text[row] + 0.3 * found
        np.testing.assert_allclose(chunk.similarities(0.3)[row], expected, atol=1e-5)


def test_an_image_is_not_scored_by_prototypes_that_it_taught(images, target):
    """Another label for the image as a reference: nothing changes for it, and something for others."""
    ids, features = images
    before = chunk_of(ids, features, target).similarities(0.5)
    labels = target.references.labels.copy()
    labels[7] = (labels[7] + 1) % CLASSES
    references = References(features, labels, target.references.folds, "folders")
    changed = Target(target.text, references, fit_folds(references, target.text))
    after = chunk_of(ids, features, changed).similarities(0.5)
    same_fold = fold_of(ids) == fold_of(ids[7:8])[0]
    np.testing.assert_array_equal(before[same_fold], after[same_fold])
    assert not np.allclose(before[~same_fold], after[~same_fold], atol=1e-4)


def test_one_set_of_prototypes_is_for_all(images, target):
    ids, features = images
    references = References(features, target.references.labels, np.full(IMAGES, -1), "labelled")
    (those,) = made = fit_folds(references, target.text)
    chunk = chunk_of(ids, features, Target(target.text, references, made))
    expected = those.cosines(chunk.images, chunk.to_text)
    np.testing.assert_allclose(chunk.to_prototypes, expected, atol=1e-6)


@pytest.mark.parametrize("made", [(), [None], [None] * FOLDS])
def test_without_prototypes_the_text_stands_alone(images, target, made):
    ids, features = images
    chunk = chunk_of(ids, features, Target(target.text, target.references, made))
    np.testing.assert_allclose(chunk.similarities(0.2), chunk.to_text, atol=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.2, 0.5])
def test_the_background_has_the_weight_of_the_text(images, target, weight):
    """It has no prototypes: beside text of weight 1 − β its cosines count as much as those of the classes do."""
    ids, features = images
    chunk = chunk_of(ids, features, target)
    beside = features @ target.pools["background"].features.vectors()[5:].T
    assert beside.shape[1] == 25
    got = chunk.raw(delta_energy, {**SETTINGS, "background": True, "prototypes": weight})
    expected = delta_energy(chunk.similarities(weight), background=(1 - weight) * beside, **SETTINGS)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    without = chunk.raw(delta_energy, {**SETTINGS, "background": False, "prototypes": weight})
    np.testing.assert_allclose(without, delta_energy(chunk.similarities(weight), **SETTINGS), rtol=1e-5)
    assert not np.allclose(got, without)


@pytest.mark.parametrize("weight", [0.0, 0.2])
def test_corrected_cosines(images, target, weight, monkeypatch):
    """Each cosine to a name has the product of the name with the correction more; those to prototypes have not."""
    monkeypatch.setattr(outside, "_NAMES", 10)  # the background in three blocks
    ids, features = images
    way = np.random.default_rng(3).normal(size=DIMENSION).astype(np.float32) / 4
    chunk = chunk_of(ids, features, replace(target, correction=way))
    to_text = features @ target.text.T + target.text @ way
    names = target.pools["background"].features.vectors()[5:]
    beside = features @ names.T + names @ way
    joined = (1 - weight) * to_text + weight * chunk.to_prototypes
    settings = {**SETTINGS, "background": True, "prototypes": weight}
    got = chunk.raw(delta_energy, {**settings, "corrected": True})
    expected = delta_energy(joined, background=(1 - weight) * beside, **SETTINGS)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    plain = chunk_of(ids, features, target)
    np.testing.assert_allclose(chunk.raw(delta_energy, settings), plain.raw(delta_energy, settings))
    np.testing.assert_allclose(chunk.lead, plain.lead)


def test_a_score_is_given_what_it_asks_for(images, target):
    ids, features = images
    chunk = chunk_of(ids, features, target)

    def own(cosines, *, images, folds, references, reference_folds, classes, power=2.0):
        np.testing.assert_array_equal(cosines, chunk.similarities(0.2))
        np.testing.assert_array_equal(images, features)
        np.testing.assert_array_equal(folds, prototypes.fold_of(ids))
        np.testing.assert_array_equal(references, target.references.features)
        np.testing.assert_array_equal(reference_folds, target.references.folds)
        np.testing.assert_array_equal(classes, target.text)
        return cosines.max(axis=1) ** power

    got = chunk.raw(own, {"power": 3.0, "prototypes": 0.2})
    np.testing.assert_array_equal(got, chunk.similarities(0.2).max(axis=1) ** 3)


@pytest.mark.parametrize("batches", [1, 4])
@pytest.mark.parametrize("rows", [1, 7, 10_000])
def test_chunks_do_not_matter(monkeypatch, images, target, rows, batches):
    ids, features = images
    whole = chunk_of(ids, features, target)
    store = as_store(monkeypatch, images, batches)
    monkeypatch.setattr(similarity, "_CHUNK_BYTES", rows * 4 * 30)
    pieces = list(chunks(store, target, "cpu"))
    assert max(len(piece.image_ids) for piece in pieces) == min(rows, -(-IMAGES // batches))
    assert [i for piece in pieces for i in piece.image_ids] == ids
    assert [i for piece in pieces for i in piece.batch.folders.to_pylist()] == ids
    for function, own in (
        (delta_energy, {**SETTINGS, "background": True, "prototypes": 0.2}),
        (scores.load("knn"), {"prototypes": 0.0}),
        (scores.load("maxlogit"), {"prototypes": 0.5}),
    ):
        joined = np.concatenate([piece.raw(function, own) for piece in pieces])
        np.testing.assert_allclose(joined, whole.raw(function, own), rtol=1e-4, atol=1e-5)
