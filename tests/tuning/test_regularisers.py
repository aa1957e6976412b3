"""The maths of what tuning adds to its loss: OGEN, adaptive masks, teachers and unlabelled images."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional

from ood_audit.encoders.identity import ScoreDefaults
from ood_audit.scoring.kinship import kinship
from ood_audit.tuning import losses, ogen, residual, trainer
from ood_audit.tuning.settings import DEFAULTS
from ood_audit.tuning.trainer import Beside
from tests.helpers.made import problem, unit

CLIP = ScoreDefaults(0.01, 1, 0.0)
QUICK = dataclasses.replace(DEFAULTS["residual"], epochs=5, folds=2)


@pytest.fixture
def images():
    """12 unit images of 4 classes, their labels, the classes' texts and 9 other names."""
    generator = torch.Generator().manual_seed(0)
    texts, names = (functional.normalize(torch.randn(n, 8, generator=generator), dim=1) for n in (4, 9))
    labels = torch.arange(12) % 4
    noise = torch.randn(12, 8, generator=generator)
    return functional.normalize(texts[labels] + 0.3 * noise, dim=1), labels, texts, names


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_an_adaptive_mask_is_the_smallest_set_that_carries_its_share(images, share):
    z, labels, texts, _ = images
    kept = losses.mask(z, texts, labels, proportion=share, how="adaptive", generator=torch.Generator().manual_seed(0))
    products = z * texts[labels]
    for row, products_of in zip(kept == 0, products, strict=True):
        carried = products_of[row]
        wanted = share * products_of.sum()
        assert carried.sum() >= wanted - 1e-4
        if len(carried):
            assert carried.sum() - carried.min() < wanted  # without its smallest element it carries less
            assert row.all() or carried.min() >= products_of[~row].max()


def test_an_adaptive_mask_follows_the_image():
    texts = functional.normalize(torch.ones(1, 8), dim=1)
    sharp = functional.normalize(torch.tensor([[10.0, 1, 1, 1, 1, 1, 1, 1]]), dim=1)
    z, labels = torch.cat([sharp, texts]), torch.tensor([0, 0])
    kept = losses.mask(z, texts, labels, proportion=0.5, how="adaptive", generator=torch.Generator())
    assert (kept == 0).sum(1).tolist() == [1, 4]
    # There is nothing to carry where the similarity is negative.
    assert losses.mask(-z, texts, labels, proportion=0.5, how="adaptive", generator=torch.Generator()).all()


def test_consistency_teaches_the_student_only():
    generator = torch.Generator().manual_seed(1)
    logits, word = torch.randn(2, 5, 3, dtype=torch.float64, generator=generator)
    word, confident = word.softmax(1), torch.tensor([True, False, True, True, False])
    assert torch.autograd.gradcheck(lambda own: losses.consistency(own, word, confident), logits.requires_grad_())
    (slope,) = torch.autograd.grad(losses.consistency(logits, word, confident), logits)
    torch.testing.assert_close(slope[confident], (logits.softmax(1) - word)[confident] / 3)
    assert not slope[~confident].any()
    assert losses.consistency(logits, word, torch.zeros(5, dtype=torch.bool)) == 0


def test_collapse_is_zero_where_classes_are_even():
    torch.testing.assert_close(losses.collapse(50 * torch.eye(4)), torch.tensor(0.0), atol=1e-6, rtol=0)
    one = torch.zeros(4, 4)
    one[:, 2] = 200
    torch.testing.assert_close(losses.collapse(one), torch.log(torch.tensor(4.0)))


def test_background_names_are_one_more_class(images):
    z, labels, texts, names = images
    whole = functional.cross_entropy(10 * z @ torch.cat([texts, names]).T, labels)
    background = torch.logsumexp(10 * z @ names.T, dim=1)
    torch.testing.assert_close(losses.coop(z @ texts.T, labels, scale=10.0, background=background), whole)


def test_statistics_and_nearest_classes(images):
    z, labels, _, _ = images
    z, labels = z[:-1], labels[:-1]
    z, labels = torch.cat([z, z[:1]]), torch.cat([labels, torch.tensor([4])])  # class 4 has one image, 5 none
    mean, spread = ogen.statistics(z, labels, 6)
    torch.testing.assert_close(mean[1], z[labels == 1].mean(0))
    torch.testing.assert_close(spread[1], z[labels == 1].std(0))
    torch.testing.assert_close(spread[4], spread[:4].mean(0))
    near = ogen.nearest(mean, torch.bincount(labels, minlength=6) > 0)
    assert near.shape == (6, 3)
    assert not (near == torch.arange(6)[:, None]).any()
    assert not (near == 5).any()
    assert near[4, 0] == 0  # its image is one of class 0


