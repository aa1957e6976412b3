# mypy: disable-error-code="arg-type, union-attr, func-returns-value"
"""Prototypes against the formula in their docstring, in float64 and one image at a time."""

import warnings
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import ledoit_wolf

from ood_audit.classes import prototypes
from ood_audit.classes.prototypes import FOLDS, References, fit, fit_folds, fold_of


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def problem(seed, classes=4, references=30, dimension=8, images=5):
    """References around the text features of their class, of which each has at least two."""
    rng = np.random.default_rng(seed)
    text = unit(rng.normal(size=(classes, dimension)))
    labels = np.concatenate([np.repeat(np.arange(classes), 2), rng.integers(0, classes, references - 2 * classes)])
    features = unit(text[labels] + 0.5 * rng.normal(size=(references, dimension)))
    return text, features, labels, unit(rng.normal(size=(images, dimension)))


def cosines(made, images, text):
    return made.cosines(images, images @ text.T)


def slow(image, k, features, labels):
    """cos(W(z − μ), W(μ_k − μ)), W Wᵀ = Σ⁻¹, by way of the products that Σ⁻¹ gives."""
    features = features.astype(np.float64)
    center = np.mean(features, axis=0)
    within = np.stack(
        [f - np.mean(features[labels == label], axis=0) for f, label in zip(features, labels, strict=True)]
    )
    covariance, _ = ledoit_wolf(within, assume_centered=True)
    inverse = np.linalg.inv(covariance)
    a, b = image - center, np.mean(features[labels == k], axis=0) - center
    return (a @ inverse @ b) / np.sqrt((a @ inverse @ a) * (b @ inverse @ b))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(0, 40), st.integers(3, 12))
def test_agrees_with_the_formula(seed, classes, more, dimension):
    text, features, labels, images = problem(seed, classes, 2 * classes + more, dimension)
    made = fit(features, labels, text)
    expected = [[slow(image, k, features, labels) for k in range(classes)] for image in images]
    np.testing.assert_allclose(cosines(made, images, text), expected, atol=2e-4)


@pytest.mark.parametrize("classes", [4, 6])
def test_tensors_have_the_cosines_of_arrays(classes):
    """Of six classes two have no references."""
    text, features, labels, images = problem(0)
    text = np.concatenate([text, unit(np.ones((2, 8)))])[:classes]
    made = fit(features, labels, text)
    tensors = torch.from_numpy(images), torch.from_numpy(images @ text.T)
    np.testing.assert_allclose(made.cosines(*tensors), cosines(made, images, text), atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6))
def test_a_rotation_of_the_features_changes_nothing(seed, classes):
    text, features, labels, images = problem(seed, classes)
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(8, 8)))
    turn = turn.astype(np.float32)
    before = cosines(fit(features, labels, text), images, text)
    after = cosines(fit(features @ turn, labels, text @ turn), images @ turn, text @ turn)
    np.testing.assert_allclose(before, after, atol=2e-4)


def test_order_of_the_references_does_not_matter():
    text, features, labels, images = problem(0)
    order = np.random.default_rng(0).permutation(len(labels))
    np.testing.assert_allclose(
        cosines(fit(features, labels, text), images, text),
        cosines(fit(features[order], labels[order], text), images, text),
        atol=1e-5,
    )


