# mypy: disable-error-code="arg-type, union-attr, func-returns-value"
"""Settings chosen by leaving classes out: where the right choice is known, and against the scores themselves."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from sklearn.metrics import roc_auc_score

from ood_audit.arrays import Spanned
from ood_audit.classes import prototypes
from ood_audit.classes.pools import Pool
from ood_audit.scoring import scores, selection
from ood_audit.scoring.scores.delta_energy import delta_energy
from ood_audit.scoring.selection import Grid, Sample, select, usable

DEFAULTS = {"temperature": 1.0, "top_c": 2, "reset_to": 0.0}
QUICK: dict[str, Any] = {
    "temperature": (0.02, 1.0),
    "background_temperature": (0.02,),
    "top_c": (1, 2),
    "reset_to": (0.0,),
    "background": (False,),
}


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def problem(seed=0, classes=12, images=240, dimension=24, text_noise=0.0, image_noise=0.35):
    """Images around a centre a class; the text features miss the centres by `text_noise`."""
    rng = np.random.default_rng(seed)
    centers = unit(rng.normal(size=(classes, dimension)))
    text = unit(centers + text_noise * unit(rng.normal(size=centers.shape)))
    labels = np.arange(images) % classes
    features = unit(centers[labels] + image_noise * rng.normal(size=(images, dimension)))
    return Sample(features, labels, np.ones(images, bool), presumed=False), text


def pool(sample, text, others, seed=0):
    """A background: the names of the classes themselves, a second name of some, and `others`."""
    k = len(text)
    features = unit(np.concatenate([text, text[:3] + 0.1 * others[:3], others]))
    pairs = np.array(sorted([*((i, i) for i in range(k)), *((k + i, i) for i in range(3))]), np.int32)
    names = [f"name {i}" for i in range(len(features))]
    return Pool(names, Spanned(features.astype(np.float16)), text, pairs)


def test_prototypes_are_taken_where_the_names_say_little():
    sample, text = problem(text_noise=3.0)
    found = select(sample, text, DEFAULTS, grid=Grid(**QUICK), rounds=4)
    assert found.settings["prototypes"] > 0
    weights = [settings["prototypes"] for _, settings in found.candidates]
    assert found.forecast > max(found.aurocs[np.array(weights) == 0]) + 0.05


def test_prototypes_are_left_where_the_references_are_mislabelled():
    sample, text = problem(image_noise=0.2)
    wrong = np.random.default_rng(1).integers(0, 12, 240)
    # Those that judge are labelled right, those that only teach are wrong and many.
    both = Sample(
        np.concatenate([sample.features[:80], *[sample.features] * 4]),
        np.concatenate([sample.labels[:80], *[wrong] * 4]),
        np.arange(80 + 960) < 80,
        presumed=False,
    )
    found = select(both, text, DEFAULTS, grid=Grid(**QUICK), rounds=4)
    assert found.settings["prototypes"] <= 0.1


def test_the_background_is_taken_where_unknown_images_show_its_things():
    """All images are about as near to some class; those of no class are nearer to their own name."""
    rng = np.random.default_rng(0)
    sample, text = problem(dimension=6, classes=24, images=480, image_noise=0.12)
    background = pool(sample, text, unit(rng.normal(size=(50, 6))))
    grid = Grid(**{**QUICK, "background": (False, True), "prototypes": (0.0,)})
    found = select(sample, text, DEFAULTS, grid=grid, background=background, rounds=4)
    assert found.settings["background"] is True
    # Without the names that dropped classes have, it would not help.
    of_class_0 = np.stack([background.pairs[:, 0], np.zeros_like(background.pairs[:, 1])], axis=1)
    bare = Pool(background.names, background.features, text, of_class_0)
    again = select(sample, text, DEFAULTS, grid=grid, background=bare, rounds=4)
    assert again.forecast < found.forecast


def test_the_same_seed_chooses_the_same():
    sample, text = problem(text_noise=1.0)
    first, again = (select(sample, text, DEFAULTS, grid=Grid(**QUICK), rounds=3, seed=5) for _ in range(2))
    assert (first.method, first.settings, first.forecast) == (again.method, again.settings, again.forecast)
    np.testing.assert_array_equal(first.aurocs, again.aurocs)
    other = select(sample, text, DEFAULTS, grid=Grid(**QUICK), rounds=3, seed=6)
    assert not np.array_equal(first.aurocs, other.aurocs)


def test_of_candidates_about_as_good_the_plainest_is_taken():
    """ΔEnergy with one reset and v = 0 is never as much as its own spread behind the best."""
    candidates = Grid(**QUICK).candidates()
    aurocs = np.full((4, len(candidates)), 0.9)
    plain = selection._simplest_of_the_best(candidates, aurocs)
    assert candidates[plain][1]["top_c"] == 1
    assert candidates[plain][1]["reset_to"] == 0
    other = len(candidates) - 1 if plain != len(candidates) - 1 else 0
    aurocs[:, other] += [0.00, 0.08, 0.00, 0.08]  # better in two rounds of four: by chance
    assert selection._simplest_of_the_best(candidates, aurocs) == plain
    aurocs[:, other] = [0.95, 0.96, 0.95, 0.96]
    assert selection._simplest_of_the_best(candidates, aurocs) == other


def test_the_forecast_is_that_of_the_chosen_candidate():
    sample, text = problem(text_noise=1.0)
    found = select(sample, text, DEFAULTS, grid=Grid(**QUICK, every_score=True), rounds=3)
    assert len(found.aurocs) == len(found.candidates)
    chosen = found.candidates.index((found.method, found.settings))
    assert found.forecast == found.aurocs[chosen]
    assert found.aurocs.max() - found.forecast < 0.1
    assert 0 <= found.spread < 0.5
    assert {name for name, _ in found.candidates} == {"delta-energy", "maxlogit", "logitgap", "energy", "mcm", "knn"}


def test_dropped_classes_teach_nothing(monkeypatch):
    """Other features for the references of a dropped class: the prototypes of the round are the same."""
    sample, text = problem()
    keep = selection._kept_classes(sample, 12, 1, np.random.default_rng(0))[0]
    assert (~keep).sum() == round(0.3 * 12)

    def made(features):
        found = []
        monkeypatch.setattr(prototypes, "fit", lambda *given: found.append(original(*given)) or found[-1])
        changed = Sample(features, sample.labels, sample.trusted, False)
        _ = next(selection.play(changed, text, DEFAULTS, Grid(**QUICK), rounds=1)).to_prototypes
        return found

    original = prototypes.fit
    changed = sample.features.copy()
    dropped = ~keep[sample.labels]
    changed[dropped] = unit(np.random.default_rng(2).normal(size=changed[dropped].shape))
    before, after = made(sample.features), made(changed)
    assert len(before) == 3
    for one, other in zip(before, after, strict=True):
        assert one.means.shape == (keep.sum(), 24)
        np.testing.assert_array_equal(one.means, other.means)
        np.testing.assert_array_equal(one.whiten, other.whiten)
    changed = sample.features.copy()
    changed[~dropped] = unit(np.random.default_rng(2).normal(size=changed[~dropped].shape))
    assert not np.array_equal(before[0].means, made(changed)[0].means)


def test_no_image_is_scored_by_prototypes_that_it_taught():
    sample, text = problem()
    played = next(selection.play(sample, text, DEFAULTS, Grid(**QUICK), rounds=1))
    mine = played.reference_part_of == 1
    changed = played.references.copy()
    changed[mine] = changed[mine][::-1]
    after = replace(played, references=changed).to_prototypes
    own = played.part_of == 1
    np.testing.assert_allclose(after[own], played.to_prototypes[own], atol=1e-6)
    assert not np.allclose(after[~own], played.to_prototypes[~own], atol=1e-3)


def test_half_of_the_images_are_presumed_the_more_confident():
    sample, text = problem(image_noise=0.2)
    to_text = sample.features @ text.T
    rows, labels = selection.presume(to_text, DEFAULTS)
    confidence = delta_energy(to_text, **DEFAULTS)
    assert len(rows) in (120, 121)
    assert confidence[rows].min() >= np.delete(confidence, rows).max()
    assert (labels == to_text.argmax(1)[rows]).all()


def test_presumed_labels_do_not_choose_the_weight():
    sample, text = problem(text_noise=0.5)
    presumed = Sample(sample.features, sample.labels, sample.trusted, presumed=True)
    found = select(presumed, text, DEFAULTS, grid=Grid(**QUICK), rounds=2)
    assert {settings["prototypes"] for _, settings in found.candidates} == {prototypes.DEFAULT_WEIGHT}
    given = select(presumed, text, DEFAULTS, grid=Grid(**QUICK, prototypes=(0.0,)), rounds=2)
    assert {settings["prototypes"] for _, settings in given.candidates} == {0.0}


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_candidates_are_scored_as_the_score_does(monkeypatch, background, weight):
    """What a round compares is ΔEnergy against the kept classes, beside the names that are no kept class's."""
    sample, text = problem(seed=1, image_noise=0.25, dimension=32)
    sample = Sample(sample.features, sample.labels, np.arange(240) % 3 > 0, presumed=False)
    others = pool(sample, text, unit(np.random.default_rng(1).normal(size=(40, 32))))
    grid = Grid(prototypes=(weight,), background=(background,))
    seen = []
    monkeypatch.setattr(selection, "_aurocs", lambda raw, is_ood: seen.append((raw, is_ood)) or np.zeros(len(raw)))
    found = select(sample, text, DEFAULTS, grid=grid, background=others, rounds=3, seed=3)
    kept = selection._kept_classes(sample, 12, 3, np.random.default_rng(3))
    rounds = selection.play(sample, text, DEFAULTS, grid, background=others, rounds=3, seed=3)
    judged = sample.features[sample.trusted]
    for keep, (raw, is_ood), played in zip(kept, seen, rounds, strict=True):
        np.testing.assert_array_equal(is_ood, ~keep[sample.labels[sample.trusted]])
        to_kept = judged @ text[keep].T
        similarities = (1 - weight) * to_kept + weight * played.to_prototypes
        naming_kept = {row for row, k in others.pairs if keep[k]}
        outside = [i for i in range(len(others.names)) if i not in naming_kept]
        assert set(np.flatnonzero(~keep)) <= set(outside)  # a dropped class's own name is back
        beside = (1 - weight) * judged @ others.features.take(outside).vectors().T
        for column, (name, own) in enumerate(found.candidates):
            assert name == "delta-energy"
            expected = delta_energy(
                similarities,
                **{setting: own[setting] for setting in DEFAULTS},
                background=beside if own["background"] else None,
            )
            np.testing.assert_allclose(raw[column], expected, rtol=2e-4, atol=2e-6, err_msg=str(own))


