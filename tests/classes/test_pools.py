"""The pools: which names are in them, how they are selected, and how they are kept in the store."""

import hashlib
import random
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ood_audit
from ood_audit.arrays import Spanned, unit
from ood_audit.classes import background, pools, wordnet
from ood_audit.classes.pools import Pool, farthest, naming
from ood_audit.classes.vocabulary import Vocabulary
from ood_audit.encoders.identity import EncoderIdentity
from ood_audit.errors import OodAuditError
from ood_audit.store.store import Store
from tests.encoders.test_clip import MODELS, save

VOCABULARY = Vocabulary((("ibis",), ("scissors", "shears"), ("zzz",)))


@cache
def word(text: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    return np.random.default_rng(seed).standard_normal(16)


class WordSums:
    """An encoder in which texts are alike that share words."""

    def __init__(self):
        self.texts: list[str] = []

    def encode_texts(self, texts):
        self.texts += texts
        features = np.stack([sum(word(w) for w in text.split()) for text in texts]).astype(np.float32)
        return features / np.linalg.norm(features, axis=1, keepdims=True)

    def tokenize(self, texts):
        return np.array([[*text.encode()[:76], *[0] * (77 - len(text.encode()[:76]))] for text in texts])


@pytest.fixture
def small(monkeypatch):
    """Corpora of a few hundred words, in several parts."""
    monkeypatch.setattr(background, "_PHYSICAL", ("noun.shape", "noun.phenomenon"))
    monkeypatch.setattr(background, "_words", lambda without: (wordnet.names("adj.ppl"), wordnet.names("noun.shape")))
    monkeypatch.setattr(background, "COARSE", 0)
    monkeypatch.setattr(background, "_PART", 100)
    monkeypatch.setattr(background, "_BLOCK", 64)
    monkeypatch.setattr(pools, "_CHUNK_BYTES", 4 * 16 * 50)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("OOD_AUDIT_CACHE", str(tmp_path / "cache"))
    return Store(tmp_path / "store", EncoderIdentity("made-up", None, "none", "0" * 64, {}, "gelu", "fp32", 16))


def encoded(store):
    """The folder of the encoded names."""
    return background._folder(store)


def load(store, name, encoder, vocabulary=VOCABULARY, on_progress=None):
    return pools.load(store, vocabulary, name, lambda: encoder, on_progress)


def test_background_names():
    corpus = background._background()
    assert len(corpus.nouns) == 44908
    assert not corpus.adjectives
    assert {"sacred ibis", "new york", "lincoln", "pizza", "triangle"} <= set(corpus.nouns)
    assert not {"idea", "tuesday", "happiness"} & set(corpus.nouns)
    assert max(len(name.split()) for name in corpus.nouns) == 3


def test_neglabel_words():
    corpus = background._neglabel()
    nouns, adjectives = set(corpus.nouns), set(corpus.adjectives)
    assert not nouns & adjectives
    assert "red" in adjectives  # also a noun; an adjective in the published selection too
    assert {"poncho", "brake pad", "palm sunday", "lincoln", "archer"} <= nouns
    assert not {"sacred ibis", "house wren", "club sandwich"} & nouns  # of noun.animal and noun.food
    selected = sum(int(0.15 * len(words)) for words in (nouns, adjectives))
    assert selected == 10618  # the published selection for ImageNet has 10,499


def test_csp_words():
    corpus, nouns = background._csp(), set(background._csp().nouns)
    assert "poncho" in nouns
    assert not {"archer", "apothecaries' unit", "sacred ibis"} & nouns  # person, quantity, animal
    random.seed(0)  # as the published code does
    words = wordnet.names("adj.all", "adj.ppl")
    assert corpus.adjectives == [f"{word} {random.choice(background._THINGS)}" for word in words]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(0, 60), st.integers(0, 60), st.booleans())
def test_farthest_is_the_published_selection(seed, classes, nouns, adjectives, drop_same):
    generator = np.random.default_rng(seed)

    def unit(count):
        features = generator.standard_normal((count, 3)).astype(np.float32)
        return features / np.linalg.norm(features, axis=1, keepdims=True)

    text, known = unit(nouns + adjectives), unit(classes)
    expected = []
    for first, last in ((0, nouns), (nouns, nouns + adjectives)):
        ranked = []
        for row in range(first, last):
            cosines = torch.from_numpy(known @ text[row])
            value = float(torch.quantile(cosines, 0.95))
            ranked.append((1.0 if drop_same and cosines.max() > 0.95 else value, row))
        expected += [row for _, row in sorted(ranked)[: int(len(ranked) * 0.15)]]
    found = farthest(Spanned(text), nouns, known, drop_same=drop_same)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, np.array(expected, np.int32))


def test_naming_is_by_wordnet_and_by_text():
    names = ["derrick", "eagle", "rotary shears", "sacred ibis", "stork", "tool", "wader", "zzzz"]
    features = Spanned(np.eye(8, 4, dtype=np.float16))
    classes = np.zeros((3, 4), np.float32)
    classes[2] = [0, 0.96, 0, 0.28]  # "zzz", unknown to WordNet, looks like "eagle"
    pairs = naming(names, features, VOCABULARY, classes)
    assert [(names[row], VOCABULARY.names[k]) for row, k in pairs] == [
        ("eagle", "zzz"),
        ("sacred ibis", "ibis"),
        ("tool", "scissors"),
        ("wader", "ibis"),
    ]
    assert "rotary shears" not in wordnet.same_thing("scissors")


