"""Prompt tuning: the losses against their formulas, the hook in each kind of text tower, and the trainer."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from ood_audit.encoders.clip import load_encoder
from ood_audit.errors import UsageError
from ood_audit.tuning import losses
from ood_audit.tuning.prompt import class_features, prepare
from ood_audit.tuning.settings import TuneSettings
from ood_audit.tuning.trainer import check, choose, fit, leave_out, split
from tests.encoders.test_clip import MODELS, VIT, save

NAMES = [("airplane",), ("butterfly", "moth"), ("electric guitar",), ("cup",), ("chair", "seat", "stool")]


def problem(seed: int, rows: int = 6, classes: int = 4, dimension: int = 12) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    images, texts = (torch.randn(n, dimension, dtype=torch.float64, generator=generator) for n in (rows, classes))
    labels = torch.randint(classes, (rows,), generator=generator)
    return normalize(images, dim=1), normalize(texts, dim=1), labels


READINGS = {"literal": losses.ebm_literal, "renormalised": losses.ebm_renormalised}
OPTIONS: dict[str, Any] = {"scale": 10.0, "weight": 0.7, "temperature": 0.5}


def mask(images, texts, labels, proportion, how):
    return losses.mask(images, texts, labels, proportion=proportion, how=how, generator=torch.Generator())


@pytest.mark.parametrize("how", ["top", "keep", "random"])
@pytest.mark.parametrize("reading", READINGS)
def test_gradient_is_the_slope(reading, how):
    """By finite differences: autograd's gradient of loss and pull is that of the formula with the mask held fixed."""
    images, texts, labels = problem(0)
    written = problem(1)[1]

    def loss(t):
        kept = mask(images, texts, labels, 0.4, how)
        return READINGS[reading](images, t, labels, kept, **OPTIONS) + 2 * losses.pull(t, written)

    assert torch.autograd.gradcheck(loss, texts.clone().requires_grad_(), eps=1e-7)


@given(seed=st.integers(0, 10**6), proportion=st.floats(0, 1), temperature=st.floats(0.05, 2))
def test_what_ebm_raises_is_a_bound(seed, proportion, temperature):
    """E_2 − E_0 ≤ E_1 − E_0 where the masked similarity s'_y is not below the v that ΔEnergy resets to."""
    images, texts, labels = problem(seed)
    kept = mask(images, texts, labels, proportion, "top")
    edited = losses.edited_cosines(images, texts, labels, kept)
    own = edited.gather(1, labels[:, None])
    cosines = images @ texts.T
    for low in (own.min() - 0.1, own.min()):
        reset = cosines.scatter(1, labels[:, None], float(low))
        change = losses.energy(reset, temperature) - losses.energy(cosines, temperature)
        bound = losses.energy(edited, temperature) - losses.energy(cosines, temperature)
        assert (bound <= change + 1e-12).all()
        assert losses.bound(cosines, edited, temperature) == pytest.approx(float(torch.exp(-bound).mean()))


def test_mask_by_hand():
    images = torch.tensor([[0.5, 0.5, -0.5, 0.5]])
    texts = torch.tensor([[0.1, 0.7, -0.7, 0.1], [1.0, 0.0, 0.0, 0.0]])
    labels = torch.tensor([0])
    top = mask(images, texts, labels, 0.5, "top")
    assert top.tolist() == [[1, 0, 0, 1]]
    assert mask(images, texts, labels, 0.5, "keep").tolist() == [[0, 1, 1, 0]]
    assert mask(images, texts, labels, 0.25, "random").sum() == 3
    torch.testing.assert_close(losses.edited_cosines(images, texts, labels, top), torch.tensor([[0.1, 0.5]]))


def test_losses_by_hand():
    images, texts, labels = torch.eye(3)[:1], torch.tensor([[0.8, 0.0, 0.6], [0.0, 1.0, 0.0]]), torch.tensor([0])
    cosines = torch.tensor([[0.8, 0.0]])
    masked = torch.tensor([[0.0, 0.0]])  # what is left of z without its first element
    kept = torch.tensor([[0.0, 1.0, 1.0]])
    change = losses.energy(cosines, 0.5) - losses.energy(masked, 0.5)
    ce, edited = (torch.nn.functional.cross_entropy(10 * s, labels) for s in (cosines, masked))
    own: dict[str, Any] = {"scale": 10.0, "weight": 0.7, "temperature": 0.5}
    torch.testing.assert_close(losses.ebm_literal(images, texts, labels, kept, **own), edited + 0.7 * change.exp()[0])
    both = ce + edited + 0.7 * change.exp()[0]
    torch.testing.assert_close(losses.ebm_renormalised(images, texts, labels, kept, **own), both)
    torch.testing.assert_close(losses.pull(texts, torch.tensor([[1.0, 0, 0], [0, 1, 0]])), torch.tensor(0.1))


