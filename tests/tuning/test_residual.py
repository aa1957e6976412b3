"""Tuning by residual: its maths, and the command on pictures and on imported vectors."""

import dataclasses

import numpy as np
import pytest
import torch

import ood_audit
from ood_audit.classes import background, prompts
from ood_audit.encoders.identity import ScoreDefaults
from ood_audit.errors import UsageError
from ood_audit.scoring import plan
from ood_audit.scoring.context import Context
from ood_audit.scoring.settings import ScoreSettings
from ood_audit.store import open_store
from ood_audit.tuning import losses, residual
from ood_audit.tuning.settings import DEFAULTS
from ood_audit.tuning.trainer import Beside, foremost, leave_out, split
from tests.conftest import EXAMPLES
from tests.helpers.cli import invoke
from tests.helpers.made import problem, unit

CLIP = ScoreDefaults(0.01, 1, 0.0)
QUICK = dataclasses.replace(DEFAULTS["residual"], epochs=5, folds=2)


@pytest.fixture
def data():
    """72 images of six classes with their labels, and the features of the names."""
    return problem(6, 72)


def test_class_features_have_length_1_and_without_alpha_are_the_text():
    generator = torch.Generator().manual_seed(0)
    text = torch.nn.functional.normalize(torch.randn(5, 8, generator=generator), dim=1)
    r = torch.randn(5, 8, generator=generator)
    torch.testing.assert_close(residual.class_features(text, r).norm(dim=1), torch.ones(5))
    torch.testing.assert_close(residual.class_features(text, r, alpha=0.0), text)
    by_hand = residual.class_features(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.5]]), alpha=0.5)
    torch.testing.assert_close(by_hand, torch.tensor([[0.8, 0.6]]))


def test_gradient_is_the_slope():
    generator = torch.Generator().manual_seed(1)
    images, text, r = (torch.randn(n, 6, dtype=torch.float64, generator=generator) for n in (7, 4, 4))
    images, text = (torch.nn.functional.normalize(rows, dim=1) for rows in (images, text))
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2])

    def loss(own):
        return losses.coop(images @ residual.class_features(text, own).T, labels, scale=10.0)

    assert torch.autograd.gradcheck(loss, r.requires_grad_())


@pytest.mark.parametrize("loss", ["coop", "ebm"])
def test_fit_learns(data, loss):
    features, labels, text = data
    settings = dataclasses.replace(QUICK, loss=loss, folds=0, epochs=20, lr=0.02)
    found = residual.fit(features, labels, text, CLIP, settings)
    first, last = found.history[1].loss, found.history[-1].loss
    assert first is not None
    assert last is not None
    assert last < first
    assert found.epoch == 20
    np.testing.assert_allclose(np.linalg.norm(found.class_features, axis=1), 1, atol=1e-5)
    again = residual.fit(features, labels, text, CLIP, settings)
    np.testing.assert_array_equal(again.class_features, found.class_features)
    other = residual.fit(features, labels, text, CLIP, dataclasses.replace(settings, seed=1))
    assert not np.array_equal(other.held_out, found.held_out)


def test_folds_judge_the_epochs(data):
    features, labels, text = data
    found = residual.fit(features, labels, text, CLIP, QUICK)
    assert all(len(figures.merits) == 2 for figures in found.history)
    assert found.after in found.history
    assert found.after.forecast_auroc is not None
    # Before training the residual is none.
    assert found.history[0].accuracy == found.before.accuracy


def test_of_one_image_a_class_the_early_epoch_is_kept(data):
    """Nothing can be held out, so nothing tells that more steps harm; without folds by wish the last one is kept."""
    features, labels, text = data
    first = np.array([np.flatnonzero(labels == k)[0] for k in range(len(text))])
    settings = dataclasses.replace(QUICK, epochs=20)
    found = residual.fit(features[first], labels[first], text, CLIP, settings)
    assert found.epoch == 2
    assert len(found.held_out) == 0
    last = residual.fit(features[first], labels[first], text, CLIP, dataclasses.replace(settings, folds=0))
    assert last.epoch == 20


def test_classes_without_images_move_as_the_others_do_on_average(data):
    features, labels, text = data
    some = labels < 4
    settings = dataclasses.replace(QUICK, folds=0, lr=0.01, evened=0.0)
    found = residual.fit(features[some], labels[some], text, CLIP, settings)
    assert not found.learned[4:].any()
    moved = text[4:] + 0.5 * found.learned[:4].mean(0)
    np.testing.assert_allclose(found.class_features[4:], unit(moved), atol=1e-6)
    assert np.abs(found.class_features[:4] - text[:4]).max() > 1e-4


