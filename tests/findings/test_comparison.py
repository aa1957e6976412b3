"""`compare`: the statistics, what names mean, and the whole through the command line."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

import ood_audit
from ood_audit.classes.vocabulary import Vocabulary
from ood_audit.findings import drift, sides, words
from ood_audit.findings.comparison import Comparison, Difference
from ood_audit.reports.comparison import ComparisonPage, render
from tests.conftest import run_cli
from tests.helpers.made import make_store, unit


def normal(count, shift=0.0, seed=0, dimension=12):
    rows = np.random.default_rng(seed).normal(size=(count, dimension))
    rows[:, 0] += shift
    return unit(rows)


def test_a_shift_of_the_mean_is_drift():
    found = drift.two_sample(normal(60), normal(40, 1.5, seed=1))
    assert found.p_value == 0.001
    assert found.auroc > 0.75


def test_images_of_another_kind_that_do_not_move_the_mean_are_drift():
    strange = unit(0.1 * normal(20, seed=3) + np.eye(12)[2] * np.array([[1], [-1]] * 10))
    found = drift.two_sample(normal(100), np.concatenate([normal(80, seed=1), strange]))
    assert found.p_value < 0.01
    assert found.auroc < 0.65


def test_equal_images_are_told_apart_by_chance_alone(monkeypatch):
    monkeypatch.setattr(drift, "PERMUTATIONS", 99)
    p = []
    for seed in range(20):
        few = normal(4)[np.random.default_rng(seed).integers(4, size=200)]  # more copies of each than it has links
        p.append(drift.two_sample(few[:100], few[100:], seed).p_value)
    assert 0.2 < np.mean(p) < 0.8


def test_random_halves_are_no_drift():
    p = [drift.two_sample(normal(30, seed=seed), normal(30, seed=seed + 100)).p_value for seed in range(10)]
    assert np.mean(p) > 0.25
    assert min(p) > 0.005


def test_the_interval_is_that_of_newcombe():
    # Table II (a) of the paper, method 10: 56/70 and 48/80.
    change, low, high, p = drift.change_of_share(48, 80, 56, 70)
    assert (round(change, 4), round(low, 4), round(high, 4)) == (0.2, 0.0524, 0.3339)
    assert 0.005 < p < 0.02


def test_no_image_has_the_interval_of_a_share_of_none():
    change, low, high, p = drift.change_of_share(0, 20, 0, 30)
    assert change == 0
    assert low < 0 < high
    assert p == 1


@given(st.lists(st.sampled_from([0.0, 0.001, 0.01, 0.01, 0.3, 1.0]), max_size=12))
def test_p_values_are_adjusted_as_by_scipy(p):
    np.testing.assert_allclose(drift.adjusted(p), false_discovery_control(p) if p else [])


def test_the_stranger_is_the_least_like():
    around = 3 * np.eye(12)[1]
    reference, other = unit(normal(50) + around), unit(normal(10, seed=3) + around)
    other[9] = -np.eye(12)[1]
    p, cosines, nearest = drift.unlike(reference, other)
    assert p[9] == p.min() == pytest.approx(1 / 51)
    assert cosines[9] == pytest.approx(float((reference @ other[9]).max()), abs=1e-5)
    assert nearest[9] == (reference @ other[9]).argmax()


def test_images_like_the_reference_have_no_small_p_values():
    p = np.array([drift.unlike(normal(40, seed=i), normal(40, seed=i + 1000))[0] for i in range(30)])
    assert 0.13 < (p <= 0.2).mean() < 0.22


def of_recordings(rng, count, frames, folder):
    """The features and paths of recordings whose frames hardly differ."""
    features = unit(
        np.repeat(rng.normal(size=(count, 12)), frames, axis=0) + 0.05 * rng.normal(size=(count * frames, 12))
    )
    return features, [f"{folder}/{folder}{i:03}_{frame:04}.jpg" for i in range(count) for frame in range(frames)]


def test_of_a_recording_one_picture_stands_for_all(tmp_path):
    rng = np.random.default_rng(0)
    parts = [of_recordings(rng, 30, 8, folder) for folder in ("train", "test")]
    features, paths = np.concatenate([part[0] for part in parts]), [path for part in parts for path in part[1]]
    made = make_store(tmp_path / "s", features, paths, Vocabulary((("dog",),)), normal(1))
    alone = sides.independent(*sides.both(made, "train", "test"), 0)
    assert [len(rows) for rows in alone] == [30, 30]
    found = ood_audit.compare("train", "test", made)
    assert not found.drift
    assert any("30 of train and 30 of test" in sentence for sentence in found.notes)


def test_too_few_recordings_are_tested_by_their_pictures_and_it_is_said(tmp_path):
    rng = np.random.default_rng(0)
    parts = [of_recordings(rng, 9, 8, folder) for folder in ("train", "test")]
    features, paths = np.concatenate([part[0] for part in parts]), [path for part in parts for path in part[1]]
    made = make_store(tmp_path / "s", features, paths, Vocabulary((("dog",),)), normal(1))
    found = ood_audit.compare("train", "test", made)
    assert found.drift
    assert any("two recordings differ, whatever they show" in sentence for sentence in found.notes)


def names(*rows, least=0.3):
    return words.Names([f"name {i}" for i in range(len(rows))], unit(np.array(rows)), least)


def test_what_there_is_more_of_is_named_once():
    axes = np.eye(12)
    family = names(axes[0], axes[0] + 0.1 * axes[1], axes[2], -axes[0])  # the second says the same as the first
    found = words.contrast(normal(80), normal(80, 2.0, seed=1), [family])
    assert [word.name for word in found] in (["name 0"], ["name 1"])
    assert found[0].share > 0.4
    assert found[0].share_reference == pytest.approx(0.05)
    assert found[0].p_value < 1e-6


def test_nothing_is_named_where_nothing_differs():
    assert words.contrast(normal(80), normal(80, seed=1), [names(*np.eye(12))]) == []


@pytest.fixture
def few_names(monkeypatch):
    monkeypatch.setattr(words, "conditions", lambda store, encoder: names(*np.eye(12)))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two classes in two folders that look like splits, and hostile names."""
    text = unit(np.eye(12)[:2] + 0.01)
    features = np.concatenate([normal(30), normal(30, 1.5, seed=1), normal(12, seed=2)])
    paths = [f"train/{'cat' if i % 2 else 'dog'}/{i}.jpg" for i in range(30)]
    paths += [f"test/{'cat' if i % 3 else 'dog'}/\x1b[31m<b>{i}.jpg" for i in range(30)]
    paths += [f"one/{i}.jpg" for i in range(12)]
    vocabulary = Vocabulary((("dog",), ("cat",)))
    splits = [path.split("/")[0] for path in paths]
    return make_store(tmp_path_factory.mktemp("compare") / "store", features, paths, vocabulary, text, splits=splits)