def test_without_its_term_and_mask_ebm_is_coop():
    images, texts, labels = problem(1)
    coop = losses.coop(images @ texts.T, labels, scale=10.0)
    none: dict[str, Any] = {"scale": 10.0, "weight": 0.0, "temperature": 1.0}
    for how, proportion in (("top", 0.0), ("random", 0.0), ("keep", 1.0)):
        kept = mask(images, texts, labels, proportion, how)
        assert losses.ebm_literal(images, texts, labels, kept, **none) == coop
        torch.testing.assert_close(losses.ebm_renormalised(images, texts, labels, kept, **none), 2 * coop)


def hugging_face(folder):
    transformers = pytest.importorskip("transformers")
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "butterfly", "airplane", "."]
    words += ["moth", "electric", "guitar", "cup", "chair", "seat", "stool", "cat", "dog"]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    transformers.BertConfig(vocab_size=len(words), **sizes).save_pretrained(folder)
    text = {"hf_model_name": str(folder), "hf_tokenizer_name": str(folder), "hf_model_pretrained": False}
    text |= {"hf_pooler_type": "mean_pooler", "context_length": 16, "hf_proj_type": "linear"}
    return save(folder, {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": text})


@pytest.mark.parametrize("kind", ["vit", "custom text", "siglip", "hugging face"])
def test_context_of_words_is_the_prompt(tmp_path, kind):
    name = hugging_face(tmp_path / "m") if kind == "hugging face" else save(tmp_path / "m", MODELS[kind])
    encoder = load_encoder(name, device="cpu")
    prompts, context = prepare(encoder, NAMES, init="a photo of a", vectors=None, seed=0)
    assert len(context) == 4
    learned = torch.tensor(context, requires_grad=True)
    features = class_features(encoder, prompts, learned)
    for k, names in enumerate(NAMES):
        expected = encoder.encode_texts([f"a photo of a {name}." for name in names]).mean(0)
        np.testing.assert_allclose(features[k].detach(), expected / np.linalg.norm(expected), atol=1e-5)
    few = class_features(encoder, prompts.of([4, 1]), learned)
    torch.testing.assert_close(few, features[[4, 1]], atol=1e-5, rtol=0)
    features[:, 0].sum().backward()
    assert learned.grad is not None
    assert (learned.grad.abs().sum(1) > 0).all()
    other = class_features(encoder, prompts, 30 * learned.flip(1))
    assert not torch.allclose(other, features, atol=1e-3)


def test_more_vectors_than_words(encoder):
    prompts, context = prepare(encoder, NAMES, init="a photo of a", vectors=6, seed=0)
    _, words = prepare(encoder, NAMES, init="a photo of a", vectors=None, seed=0)
    np.testing.assert_array_equal(context[2:], words)
    assert prepare(encoder, NAMES, init=None, vectors=6, seed=0)[1].std() == pytest.approx(0.02, rel=0.2)
    assert prepare(encoder, NAMES, init=None, vectors=6, seed=0)[0].tokens.shape == prompts.tokens.shape


def test_many_classes_are_encoded_in_chunks(encoder, monkeypatch):
    prompts, start = prepare(encoder, NAMES, init="a photo of a", vectors=None, seed=0)
    found = []
    for chunk in (256, 2):
        monkeypatch.setattr("ood_audit.tuning.prompt._CHUNK", chunk)
        context = torch.tensor(start, requires_grad=True)
        features = class_features(encoder, prompts, context)
        features[:, :3].sum().backward()
        found.append((features.detach(), context.grad))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("classes", "options", "complaint"),
    [
        ([("a " * 40,), ("dog",)], {}, "more than the 32 tokens"),
        (NAMES, {"vectors": 29, "init": None}, "more than the 32 tokens"),
        (NAMES, {"vectors": 50, "init": None}, "more than the model reads"),
        (NAMES, {"vectors": 3}, "need 4"),
    ],
)
def test_too_long_a_prompt_is_an_error(encoder, classes, options, complaint):
    with pytest.raises(UsageError, match=complaint):
        prepare(encoder, classes, **{"init": "a photo of a", "vectors": None, "seed": 0, **options})


@pytest.fixture(scope="module")
def labelled(encoder):
    """Noisy text features as the images of five classes, ten each."""
    texts = encoder.encode_texts([f"a drawing of a {names[0]}" for names in NAMES])
    labels = np.arange(50) % 5
    noise = np.random.default_rng(0).normal(0, 0.15, (50, texts.shape[1]))
    features = texts[labels] + noise.astype(np.float32)
    return features / np.linalg.norm(features, axis=1, keepdims=True), labels


QUICK = TuneSettings(epochs=3, folds=2)


def test_fit(encoder, labelled):
    features, labels = labelled
    before = {name: value.clone() for name, value in encoder._model.state_dict().items()}
    seen = []
    tuned = fit(features, labels, NAMES, encoder, QUICK, lambda figures, epochs: seen.append((figures.epoch, epochs)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert [f.epoch for f in tuned.history] == [0, 1, 2, 3]
    assert tuned.after in tuned.history
    assert tuned.class_features.shape == (5, 384)
    assert tuned.class_features.dtype == tuned.learned.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(tuned.class_features, axis=1), 1, atol=1e-5)
    for name, value in encoder._model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(p.requires_grad for p in encoder._model.parameters())
    assert not encoder.token_embedding._forward_hooks
    again = fit(features, labels, NAMES, encoder, QUICK)
    np.testing.assert_array_equal(again.class_features, tuned.class_features)
    assert again.history == tuned.history
    other = fit(features, labels, NAMES, encoder, dataclasses.replace(QUICK, seed=1))
    assert other.history != tuned.history
    # The figures before: the words' context is the hand-written prompt.
    assert tuned.before.accuracy == tuned.history[0].accuracy
    assert tuned.before.gap == pytest.approx(tuned.history[0].gap, abs=1e-6)


def test_figures_are_of_images_not_trained_on(encoder, labelled):
    features, labels = labelled
    tuned = fit(features, labels, NAMES, encoder, QUICK)
    held = tuned.held_out
    assert np.bincount(labels[held]).tolist() == [2] * 5
    predicted = (features[held] @ tuned.class_features.T).argmax(1)
    assert tuned.after.accuracy == pytest.approx((predicted == labels[held]).mean())
    changed = features.copy()
    changed[held] = np.roll(changed[held], 1, axis=1)
    again = fit(changed, labels, NAMES, encoder, dataclasses.replace(QUICK))
    assert [f.loss for f in again.history] == [f.loss for f in tuned.history]


def test_no_weight_is_coop(encoder, labelled):
    features, labels = labelled
    coop = fit(features, labels, NAMES, encoder, dataclasses.replace(QUICK, loss="coop"))
    ebm = fit(
        features, labels, NAMES, encoder, dataclasses.replace(QUICK, lambda_=0.0, ebm="literal", mask_proportion=0.0)
    )
    np.testing.assert_allclose(coop.class_features, ebm.class_features, atol=2e-4)  # s'_y is summed in another order
    assert coop.history[3].loss < coop.history[1].loss  # type: ignore[operator]


def test_without_folds_the_last_epoch_is_kept(encoder, labelled):
    features, labels = labelled
    tuned = fit(features, labels, NAMES, encoder, dataclasses.replace(QUICK, folds=0))
    assert tuned.epoch == 3
    assert tuned.after.forecast_auroc is None


def test_ctrl_c_keeps_the_best(encoder, labelled):
    features, labels = labelled

    def interrupt(figures, epochs):
        if figures.epoch == 2:
            raise KeyboardInterrupt

    settings = dataclasses.replace(QUICK, epochs=30)
    stopped = fit(features, labels, NAMES, encoder, settings, interrupt)
    assert stopped.interrupted
    assert len(stopped.history) == 3
    assert stopped.epoch == choose([f.merits for f in stopped.history])
    expected = fit(features, labels, NAMES, encoder, settings, interrupt)
    np.testing.assert_array_equal(stopped.class_features, expected.class_features)
    assert not encoder.token_embedding._forward_hooks


def test_the_latest_of_the_best_epochs_is_chosen():
    assert choose([(1.0, 1.2), (1.5, 1.7), (1.4, 1.6)]) == 1  # worse in both folds alike
    assert choose([(1.0, 1.2), (1.5, 1.7), (1.3, 1.8)]) == 2  # worse in one only
    assert choose([(1.8, 1.8), (1.5, 1.7), (1.5, 1.7)]) == 0
    assert choose([(1.0,), (1.2,), (1.2,), (1.1,)]) == 2
    assert choose([(), (), ()]) == 2


def test_split_is_stratified():
    labels = np.array([0] * 8 + [1] * 3 + [2])
    train, held = split(labels, None, 0)
    assert np.bincount(labels[train]).tolist() == [6, 2, 1]
    assert sorted([*train, *held]) == list(range(12))
    assert np.bincount(labels[split(labels, 2, 0)[0]]).tolist() == [2, 2, 1]


def test_folds_leave_known_classes_out():
    folds = leave_out(np.repeat(np.arange(10), 2), 12, QUICK)
    assert len(folds) == 2
    for kept in folds:
        assert len(kept) == 9
        assert {10, 11} <= set(kept)
    assert leave_out(np.array([0, 1]), 2, QUICK) == []


def test_two_classes_have_no_forecast(encoder, labelled):
    features, labels = labelled
    few = labels < 2
    tuned = fit(features[few], labels[few], NAMES[:2], encoder, QUICK)
    assert tuned.after.forecast_auroc is None
    assert tuned.after.accuracy is not None


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": 0},
        {"epochs": -1},
        {"shots": 0},
        {"mask": "all"},
        {"mask_proportion": 1.5},
        {"lambda_": -1},
        {"ebm": "x"},
        {"pull": -1},
    ],
)
def test_wrong_settings(wrong):
    with pytest.raises(UsageError, match="choose"):
        check(dataclasses.replace(TuneSettings(), **wrong))


def test_one_class_cannot_be_tuned(encoder, labelled):
    with pytest.raises(UsageError, match="two classes"):
        fit(labelled[0][:3], np.zeros(3, int), NAMES, encoder, QUICK)