def test_alignment_evens_out_the_spread_around_the_names():
    """With all of a covariance and p = 1/2 the moved differences would be as wide in all directions."""
    generator = torch.Generator().manual_seed(2)
    names = torch.nn.functional.normalize(torch.randn(400, 5, generator=generator), dim=1)
    spread = (
        torch.diag(torch.tensor([3.0, 1.0, 1.0, 1.0, 0.2])) @ torch.linalg.qr(torch.randn(5, 5, generator=generator))[0]
    )
    images = names + 0.1 + torch.randn(400, 5, generator=generator) @ spread
    away = images - names - (images - names).mean(0)
    covariance = 5 * away.T @ away / away.square().sum()
    shrunk = 0.4 * covariance + 0.6 * torch.eye(5)
    move = residual.alignment(images, names, 0.5, 0.5)
    torch.testing.assert_close(move[:-1] @ shrunk @ move[:-1], torch.eye(5), atol=1e-4, rtol=0)
    way = (images - names).mean(0)
    torch.testing.assert_close(names @ move[:-1] + move[-1], (names + way / 2) @ move[:-1])
    torch.testing.assert_close(residual.alignment(images, names, 0.5, 0.0)[:-1], torch.eye(5), atol=1e-5, rtol=0)
    lone = residual.alignment(images[:1], names[:1], 0.5, 0.15)  # of one image there is no covariance
    torch.testing.assert_close(lone[:-1], lone[0, 0] * torch.eye(5))


def test_folds_align_by_the_images_that_they_train_on(data, monkeypatch):
    """Images that a fold holds or leaves out tell nothing beforehand."""
    features, labels, text = data
    seen = []

    def alignment(images, names, gap, power):
        seen.append(images.numpy())
        return torch.cat([torch.eye(images.shape[1]), torch.zeros(1, images.shape[1])])

    monkeypatch.setattr(residual, "alignment", alignment)
    found = residual.fit(features, labels, text, CLIP, QUICK)
    main, *folds = [{row.tobytes() for row in images} for images in seen]
    held_out = {row.tobytes() for row in features[found.held_out]}
    assert not main & held_out
    assert len(main) + len(held_out) == len(features)
    assert len(folds) == QUICK.folds
    kept = leave_out(labels[found.held_out], len(text), QUICK)
    for number, (images, own) in enumerate(zip(folds, kept, strict=True), 1):
        rows, _ = split(labels, None, number)
        assert images == {row.tobytes() for row in features[rows[np.isin(labels[rows], own)]]}


def test_the_early_epoch_is_kept_unless_another_is_surely_better():
    def of(*means, spread=0.0):
        return [(mean - spread * k, mean + spread * k) for k, mean in enumerate(means)]

    assert foremost(of(0.7, 0.8, 0.8, 0.8, 0.8, 0.8)) == 1
    assert foremost(of(0.7, 0.8, 0.9, 1.0, 0.9, 0.8)) == 3
    assert foremost(of(0.7, 0.8, 0.8, 0.9, 0.9, 0.9, spread=0.1)) == 1  # it may be by chance
    assert foremost(of(0.9, 0.7, 0.6, 0.5, 0.5, 0.5)) == 0  # tuning harms
    assert foremost(of(0.7)) == 0
    assert foremost([()] * 21) == 2  # no image could be held out


def test_apart_by_hand():
    """Of two images one is like another class than its own, and nothing else counts."""
    images, classes, labels = torch.eye(3)[:2], torch.eye(3)[[0, 2]], torch.tensor([1, 0])
    background = torch.tensor([2.0, 3.0])
    found = losses.apart(images @ classes.T, labels, scale=4.0, background=background)
    first, second = (torch.tensor([own, b]).logsumexp(0) - b for own, b in ((4.0, 2.0), (0.0, 3.0)))
    torch.testing.assert_close(found, (first + second) / 2)
    images, classes = (torch.nn.functional.normalize(torch.randn(n, 4).double(), dim=1) for n in (5, 3))
    labels, own = torch.tensor([0, 1, 2, 0, 1]), torch.randn(5).double()
    assert torch.autograd.gradcheck(
        lambda t: losses.apart(images @ t.T, labels, scale=3.0, background=own), classes.requires_grad_()
    )


def test_tune_on_pictures_and_report(store_copy):
    labels = EXAMPLES / "classes.txt"
    done = invoke(
        "tune",
        "--store",
        store_copy,
        "--labels",
        labels,
        "--method",
        "residual",
        "--epochs",
        "2",
        "--lr",
        "1e-5",
        "--name",
        "own",
    )
    assert done.returncode == 0, done.stderr
    assert "method: residual on the class features" in done.stderr
    found = prompts.choose(open_store(store_copy), ood_audit.classes.vocabulary.read_vocabulary(labels), "own")
    assert found is not None
    assert found.recipe["settings"]["method"] == "residual"
    report = ood_audit.report(store_copy, settings=ScoreSettings(prompts="own", auto=False), top=3)
    assert report.scores.prompts == "own"