def test_other_scores_are_scored_as_they_are(monkeypatch):
    sample, text = problem(seed=2)
    grid = Grid(**QUICK, prototypes=(0.0, 0.2), every_score=True)
    seen = []
    monkeypatch.setattr(selection, "_aurocs", lambda raw, is_ood: seen.append(raw) or np.zeros(len(raw)))
    found = select(sample, text, DEFAULTS, grid=grid, rounds=1)
    (played,) = selection.play(sample, text, DEFAULTS, grid, rounds=1)
    for column, (name, own) in enumerate(found.candidates):
        weight = own["prototypes"]
        options = {key: value for key, value in own.items() if key not in ("prototypes", "background")}
        if name == "knn":
            options |= {"images": played.features, "references": played.references}
            options |= {"folds": played.part_of, "reference_folds": played.reference_part_of}
        expected = scores.load(name)((1 - weight) * played.to_text + weight * played.to_prototypes, **options)
        np.testing.assert_allclose(seen[0][column], expected, rtol=1e-5, atol=1e-6, err_msg=f"{name} {own}")


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 60), st.booleans())
def test_auroc_is_scikit_learns(seed, count, ties):
    rng = np.random.default_rng(seed)
    is_ood = rng.random(count) < 0.4
    is_ood[:2] = [True, False]
    raw = rng.normal(size=(3, count))
    raw = raw.round() if ties else raw
    expected = [roc_auc_score(~is_ood, column) for column in raw]
    np.testing.assert_allclose(selection._aurocs(raw, is_ood), expected, atol=1e-12)