def test_the_generator_makes_unit_features_in_the_order_of_the_queries():
    torch.manual_seed(0)
    generator = ogen.Generator(8).eval()
    query, key, value = torch.randn(5, 3, 8), torch.randn(5, 2, 8), torch.randn(5, 2, 8)
    found = generator(query, key, value)
    assert found.shape == (15, 8)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(15))
    torch.testing.assert_close(generator(query[2:3, 1:2], key[2:3], value[2:3])[0], found[2 * 3 + 1])


@pytest.mark.parametrize("names", [0, 9])
def test_ogen_teaches_the_generator_first_and_then_the_classes(images, names):
    z, labels, texts, others = images
    torch.manual_seed(0)
    own = ogen.Regulariser(z, labels, texts, others[:names], scale=10.0, epochs=10)
    classes = texts.clone().requires_grad_()
    warm = own.loss(z, classes, labels, 1)
    assert torch.autograd.grad(warm, classes, allow_unused=True, retain_graph=True) == (None,)
    warm.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in own.generator.parameters())
    (slope,) = torch.autograd.grad(own.loss(z, classes, labels, 2), classes)
    assert (slope.abs().sum(1) > 0).all()


def test_classes_left_out_play_unknown_ones():
    torch.manual_seed(0)
    classes, labels = functional.normalize(torch.randn(10, 8), dim=1), torch.arange(10)
    draws = [ogen.left_out(classes, labels) for _ in range(3)]
    assert len({tuple(sorted(out.tolist())) for out, _ in draws}) > 1
    for out, unknown in draws:
        assert unknown.shape == (10, 3)
        assert set(torch.nonzero(unknown[:, 0] < 0).flatten().tolist()) == set(out.tolist())
        for label in set(range(10)) - set(out.tolist()):
            assert set(unknown[label].tolist()) == {0, 1, 2}
            assert unknown[label, 0] == (classes[out] @ classes[label]).argmax()
    assert ogen.left_out(classes[:4], labels[:4])[1].shape == (4, 0)  # one class alone is told from no other


@pytest.mark.parametrize(
    "given",
    [
        {"regulariser": "ogen"},
        {"regulariser": "pull"},
        {"apart": 1.0},
        {"distil": 1000.0, "window": 2},
        {"unlabelled": True},
        {"loss": "ebm", "mask": "adaptive"},
    ],
)
def test_each_changes_what_is_learned_and_is_repeatable(given):
    features, labels, text = problem(6, 72)
    names = unit(np.random.default_rng(3).normal(size=(40, 16)))
    beside = Beside(background=names, unlabelled=features)
    settings = dataclasses.replace(QUICK, **given)
    plain = residual.fit(features, labels, text, CLIP, QUICK, beside=beside)
    found, again = (residual.fit(features, labels, text, CLIP, settings, beside=beside) for _ in range(2))
    np.testing.assert_array_equal(found.class_features, again.class_features)
    assert np.abs(found.history[-1].loss - plain.history[-1].loss) > 1e-6  # type: ignore[operator]
    np.testing.assert_allclose(np.linalg.norm(found.class_features, axis=1), 1, atol=1e-5)


def test_without_their_weight_the_terms_are_not_there():
    features, labels, text = problem(6, 72)
    settings = dataclasses.replace(QUICK, regulariser="ogen", ogen=0.0, unlabelled=True, consistency=0.0)
    plain = residual.fit(features, labels, text, CLIP, dataclasses.replace(QUICK, background=False))
    found = residual.fit(
        features, labels, text, CLIP, dataclasses.replace(settings, background=False, unlabelled=False)
    )
    np.testing.assert_array_equal(found.learned, plain.learned)


def test_classes_without_images_share_what_residuals_have_in_common():
    learned, shown = torch.randn(4, 8), torch.tensor([[1.0], [1.0], [0.0], [1.0]])
    found = residual.shared(learned, shown)
    torch.testing.assert_close(found[[0, 1, 3]], learned[[0, 1, 3]])
    torch.testing.assert_close(found[2], learned[[0, 1, 3]].mean(0))


def test_folds_of_many_classes_have_a_part_of_them():
    folds = trainer.leave_out(np.repeat(np.arange(500), 2), 501, QUICK)
    assert [len(kept) for kept in folds] == [140, 140]
    assert folds[0] != folds[1]


def test_kinship_tells_other_styles():
    rng = np.random.default_rng(0)
    text = unit(rng.normal(size=(5, 32)))
    labels = np.arange(60) % 5

    def drawn(style, seed):
        noise = np.random.default_rng(seed).normal(size=(60, 32))
        return unit(text[labels] + 0.1 * noise + style)

    photos = drawn(0.0, 1)
    assert kinship(photos, labels, drawn(0.0, 2), text) > 0.8
    assert kinship(photos, labels, drawn(0.15 * rng.normal(size=32), 2), text) == 0
    assert kinship(photos[:5], labels[:5], drawn(0.3, 2), text) == 1
