"""Which images show what the classes look like: by folder, by hand, or presumed."""

import numpy as np
import pytest

from ood_audit.classes import prototypes
from ood_audit.classes.labelled import Labelled
from ood_audit.classes.vocabulary import Vocabulary
from ood_audit.scoring import references
from ood_audit.scoring.references import apart, collect
from ood_audit.store.parts import iter_features
from tests.helpers.made import make_store, problem

DEFAULTS = {"temperature": 1.0, "top_c": 2, "reset_to": 0.0}
EIGHT = Vocabulary(tuple((name,) for name in ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen")))


def store_of(tmp_path, labels, features, text, folder=lambda k: EIGHT.names[k] if k >= 0 else "misc"):
    return make_store(tmp_path / "store", features, [f"{folder(k)}/{i}.png" for i, k in enumerate(labels)], EIGHT, text)


def labelled(features, labels, ids=None):
    return Labelled(features, labels, ids or [""] * len(labels), np.arange(len(labels)))


def ids_by_path(store):
    return dict(store.query("SELECT path, image_id FROM images").rows)


def test_folders_that_are_named_as_classes(tmp_path):
    features, labels, text = problem(8, 80, ood=10)
    found, sample = collect(store_of(tmp_path, labels, features, text), EIGHT, text, None, DEFAULTS)
    assert found.source == "folders"
    assert np.bincount(found.labels).tolist() == [10] * 8  # those in misc are not among them
    np.testing.assert_allclose(found.features, features[:80].astype(np.float16), atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(found.features, axis=1), 1, atol=1e-6)
    assert not sample.presumed
    assert sample.trusted.mean() > 0.9


def test_a_mislabelled_image_teaches_and_does_not_judge(tmp_path):
    features, labels, text = problem(8, 160)
    wrong = labels.copy()
    wrong[3] = (labels[3] + 1) % 8
    found, sample = collect(store_of(tmp_path, wrong, features, text), EIGHT, text, None, DEFAULTS)
    (row,) = np.flatnonzero(np.abs(found.features - features[3]).max(axis=1) < 1e-3)
    assert found.labels[row] == wrong[3]
    assert not sample.trusted[row]


def test_labels_given_count_beside_folders_and_once(tmp_path):
    features, labels, text = problem(8, 80)
    store = store_of(tmp_path, labels, features, text)
    ids = ids_by_path(store)
    by_hand = labelled(
        features[:16], (labels[:16] + 1) % 8, [ids[f"{EIGHT.names[labels[i]]}/{i}.png"] for i in range(16)]
    )
    found, sample = collect(store, EIGHT, text, by_hand, DEFAULTS)
    assert found.source == "labelled and folders"
    assert len(found.labels) == 80
    np.testing.assert_array_equal(found.labels[:16], (labels[:16] + 1) % 8)  # what the person says, not the folder
    np.testing.assert_array_equal(
        found.folds[:16], prototypes.fold_of([f"{EIGHT.names[labels[i]]}/{i}.png" for i in range(16)])
    )
    assert sample.trusted[:16].all()


def test_labelled_images_from_elsewhere_are_in_no_fold(tmp_path):
    features, labels, text = problem(8, 80)
    other, theirs, _ = problem(8, 64, seed=0)
    store = store_of(tmp_path, labels, features, text, folder=lambda k: "all")
    found, sample = collect(store, EIGHT, text, labelled(other, theirs), DEFAULTS)
    assert found.source == "labelled"
    assert (found.folds == -1).all()
    assert sample.trusted.all()


@pytest.mark.parametrize("count", [0, 8, 59])
def test_with_few_labels_half_of_the_images_is_presumed(tmp_path, count):
    features, labels, text = problem(8, 100)
    store = store_of(tmp_path, labels, features, text, folder=lambda k: "all")
    given = labelled(features[:count], labels[:count]) if count else None
    found, sample = collect(store, EIGHT, text, given, DEFAULTS)
    assert found.source == "presumed"
    assert sample.presumed
    assert 50 <= len(found.labels) <= 51
    assert (found.folds >= 0).all()
    assert len(sample.labels) == 100


@pytest.mark.parametrize("images", [1, 3, 10])
def test_few_labels_are_for_calibration_even_where_references_are_presumed(tmp_path, images):
    """40 labelled images, kept apart, and fewer references than that."""
    features, labels, text = problem(8, images)
    store = store_of(tmp_path, labels, features, text, folder=lambda k: "all")
    other, theirs, _ = problem(8, 40)
    given = labelled(other, theirs)
    found, _ = collect(store, EIGHT, text, given, DEFAULTS)
    assert found.source == "presumed"
    own = apart(store, found, given, text)
    assert own is not None
    np.testing.assert_array_equal(own.labels, theirs)
    assert len(own.prototypes) == prototypes.FOLDS
    assert set(prototypes.fold_of(own.names)) <= set(range(prototypes.FOLDS))


def test_calibration_images_are_not_their_own_references(tmp_path):
    """Another picture in place of one: the prototypes that score it stay as they are."""
    features, labels, text = problem(8, 80)
    store = store_of(tmp_path, labels, features, text, folder=lambda k: "all")
    other, theirs, _ = problem(8, 64, seed=0)

    def made(pictures):
        given = labelled(pictures, theirs)
        found, _ = collect(store, EIGHT, text, given, DEFAULTS)
        own = apart(store, found, given, text)
        assert own is not None
        return own, [own.prototypes[fold] for fold in prototypes.fold_of(own.names)]

    changed = other.copy()
    changed[5] = -changed[5]
    (own, before), (_, after) = made(other), made(changed)
    np.testing.assert_array_equal(own.features, other)
    np.testing.assert_array_equal(before[5].means, after[5].means)
    assert sum(not np.array_equal(a.means, b.means) for a, b in zip(before, after, strict=True)) > 40


def test_calibration_takes_a_thousand_images_at_most(tmp_path):
    features, labels, text = problem(8, 5)
    store = store_of(tmp_path, labels, features, text, folder=lambda k: "all")
    other, theirs, _ = problem(8, 3000)
    given = labelled(other, theirs)
    found, _ = collect(store, EIGHT, text, given, DEFAULTS)
    own = apart(store, found, given, text)
    assert own is not None
    assert len(own.names) == len(own.features) == 1000
    none = Labelled(other, theirs, given.image_ids, np.arange(0))
    assert apart(store, found, none, text) is None


def test_very_many_classes_are_compared_with_fewer_images(tmp_path, monkeypatch):
    features, labels, text = problem(8, 80)
    store = store_of(tmp_path, labels, features, text)
    monkeypatch.setattr(references, "MOST_IMAGES", 20)
    monkeypatch.setattr(references, "_COSINES", 8 * 30)
    found, _ = collect(store, EIGHT, text, None, DEFAULTS, seed=1)
    assert found.source == "presumed"  # 30 of 80 are too few to go by the folders
    assert len(found.labels) in (15, 16)


def test_a_random_sample_is_spread_over_the_store(tmp_path):
    """By hash: of every part of the store its share, another one for another start, and the same again."""
    features, _, text = problem(classes=4, images=2000)
    vocabulary = Vocabulary(tuple((f"class {k}",) for k in range(4)))
    store = make_store(tmp_path / "store", features, [f"{i:04}.jpg" for i in range(2000)], vocabulary, text)

    def sampled(start, share):
        return [path for batch in iter_features(store, start=start, share=share) for path in batch.paths.to_pylist()]

    some = sampled(0.3, 0.25)
    assert 400 <= len(some) <= 600
    numbers = np.array([int(path[:4]) for path in some])
    assert np.histogram(numbers, bins=4, range=(0, 2000))[0].min() > 80
    assert sampled(0.3, 0.25) == some
    assert sorted(some + sampled(0.55, 0.75)) == sampled(0.0, 1.0)  # around the end of the circle, and no image twice