def test_a_split_is_compared_with_another(store, few_names):
    found = ood_audit.compare("train", "test", store, top=3)
    assert found.drift
    assert found.images == (30, 30)
    assert [row.kind for row in found.rows[:1]] == ["drift"]
    cats = next(row for row in found.of("class") if row.name == "cat")
    assert cats.reference == 0.5
    assert cats.other == pytest.approx(2 / 3)
    assert cats.low is not None
    assert cats.high is not None
    assert cats.low < cats.effect < cats.high
    assert len(found.of("image")) == 3
    assert "name 0" in [row.name for row in found.of("word")]
    assert found.to_arrow().num_rows == len(found.rows)
    assert found.html is not None
    page = found.html.read_text()
    assert "<b>" not in page
    assert "\x1b" not in page
    assert repr(found).startswith("Comparison('train', 'test', auroc=")


def test_the_same_seed_gives_the_same_result(store, few_names):
    assert ood_audit.compare("train", "test", store).rows == ood_audit.compare("train", "test", store).rows


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ("train", "nowhere", "no readable image is in nowhere.*the splits are one, test, train"),
        ("train", "", "an empty name"),
        ("train", "train/cat", "15 images are both in train and in train/cat"),
        ("train", "\x1b[31m", "no readable image is in .x1b"),
    ],
)
def test_what_cannot_be_compared_is_said(store, a, b, message):
    with pytest.raises(ood_audit.UsageError, match=message):
        ood_audit.compare(a, b, store)