def test_a_direction_in_which_classes_vary_anyway_counts_for_little():
    """Two classes differ a little in x; within both, pictures vary a lot in y."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 100)
    spread = np.stack([0.02 * rng.normal(size=200), 0.5 * rng.normal(size=200), np.ones(200)], axis=1)
    spread[:, 0] += np.where(labels == 0, 0.2, -0.2)
    features = unit(spread)
    text = np.eye(2, 3, dtype=np.float32)
    image = unit(np.array([[0.2, 0.9, 1.0]]))  # clearly of class 0, unusual in y
    assert cosines(fit(features, labels, text), image, text)[0, 0] > 0.8
    offset, towards = image[0] - features.mean(0), features[labels == 0].mean(0) - features.mean(0)
    assert offset @ towards / np.linalg.norm(offset) / np.linalg.norm(towards) < 0.5


def test_a_class_without_references_is_guessed_by_the_line_of_the_others():
    text, features, labels, images = problem(1, classes=5)
    text = np.concatenate([text, unit(np.ones((1, 8)))])
    made = fit(features, labels, text)
    found = cosines(made, images, text)
    to_text = features @ text[:5].T
    slope, intercept = np.polyfit(to_text.ravel(), cosines(made, features, text)[:, :5].ravel(), 1)
    np.testing.assert_allclose(found[:, 5], slope * (images @ text[5]) + intercept, atol=1e-4)
    assert slope > 0
    without = fit(features, labels, text[:5])
    np.testing.assert_allclose(found[:, :5], cosines(without, images, text[:5]), atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_one_reference_a_class(seed):
    text, _, _, images = problem(seed)
    found = cosines(fit(text, np.arange(4), text), np.concatenate([text, images]), text)
    assert np.isfinite(found).all()
    assert (found[:4].argmax(1) == np.arange(4)).all()


def test_too_few_references():
    text, features, labels, _ = problem(0)
    assert fit(features[:0], labels[:0], text) is None
    assert fit(features[:1], labels[:1], text) is None
    assert fit(np.repeat(features[:1], 9, axis=0), np.arange(9) % 4, text) is None  # the same picture as each class
    assert fit(features[labels == 2], labels[labels == 2], text) is None  # μ_k = μ
    assert fit(features[labels == 0], labels[labels == 0], text[:1]) is None
    two = fit(features[[0, 2]], labels[[0, 2]], text)
    assert two is not None
    assert np.isfinite(cosines(two, features, text)).all()


def test_a_class_whose_mean_is_that_of_all_has_no_direction_of_its_own():
    """That of classes 0 and 2 is the mean of class 1: what rounding leaves of its offset is no direction."""
    text = np.eye(3, dtype=np.float32)
    features = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]], np.float32)
    made = fit(features, np.array([0, 2, 1, 1]), text)
    assert (made.means[1] == 0).all()
    assert np.isfinite(cosines(made, features, text)).all()


def test_an_image_that_is_the_mean_is_finite():
    text = np.eye(3, dtype=np.float32)
    features = np.array([[1, 0], [0, 1], [2**-0.5, 2**-0.5]], np.float32) @ np.eye(2, 3, dtype=np.float32)
    labels = np.array([0, 1, 1])
    made = fit(features, labels, text)
    assert np.isfinite(cosines(made, np.concatenate([features, made.center[None]]), text)).all()


def test_many_classes_and_no_warning():
    """20,000 classes, of which 300 have references: memory is not that of a matrix of both."""
    rng = np.random.default_rng(0)
    text = unit(rng.normal(size=(20_000, 16)))
    labels = rng.integers(0, 300, 3000)
    features = unit(text[labels] + 0.2 * rng.normal(size=(3000, 16)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = fit(features, labels, text)
    found = cosines(made, features[:20], text)
    assert np.isfinite(found).all()
    assert (found[:, :300].argmax(1) == labels[:20]).mean() > 0.9


def test_folds_are_of_the_id_alone():
    ids = [f"{i:032x}" for i in np.random.default_rng(0).integers(0, 2**63, 2000)]
    ids = [i[::-1] for i in ids]
    folds = fold_of(ids)
    assert folds.dtype == np.int64
    np.testing.assert_array_equal(fold_of(ids[::-1])[::-1], folds)
    assert [fold_of([i])[0] for i in ids[:20]] == folds[:20].tolist()
    # The same in every version, wherever the images lie.
    assert fold_of(["chair/a.jpg"]).tolist() == [zlib.crc32(b"chair/a.jpg") % FOLDS]
    assert np.bincount(folds, minlength=FOLDS).min() > 2000 / FOLDS * 0.8
    assert len(fold_of([])) == 0


def test_prototypes_of_a_fold_have_not_seen_it():
    text, features, labels, _images = problem(3, references=60)
    folds = np.arange(60) % FOLDS
    made = fit_folds(References(features, labels, folds, "folders"), text)
    assert len(made) == FOLDS
    for fold in range(FOLDS):
        changed = features.copy()
        changed[folds == fold] = unit(np.random.default_rng(fold).normal(size=changed[folds == fold].shape))
        again = fit_folds(References(changed, labels, folds, "folders"), text)
        np.testing.assert_array_equal(made[fold].means, again[fold].means)
        np.testing.assert_array_equal(made[fold].whiten, again[fold].whiten)
        assert not np.array_equal(made[(fold + 1) % FOLDS].means, again[(fold + 1) % FOLDS].means)


def test_references_from_elsewhere_are_in_all_sets():
    text, features, labels, _images = problem(4, references=40)
    none_under_audit = np.full(40, -1)
    (only,) = fit_folds(References(features, labels, none_under_audit, "labelled"), text)
    np.testing.assert_array_equal(only.means, fit(features, labels, text).means)
    mixed = none_under_audit.copy()
    mixed[:10] = 3
    made = fit_folds(References(features, labels, mixed, "labelled and folders"), text)
    for fold, those in enumerate(made):
        rows = slice(10, None) if fold == 3 else slice(None)
        np.testing.assert_array_equal(those.means, fit(features[rows], labels[rows], text).means)


def test_a_fold_that_leaves_nothing_has_no_prototypes():
    text, features, labels, _ = problem(5)
    made = fit_folds(References(features, labels, np.full(30, 2), "folders"), text)
    assert [those is None for those in made] == [False, False, True, False, False]


def test_sampling_is_by_seed_and_in_order():
    assert prototypes.sample(5).tolist() == [0, 1, 2, 3, 4]
    rows = prototypes.sample(1000, seed=1, most=100)
    assert len(set(rows)) == 100
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, prototypes.sample(1000, seed=1, most=100))
    assert not np.array_equal(rows, prototypes.sample(1000, seed=2, most=100))