@given(
    st.integers(1, 20),
    st.integers(1, 6).flatmap(
        lambda k: st.tuples(
            st.lists(st.booleans(), min_size=k, max_size=k),
            st.sets(st.tuples(st.integers(0, 19), st.integers(0, k - 1))),
        )
    ),
)
def test_a_subset_of_the_classes_has_more_outside_of_it(count, kept_and_pairs):
    kept, pairs = kept_and_pairs
    pairs = sorted((row % count, k) for row, k in pairs)
    names = [str(row) for row in range(count)]
    features = Spanned(np.arange(count, dtype=np.float16)[:, None])
    pool = Pool(names, features, np.empty((len(kept), 1), np.float32), np.array(pairs, np.int32).reshape(-1, 2))
    mask = pool.outside(np.array(kept))
    for row in range(count):
        assert mask[row] == (not any(kept[k] for name, k in pairs if name == row))
    assert (mask >= pool.outside()).all()
    assert pool.negatives.dtype == np.float32
    assert pool.negatives[:, 0].tolist() == [row for row in range(count) if row not in {name for name, _ in pairs}]


def test_background_of_a_store(small, store):
    encoder, progress = WordSums(), []
    vocabulary = Vocabulary((("star",), ("chocolate",)), ("art of {}.", "{}"))
    pool = load(store, "background", encoder, vocabulary, lambda *done: progress.append(done))
    assert sorted(pool.names) == [n for n in wordnet.names("noun.shape", "noun.phenomenon") if len(n.split()) <= 3]
    expected = encoder.encode_texts([f"a photo of a {name}." for name in pool.names])
    np.testing.assert_allclose(pool.features.vectors(), expected, atol=1e-3)
    # Whatever the templates of the vocabulary: those of the corpus, or no cosine would be near 1.
    np.testing.assert_allclose(
        pool.classes, encoder.encode_texts(["a photo of a star.", "a photo of a chocolate."]), atol=1e-6
    )
    named = {(pool.names[row], int(k)) for row, k in pool.pairs}
    assert {("star", 0), ("hexagram", 0), ("plane figure", 0)} <= named  # itself, a kind of it, what it is
    assert ("triangle", 0) not in named
    assert "star" not in [name for name, out in zip(pool.names, pool.outside(), strict=True) if out]
    assert len(pool.negatives) == pool.outside().sum() < len(pool.names)
    assert progress[-1] == (len(pool.names), len(pool.names))
    assert [done for done, _ in progress] == sorted({done for done, _ in progress})
    assert {total for _, total in progress} == {len(pool.names)}


@pytest.mark.parametrize("name", ["neglabel", "csp"])
def test_selections_of_a_store(small, store, name):
    encoder = WordSums()
    pool = load(store, name, encoder)
    nouns, adjectives = wordnet.names("noun.shape"), wordnet.names("adj.ppl")
    selected = int(len(nouns) * 0.15)
    assert len(pool.names) == selected + int(len(adjectives) * 0.15)
    assert set(pool.names[:selected]) < set(nouns)
    assert pool.pairs.shape == (0, 2)
    corpus = background.CORPORA[name]()
    for text, feature in zip(pool.names, pool.negatives, strict=True):
        own = corpus.noun_prompts if text in nouns else corpus.adjective_prompts
        mean = encoder.encode_texts([prompt.replace("{}", text) for prompt in own]).mean(axis=0)
        np.testing.assert_allclose(feature, mean / np.linalg.norm(mean), atol=1e-3)
    prompts = [p.replace("{}", synonym) for synonym in ("scissors", "shears") for p in corpus.noun_prompts]
    mean = encoder.encode_texts(prompts).mean(axis=0)
    np.testing.assert_allclose(pool.classes[1], mean / np.linalg.norm(mean), atol=1e-6)


@pytest.mark.parametrize("name", pools.NAMES)
def test_what_is_in_the_store_is_not_encoded_again(small, store, name):
    first = load(store, name, WordSums())
    again = pools.load(store, VOCABULARY, name, lambda: pytest.fail("the encoder was loaded"))
    assert again.names == first.names
    np.testing.assert_array_equal(again.features.coordinates, first.features.coordinates)
    for attribute in ("classes", "pairs"):
        np.testing.assert_array_equal(getattr(again, attribute), getattr(first, attribute))
    encoder = WordSums()
    other = load(store, name, encoder, Vocabulary((("sunflower",),)))
    assert {"sunflower" in text for text in encoder.texts} == {True}  # the corpus was there
    assert len(other.classes) == 1


class Interrupted(WordSums):
    def encode_texts(self, texts):
        if len(self.texts) + len(texts) > 300:
            raise KeyboardInterrupt
        return super().encode_texts(texts)