def test_too_few_images_are_said(tmp_path):
    features, paths = normal(14), [f"{'a' if i < 11 else 'b'}/{i}.jpg" for i in range(14)]
    made = make_store(tmp_path / "s", features, paths, Vocabulary((("a",), ("b",))), unit(np.eye(12)[:2]))
    with pytest.raises(ood_audit.UsageError, match="b has 3 images; at least 10 are needed"):
        ood_audit.compare("a", "b", made)


def test_another_store_is_a_side(store, tmp_path):
    other = make_store(tmp_path / "s", normal(20), [f"x/{i}.jpg" for i in range(20)], Vocabulary((("x",),)), normal(1))
    assert ood_audit.compare("train", str(other.root), store).images == (30, 20)


def test_another_encoder_is_one_line(store, tmp_path):
    wide = normal(20, dimension=13)
    other = make_store(tmp_path / "s", wide, [f"x/{i}.jpg" for i in range(20)], Vocabulary((("x",),)), wide[:1])
    done = run_cli("compare", "train", other.root, "--store", store.root)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "was embedded by another encoder" in done.stderr
    assert "--model" in done.stderr


def test_one_class_is_no_change(tmp_path):
    paths = [f"{'train' if i < 12 else 'val'}/dog/{i}.jpg" for i in range(24)]
    made = make_store(tmp_path / "s", normal(24), paths, Vocabulary((("dog",),)), normal(1))
    (row,) = ood_audit.compare("train", "val", made).of("class")
    assert (row.reference, row.other, row.effect, row.p_value) == (1, 1, 0, 1)


def test_of_many_images_a_sample_is_compared(store, few_names, monkeypatch):
    monkeypatch.setattr(sides, "MOST", 20)
    found = ood_audit.compare("train", "test", store)
    assert found.images == (20, 20)
    assert any("20 of the 30 images of train" in sentence for sentence in found.notes)


def test_the_command_line(example_store):
    done = run_cli("compare", "airplane", "chair", "--store", example_store, "--format", "json", "--fail-below", "0.01")
    assert done.returncode == 3, done.stderr
    rows = json.loads(done.stdout)
    assert rows[0]["kind"] == "drift"
    assert rows[0]["p_value"] <= 0.005
    assert {row["name"] for row in rows if row["kind"] == "class" and row["p_value"] < 0.05} == {"airplane", "chair"}
    assert {row["kind"] for row in rows} >= {"word", "class", "image"}
    table = run_cli("compare", "airplane", "chair", "--store", example_store, "--top", 1)
    assert table.returncode == 0
    assert re.search(r"^drift +chair against airplane +0.00[1-5]", table.stdout, re.M)
    page = (example_store / "comparison.html").read_text()
    assert page.count("data:image/jpeg;base64,") >= 10
    assert "<script" not in page


def test_the_page_escapes_what_it_shows():
    row = Difference("image", "<i>\u202e.jpg", 0.5, 0.01, "<u>", examples=("file:///<a>",), nearest="file:///b")
    drifted = Difference("drift", "b against a", 0.9, 0.001, "the two sets differ")
    found = Comparison("<a>", "<b>", (10, 10), 0.9, 0.001, 1, [drifted, row], ["<note>"])
    page = render(ComparisonPage(found, "2026-01-01T00:00:00", {}))
    assert not re.search(r"<(i|u|a|b|note)>", page)
    assert "&lt;i&gt;\\u202e.jpg" in page
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
