"""Evidence from pictures of the classes, joined with the score where that tells left-out classes better."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ood_audit.scoring import pictures, selection
from ood_audit.scoring.pictures import PictureEvidence, Pictures, evidence_in, forecast, join, shown
from ood_audit.scoring.scores.delta_energy import delta_energy
from ood_audit.scoring.selection import Grid, Sample
from tests.helpers.made import unit

SETTINGS = {"temperature": 0.05, "top_c": 1, "reset_to": 0.0, "background": False, "prototypes": 0.0}


def sample(text, per_class, noise, rng):
    """Pictures around a direction for each class."""
    labels = np.repeat(np.arange(len(text)), per_class)
    features = unit(text[labels] + noise * rng.normal(size=(len(labels), text.shape[1])))
    return Sample(features, labels, np.ones(len(labels), bool), presumed=False)


def forecasts(of, those, text):
    """The AUROC of ΔEnergy alone and of all evidence; the settings are chosen, and used, in the same rounds."""
    chosen = selection.select(of, text, {}, grid=Grid.only(SETTINGS), look=partial(evidence_in, pictures=those))
    played = selection.play(of, text, {}, Grid.only(SETTINGS))
    for one, again in zip(chosen.rounds, played, strict=True):
        np.testing.assert_array_equal(one.is_ood, again.is_ood)
        np.testing.assert_array_equal(one.raw, delta_energy(again.to_text, temperature=0.05, top_c=1, reset_to=0.0))
    return chosen.forecast, forecast(chosen.rounds, those.weight)


def test_pictures_that_say_no_more_than_the_names_are_not_joined():
    rng = np.random.default_rng(0)
    text = unit(rng.normal(size=(30, 64)))
    of = sample(text, 2, 0.2, rng)
    alone, joined = forecasts(of, shown(of, 0.97, 60), text)
    assert alone > joined


def test_pictures_of_classes_that_the_names_do_not_tell_are_joined():
    rng = np.random.default_rng(0)
    looks, names = unit(rng.normal(size=(10, 64))), unit(rng.normal(size=(10, 64)))
    of = sample(looks, 12, 0.05, rng)
    alone, joined = forecasts(of, shown(of, 0.999, 120), names)
    assert joined > alone + 0.1


def test_the_nearest_picture_is_of_a_kept_class_and_no_duplicate():
    rng = np.random.default_rng(0)
    text = unit(rng.normal(size=(8, 16)))
    of = sample(text, 8, 0.2, rng)
    played = next(selection.play(of, text, {}, Grid.only(SETTINGS), rounds=1))
    nearest = -evidence_in(played, shown(of, 0.9, 64))[1]
    kept = of.features[played.kept[of.labels]]
    assert 0 < len(kept) < len(of.features)
    for image, found in zip(played.features, nearest, strict=True):
        others = kept @ image
        assert found == pytest.approx(others[others <= 0.9].max(), abs=1e-6)


def test_all_pictures_count_but_where_there_are_very_many_images(monkeypatch):
    rng = np.random.default_rng(0)
    of = sample(unit(rng.normal(size=(8, 16))), 40, 0.2, rng)
    of.trusted[:3] = False
    those = shown(of, 0.9, audited=5000)
    np.testing.assert_array_equal(those.features, of.features[3:])
    np.testing.assert_array_equal(those.labels, of.labels[3:])
    monkeypatch.setattr(pictures, "_FEWEST", 20)
    assert len(shown(of, 0.9, audited=10_000_000).labels) == 100
    assert len(shown(of, 0.9, audited=100_000_000).labels) == 20


def evidence(rng, count):
    return PictureEvidence(*(rng.normal(size=count) for _ in range(3)))


@given(st.integers(1, 60))
def test_more_of_each_evidence_is_never_less_out_of_distribution(count):
    images = evidence(np.random.default_rng(count), count)
    more = PictureEvidence(images.energy + 1, images.distance + 1, images.nearest + 1)
    assert (join(images, 0.5, more) >= join(images, 0.5)).all()


def test_others_are_scored_as_the_images_are():
    images = evidence(np.random.default_rng(1), 50)
    some = PictureEvidence(images.energy[:9], images.distance[:9], images.nearest[:9])
    assert join(images, 1.0, some) == pytest.approx(join(images, 1.0)[:9])


def test_the_nearest_picture_is_that_which_looks_most_alike():
    """By looks where all have one; what is a copy is told by the features even then."""
    rng = np.random.default_rng(0)
    text = unit(rng.normal(size=(8, 16)))
    plain = sample(text, 8, 0.2, rng)
    looks = unit(rng.normal(size=(64, 5)))
    of = replace(plain, looks=looks)
    those = shown(of, 0.9, 64)
    assert (those.weight, shown(plain, 0.9, 64).weight) == (1.0, 0.5)
    played = next(selection.play(of, text, {}, Grid.only(SETTINGS), rounds=1))
    found = -evidence_in(played, those)[1]
    kept = played.kept[of.labels]
    assert played.looks is not None
    for image, look, cosine in zip(played.features, played.looks, found, strict=True):
        others = (looks[kept] @ look)[of.features[kept] @ image <= 0.9]
        assert cosine == pytest.approx(others.max(), abs=1e-6)


@pytest.mark.parametrize("copied", [0, 2, 30])
def test_copies_of_an_image_are_never_its_nearest_picture_however_many_there_are(copied):
    rng = np.random.default_rng(copied)
    features, looks = unit(rng.normal(size=(90, 16))), unit(rng.normal(size=(90, 5)))
    features[:copied], looks[:copied] = features[0], unit(looks[0] + 0.01 * rng.normal(size=(copied, 5)))
    nearest = pictures.nearest(features, Pictures(features, np.zeros(90, int), 0.9, looks), looks)
    for image, look, found in zip(features, looks, nearest, strict=True):
        assert -found == pytest.approx((looks @ look)[features @ image <= 0.9].max(), abs=1e-6)


def test_an_image_among_nothing_but_copies_has_no_nearest_picture():
    features, looks = np.ones((7, 1), np.float32), unit(np.random.default_rng(0).normal(size=(7, 3)))
    assert pictures.nearest(features, Pictures(features, np.zeros(7, int), 0.9, looks), looks).tolist() == [1.0] * 7