def test_an_interrupted_encoding_goes_on(small, store):
    broken = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        load(store, "background", broken)
    rest, progress = WordSums(), []
    pool = load(store, "background", rest, on_progress=lambda *done: progress.append(done))
    whole = {f"a photo of a {name}." for name in pool.names}
    corpus_texts = [text for text in rest.texts if text in whole]
    assert len(corpus_texts) == len(whole) - 300  # three parts were complete
    assert progress[0][0] > 300
    assert progress[-1] == (len(whole), len(whole))
    assert not list(store.vocabularies.glob(".*"))


def test_another_corpus_is_selected_from_anew(small, store, monkeypatch):
    first = load(store, "neglabel", WordSums())
    monkeypatch.setattr(background, "_words", lambda without: (wordnet.names("adj.ppl"), wordnet.names("noun.motive")))
    second = load(store, "neglabel", WordSums())
    assert not set(first.names[:20]) & set(second.names[: int(0.15 * len(wordnet.names("noun.motive")))])


@pytest.mark.parametrize("which", ["*-01", f"{VOCABULARY.id}-background"])
@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_damaged_files_are_named(small, store, which, damage):
    load(store, "background", WordSums())
    folder = encoded(store) if "-01" in which else store.vocabularies
    (path,) = folder.glob(f"{which}.safetensors")
    path.write_bytes(path.read_bytes()[:-10] if damage is None else damage)
    with pytest.raises(OodAuditError, match=rf"{path.name} is damaged; delete it and run the command again"):
        load(store, "background", WordSums())
    path.unlink()
    load(store, "background", WordSums())


def test_a_real_encoder(small, store, tmp_path):
    """A text tower with its tokenizer, rather than sums of words."""
    from ood_audit.encoders.clip import load_encoder

    encoder = load_encoder(save(tmp_path / "model", MODELS["vit"]), device="cpu")
    pool = load(store, "csp", encoder)
    assert pool.negatives.shape == (len(pool.names), 24)
    np.testing.assert_allclose(np.linalg.norm(pool.negatives, axis=1), 1, atol=2e-3)


def test_a_slow_text_tower_begins_with_the_coarse_names(small, store, monkeypatch):
    monkeypatch.setattr(background, "COARSE", 50)
    monkeypatch.setattr(background, "_PATIENCE", 0.0)
    notes: list[str] = []
    encoder: Any = WordSums()
    pool = pools.load(store, VOCABULARY, "background", lambda: encoder, note=notes.append)
    names = background.CORPORA["background"]().names
    assert pool.names == names[:50]
    assert f"50 of {len(names)} names" in notes[0]
    assert "labels suggest" in notes[0]
    again = pools.load(store, VOCABULARY, "background", lambda: pytest.fail("it encodes again"), note=notes.append)
    assert again.names == pool.names
    assert len(notes) == 2
    everything, features = pools.nouns(store, lambda: encoder)  # type: ignore[misc]
    assert everything == names
    assert len(features) == len(names)
    assert pools.load(store, VOCABULARY, "background", lambda: encoder, note=notes.append).names == names
    assert len(notes) == 2


def test_a_text_tower_that_is_not_slow_encodes_all_names_after_an_interruption(small, store, monkeypatch):
    monkeypatch.setattr(background, "COARSE", 50)
    with pytest.raises(KeyboardInterrupt):
        load(store, "background", Interrupted())
    assert background.known(store, background.CORPORA["background"]()) == 250  # the coarse names, and two parts
    notes: list[str] = []
    encoder: Any = WordSums()
    pool = pools.load(store, VOCABULARY, "background", lambda: encoder, note=notes.append)
    assert pool.names == background.CORPORA["background"]().names
    assert notes == []


def test_stores_share_what_one_of_them_encoded(small, store, tmp_path):
    load(store, "background", WordSums())
    other = Store(tmp_path / "other", store.encoder)
    encoder = WordSums()
    load(other, "background", encoder)
    assert len(encoder.texts) == 4  # the names of the classes and their synonyms alone


def test_the_bundled_background_is_what_the_starter_makes_of_the_names(encoder, example_store):
    store = ood_audit.open_store(example_store)
    corpus = background.CORPORA["background"]()
    assert background.are_encoded(store, "background")
    kept = background.features(store, corpus, None)
    rows = np.linspace(0, len(corpus.names) - 1, 200).astype(int)
    made = encoder.encode_texts([f"a photo of a {corpus.names[row]}." for row in rows])
    assert (unit(kept.take(rows).vectors()) * unit(made)).sum(axis=1).min() > 0.99999


def test_the_first_names_cover_the_rest(example_store):
    """The order is from coarse to fine: 4,096 of its first names come nearer to all others than 4,096 random ones."""
    kept = background.features(ood_audit.open_store(example_store), background.CORPORA["background"](), None)
    whole = kept.vectors()
    dice = np.random.default_rng(0)
    first, random_ones = whole[:512], whole[dice.choice(len(whole), 512, replace=False)]
    near = [(whole[::5] @ some.T).max(axis=1).mean() for some in (first, random_ones)]
    assert near[0] > near[1]