def test_auroc_of_one_kind_tells_nothing():
    assert selection._aurocs(np.zeros((2, 3)), np.ones(3, bool)).tolist() == [0.5, 0.5]
    assert selection._aurocs(np.zeros((2, 3)), np.zeros(3, bool)).tolist() == [0.5, 0.5]


def test_given_values_are_the_only_ones():
    encoder = {"temperature": 0.07, "top_c": 4, "reset_to": 0.0}
    free = Grid.around({}, encoder, every_score=False)
    assert free.temperature == (0.01, 0.02, 0.05, 0.07, 0.1, 0.3, 1.0)
    assert free.top_c == (1, 2, 3, 4, 5)
    assert free.reset_to == Grid().reset_to
    assert {"delta-energy"} == {name for name, _ in free.candidates()}
    given = {"temperature": 0.4, "top_c": 3, "reset_to": 0.15, "background": False, "prototypes": 0.2}
    for name, value in given.items():
        found = [own[name] for _, own in Grid.around({name: value}, encoder, every_score=False).candidates()]
        assert found
        assert set(found) == {value}, name
    only = Grid.around(given, encoder, every_score=False).candidates()
    assert only == [("delta-energy", given)]
    with_background = Grid.around({**given, "background": True}, encoder, every_score=False).candidates()
    assert with_background == [("delta-energy", {**given, "background": True})]
    assert len({str(c) for c in Grid(every_score=True).candidates()}) == len(Grid(every_score=True).candidates())


def test_enough_is_60_images_of_6_classes():
    def of(images, classes, trusted=None):
        labels = np.arange(images) % classes
        return Sample(np.zeros((images, 2)), labels, np.ones(images, bool) if trusted is None else trusted, False)

    assert usable(of(60, 6))
    assert not usable(of(59, 6))
    assert not usable(of(600, 5))
    assert not usable(of(120, 6, trusted=np.arange(120) < 59))
    assert not usable(of(120, 6, trusted=np.arange(120) % 6 > 0))  # one class is never sure
    assert not usable(of(0, 1))
    unknown = of(600, 6)
    assert not usable(
        Sample(unknown.features, np.where(unknown.labels == 0, -1, unknown.labels), unknown.trusted, False)
    )


@pytest.mark.parametrize("spread", [0.05, 1.0])
def test_sums_at_a_scale_twice_another_are_those_of_its_own_exponentials(spread):
    values = (spread * np.random.default_rng(0).normal(size=(5, 300))).astype(np.float32)
    scales = {10.0, 20.0, 80.0, 1 / 0.03, 2 / 0.03, 100.0, 200.0}
    found = selection._log_sums(values.copy(), scales)
    assert found.keys() == scales
    for scale in scales:
        assert found[scale] == pytest.approx(logsumexp(values.astype(np.float64) * scale, axis=1), rel=1e-5)