def test_options_of_prompts_need_their_method(store_copy):
    done = invoke(
        "tune",
        "--store",
        store_copy,
        "--labels",
        EXAMPLES / "classes.txt",
        "--method",
        "residual",
        "--context-vectors",
        "8",
    )
    assert done.returncode == 2
    assert "use --method prompt" in done.stderr
    with pytest.raises(UsageError, match="`method` x: choose prompt, residual"):
        ood_audit.tune(store_copy, settings=dataclasses.replace(QUICK, method="x"))


def imported(folder, *, texts):
    features, labels, text = problem(6, 72)
    names = [f"thing {k}" for k in range(6)]
    paths = np.array([f"{names[k]}/{i}.jpg" for i, k in enumerate(labels)])
    np.savez(folder / "f.npz", features=features, paths=paths)
    np.savez(folder / "t.npz", names=np.array(names), texts=text)
    given = ("--texts", folder / "t.npz") if texts else ()
    done = invoke("import", folder / "f.npz", "--store", folder / "store", *given)
    assert done.returncode == 0, done.stderr
    (folder / "classes.txt").write_text("\n".join(names))
    return folder / "store"


def test_imported_vectors_need_no_model(tmp_path):
    store = imported(tmp_path, texts=True)
    done = invoke(
        "tune",
        "--store",
        store,
        "--labels",
        tmp_path / "classes.txt",
        "--method",
        "residual",
        "--epochs",
        "3",
        "--name",
        "own",
    )
    assert done.returncode == 0, done.stderr
    assert "from 72 labelled images of 6 classes" in done.stderr
    best = ood_audit.report(store, settings=ScoreSettings(prompts="own", auto=False), top=3)
    assert best.scores.prompts == "own"
    (found,) = open_store(store).query("SELECT max(max_cosine) FROM scores").rows
    own = prompts.choose(open_store(store), best.scores.vocabulary, "own")
    assert own is not None
    assert found[0] == pytest.approx(float((problem(6, 72)[0] @ own.class_features.T).max()), abs=1e-3)


def test_imported_vectors_without_names_say_what_is_missing(tmp_path):
    store = imported(tmp_path, texts=False)
    done = invoke("tune", "--store", store, "--labels", tmp_path / "classes.txt", "--method", "residual")
    assert done.returncode == 1
    assert "give the vectors of the names with `ood-audit import --texts FILE`" in done.stderr


def test_names_are_moved_by_half_of_the_way_to_the_images(data):
    """What is learned is of the moved names, and beside it stands how the background is to be moved."""
    features, labels, text = data
    names = problem(8, 1, seed=5)[2]
    settings = dataclasses.replace(QUICK, epochs=0, gap=0.5, evened=0.0)
    found = residual.fit(features, labels, text, CLIP, settings, beside=Beside(names))
    trained = np.setdiff1d(np.arange(len(labels)), found.held_out)
    half = (features[trained] - text[labels[trained]]).mean(0) / 2
    assert found.move is not None
    np.testing.assert_allclose(found.move[:-1], np.eye(len(half)), atol=1e-5)
    np.testing.assert_allclose(found.move[-1], half, atol=1e-6)
    np.testing.assert_allclose(found.class_features, unit(text + half), atol=1e-5)
    # The figures before are those of the names where they were.
    as_they_are = dataclasses.replace(settings, gap=0.0)
    alone = residual.fit(features, labels, text, CLIP, as_they_are, beside=Beside(names))
    assert found.before == alone.before
    assert alone.move is None
    without = residual.fit(features, labels, text, CLIP, dataclasses.replace(settings, evened=0.15)).move
    assert without is not None
    assert not without[-1].any()  # without a background


def test_reports_move_the_background_beside_the_classes(store_copy, monkeypatch):
    """A name of the background is compared where `tune` put it; weighed less, it is moved less."""
    monkeypatch.setattr(background, "_PATIENCE", float("inf"))  # however slow the machine is, all names
    opened = open_store(store_copy)
    labels = ood_audit.classes.vocabulary.read_vocabulary(EXAMPLES / "classes.txt")
    settings = dataclasses.replace(QUICK, epochs=1, gap=0.5)
    ood_audit.tune(opened, labels=EXAMPLES / "classes.txt", settings=settings, name="own")
    found = prompts.choose(opened, labels, "own")
    assert found is not None
    assert found.move is not None
    context = Context(opened, labels, "cpu")
    stayed = (
        plan.prepare(context, ScoreSettings(background=True), ["auto"]).target.pools["background"].features.vectors()
    )
    for alike in (1.0, 0.3):
        monkeypatch.setattr(plan, "_kinship", lambda *given, alike=alike: alike)
        target = plan.prepare(context, ScoreSettings(background=True), ["auto"], found).target
        expected = alike * (stayed @ found.move[:-1] + found.move[-1]) + (1 - alike) * stayed
        np.testing.assert_allclose(target.pools["background"].features.vectors(), unit(expected), atol=1e-3)
