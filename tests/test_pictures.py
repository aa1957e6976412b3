"""Evidence from labelled pictures, joined with the score."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ood_audit.classes.prototypes import References
from ood_audit.scoring.pictures import PictureEvidence, Pictures, gain_of, join


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def labelled(text, per_class, noise, rng):
    """Pictures around a direction of each class that is near its name, or has nothing to do with it."""
    labels = np.repeat(np.arange(len(text)), per_class)
    features = unit(text[labels] + noise * rng.normal(size=(len(labels), text.shape[1])))
    return References(features, labels, np.full(len(labels), -1), "labelled")


def test_pictures_that_say_no_more_than_the_names_get_no_weight():
    rng = np.random.default_rng(0)
    text = unit(rng.normal(size=(20, 64)))
    assert gain_of(labelled(text, 2, 0.5, rng), text) == 0


def test_pictures_of_classes_that_the_names_do_not_tell_get_all():
    rng = np.random.default_rng(0)
    looks, names = unit(rng.normal(size=(10, 64))), unit(rng.normal(size=(10, 64)))
    assert gain_of(labelled(looks, 12, 0.05, rng), names) == 1


def evidence(rng, count):
    return PictureEvidence(*(rng.normal(size=count) for _ in range(3)))


@given(st.integers(1, 60), st.floats(0, 1))
def test_more_of_each_evidence_is_never_less_out_of_distribution(count, gain):
    rng = np.random.default_rng(count)
    images, pictures = evidence(rng, count), Pictures(gain, 0.97)
    more = PictureEvidence(images.energy + 1, images.distance + 1, images.nearest + 1)
    assert (join(pictures, images, more) >= join(pictures, images)).all()


def test_others_are_scored_as_the_images_are():
    rng = np.random.default_rng(1)
    images, pictures = evidence(rng, 50), Pictures(1.0, 0.97)
    some = PictureEvidence(images.energy[:9], images.distance[:9], images.nearest[:9])
    assert join(pictures, images, some) == pytest.approx(join(pictures, images)[:9])


def test_without_gain_the_order_is_that_of_the_energy():
    images = evidence(np.random.default_rng(2), 50)
    assert (np.argsort(join(Pictures(0.0, 0.97), images)) == np.argsort(images.energy)).all()
