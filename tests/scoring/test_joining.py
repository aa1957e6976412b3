"""Evidence joined by ranks: what each piece says, when novelty counts, and that the order of images does not matter."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ood_audit
from ood_audit import ScoreSettings
from ood_audit.arrays import spanned
from ood_audit.classes import labelled
from ood_audit.embedding.imported import import_features
from ood_audit.errors import UsageError
from ood_audit.scoring import joining
from ood_audit.scoring.joining import Evidence, energy_of, quantiles, quantiles_within
from ood_audit.scoring.scores.delta_energy import delta_energy
from ood_audit.store import open_store
from ood_audit.store.files import read_json
from tests.conftest import EXAMPLES
from tests.helpers.made import unit

T = 0.01


def folder(classes=6, each=40, ood=12, spread=0.6, dimension=32, seed=0, unnamed=1.5):
    """Images in tight groups around their class, which is only roughly where its name is; and images of nothing."""
    rng = np.random.default_rng(seed)
    text = unit(rng.normal(size=(classes, dimension)))
    centers = unit(text + unnamed * unit(rng.normal(size=(classes, dimension))))
    labels = np.repeat(np.arange(classes), each)
    inside = unit(centers[labels] + spread / 5 * rng.normal(size=(len(labels), dimension)))
    outside = unit(0.5 * centers[rng.integers(0, classes, ood)] + unit(rng.normal(size=(ood, dimension))))
    return np.concatenate([inside, outside]), np.arange(len(labels) + ood) >= len(labels), text


def join(images, text, *, weight=None, temperature=0.1, whole=True):
    cosines = images @ text.T
    energy = energy_of(cosines.astype(np.float64), np.full(len(images), -np.inf), temperature)
    joint = joining.prepare(images, len(images) + (not whole), text, 0.999, weight)
    evidence = Evidence(energy, joining.standing(joint, cosines), np.full(len(images), -np.inf), temperature)
    some = Evidence(energy[:9], evidence.standing[:9], evidence.outside[:9], temperature)
    known = (images[:9], None), some
    blocks = [(images[:50], None), (images[50:], None)]
    return joining.join(joint, evidence, evidence, blocks, calibration=known), energy


def auroc(is_ood, values):
    from ood_audit.scoring.metrics import auroc as measured

    return measured(is_ood, values)


def test_novelty_counts_where_the_classes_are_close_together():
    images, is_ood, text = folder()
    joined, energy = join(images, text)
    assert joined.weight > 0.3
    assert auroc(is_ood, joined.ood_score) > auroc(is_ood, energy) + 0.02
    assert auroc(is_ood, joined.novelty) > 0.9


def test_novelty_does_not_count_with_few_images_a_class():
    images, _, text = folder(each=7, ood=3)
    joined, _ = join(images, text)
    assert joined.weight == 0
    assert set(joined.unlike) == {0}


def test_unknown_images_that_are_many_stay_strange():
    """Thirty pictures of one unknown thing are each other's neighbours; their neighbours are not like their name."""
    images, is_ood, text = folder(ood=0)
    rng = np.random.default_rng(5)
    lump = unit(unit(rng.normal(size=(1, 32))) + 0.05 * rng.normal(size=(30, 32)))
    images, is_ood = np.concatenate([images, lump]), np.r_[is_ood, np.ones(30, bool)]
    joined, energy = join(images, text, weight=1.0)
    assert auroc(is_ood, joined.novelty) < 0.9
    assert auroc(is_ood, joined.ood_score) >= auroc(is_ood, energy) - 0.01


def test_near_duplicates_are_no_neighbours():
    images, _, text = folder(ood=1)
    twice = np.concatenate([images, images[-1:]])
    (once, _), (again, _) = join(images, text), join(twice, text)
    assert again.novelty[-1] == pytest.approx(once.novelty[-1], abs=0.02)
    assert again.novelty[-1] > 0.1


def test_novelty_is_by_looks_where_there_are_any():
    images, is_ood, text = folder()
    rng = np.random.default_rng(5)
    kinds = unit(rng.normal(size=(7, 24)))
    own = np.where(is_ood, np.arange(len(images)), np.repeat(np.arange(7), 42)[: len(images)] % 6)
    looks = unit(np.where(is_ood[:, None], unit(rng.normal(size=(len(images), 24))), kinds[own % 7]) + 0.05)
    looks = unit(looks + 0.03 * rng.normal(size=looks.shape))
    cosines, none = images @ text.T, np.full(len(images), -np.inf)
    joint = joining.prepare(images, len(images), text, 0.999, 1.0, looks)
    evidence = Evidence(energy_of(cosines.astype(np.float64), none, 0.1), joining.standing(joint, cosines), none, 0.1)
    by_looks = joining.join(joint, evidence, evidence, [(images, looks)], calibration=((images, looks), evidence))
    expected = looks @ looks.T
    expected[images @ images.T > 0.999] = -1
    np.testing.assert_allclose(1 - by_looks.novelty, -np.sort(-expected, axis=1)[:, joint.rank - 1], atol=1e-6)
    by_features, _ = join(images, text, weight=1.0)
    assert auroc(is_ood, by_looks.ood_score) > auroc(is_ood, by_features.ood_score)
    assert by_looks.calibration == pytest.approx(by_looks.ood_score, abs=1e-9)


def test_which_evidence_speaks():
    images, _, text = folder()
    joined, _ = join(images, text, weight=1.0)
    names = [joining.UNLIKE[i] for i in joined.unlike]
    assert {names[i] for i in np.argsort(-joined.ood_score)[:3]} <= {"both", "the rest of the folder", "every class"}
    assert "both" in names
    assert len(set(names)) == 3


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30))
def test_quantiles_within_themselves_keep_order_and_ties(values):
    values = np.array(values)
    own, within = quantiles(values), quantiles_within(values, values)
    for found in (own, within):
        assert np.isfinite(found).all()
        for i in range(len(values)):
            for j in range(len(values)):
                if values[i] < values[j]:
                    assert found[i] < found[j]
                elif values[i] == values[j]:
                    assert found[i] == found[j]


def test_energy_is_that_of_the_score():
    rng = np.random.default_rng(1)
    cosines, others = rng.uniform(-0.2, 0.4, (50, 7)), rng.uniform(-0.2, 0.4, (50, 20))
    outside = np.log(np.exp(others / T).sum(axis=1))
    expected = -delta_energy(cosines, temperature=T, top_c=1, reset_to=0.0, background=others)
    np.testing.assert_allclose(energy_of(cosines, outside, T), expected, rtol=1e-9, atol=1e-12)


def test_the_order_of_the_images_does_not_matter():
    images, _, text = folder()
    order = np.random.default_rng(3).permutation(len(images))
    (plain, _), (shuffled, _) = join(images, text), join(images[order], text)
    np.testing.assert_allclose(shuffled.ood_score, plain.ood_score[order], atol=1e-4)


@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_labelled_images_are_scored_as_the_images_are(weight):
    images, _, text = folder()
    joined, _ = join(images, text, weight=weight)
    assert joined.weight == weight
    # Products of few rows may be rounded otherwise, so that those nearly alike change places.
    assert joined.calibration == pytest.approx(joined.ood_score[:9], abs=0.01)


@pytest.mark.parametrize(("images", "classes"), [(1, 3), (2, 1), (5, 5)])
def test_tiny_folders(images, classes):
    rng = np.random.default_rng(0)
    joined, _ = join(unit(rng.normal(size=(images, 8))), unit(rng.normal(size=(classes, 8))))
    assert np.isfinite(joined.ood_score).all()
    assert joined.weight == 0


def test_the_correction_takes_half_of_what_a_name_is_to_all_images():
    rng = np.random.default_rng(2)
    images, names = unit(rng.normal(size=(30, 16)) + 0.3), unit(rng.normal(size=(200, 16)))
    joint = joining.corrected(joining.prepare(images, 30, names[:5], 0.99), spanned(names[5:]), T)
    mean, middle = images.mean(axis=0), names[:5].mean(axis=0)
    spread = (names[5:] @ middle).std()
    expected = [-0.5 * t @ mean + 0.8 * T / spread * t @ middle for t in names]
    np.testing.assert_allclose(names @ joint.correction, expected, atol=1e-6)
    warm = joining.corrected(
        joint, spanned(names[5:]), 1.0
    )  # one τ of a softmax over everything would outweigh the cosines
    np.testing.assert_allclose(names @ warm.correction, [-0.5 * t @ mean + 0.25 * t @ middle for t in names], atol=1e-6)


@pytest.mark.parametrize("count", [1, 19])
def test_few_images_correct_nothing(count):
    rng = np.random.default_rng(0)
    joint = joining.prepare(unit(rng.normal(size=(count, 8))), count, unit(rng.normal(size=(3, 8))), 0.99)
    assert joining.corrected(joint, None, T).correction is None


def test_a_name_that_all_images_are_near_to_no_longer_hides_the_unknown():
    """All images lie towards one name, as in CLIP: images of nothing are taken for it, unless that is corrected."""
    rng = np.random.default_rng(0)
    axes = np.eye(24, dtype=np.float32)
    text = unit(axes[:4] + 0.8 * axes[20] * (np.arange(4) == 3)[:, None])
    of = np.repeat(np.arange(3), 40)
    images = unit(0.7 * axes[np.r_[of, np.full(12, 10)]] + axes[20] + 0.12 * rng.normal(size=(132, 24)))
    is_ood = np.arange(132) >= 120
    joint = joining.corrected(joining.prepare(images, 132, text, 0.999), None, T)
    none = np.full(132, -np.inf)
    plain = energy_of((images @ text.T).astype(np.float64), none, 0.05)
    found = energy_of((images @ text.T + text @ joint.correction).astype(np.float64), none, 0.05)
    assert auroc(is_ood, found) > auroc(is_ood, plain) + 0.1


@pytest.fixture
def one_folder(tmp_path):
    """A store of the made-up folder, whose images are in no folder named as a class."""
    from ood_audit.classes.vocabulary import Vocabulary
    from tests.helpers.made import make_store

    images, is_ood, text = folder()
    vocabulary = Vocabulary(tuple((f"class {k}",) for k in range(len(text))))
    paths = [f"{i:04d}.png" for i in range(len(images))]
    return make_store(tmp_path / "store", images, paths, vocabulary, text), is_ood


def test_report_ranks_by_it_and_says_which_evidence_speaks(one_folder):
    store, is_ood = one_folder
    result = ood_audit.report(store, top=12, settings=ScoreSettings(background=False, temperature=0.1))
    assert result.scores.parameters["novelty"] > 0
    found = {int(row["path"][:4]) for row in result.rows}
    assert len(found & set(np.flatnonzero(is_ood))) >= 8
    rows = store.query("SELECT DISTINCT unlike FROM report ORDER BY 1").rows
    assert {unlike for (unlike,) in rows} <= set(joining.UNLIKE)
    ((missing,),) = store.query("SELECT count(*) FROM scores WHERE novelty IS NULL").rows
    assert missing == 0
    again = ood_audit.score(store, settings=ScoreSettings(background=False, temperature=0.1))
    assert again.reused
    alone = ood_audit.score(store, settings=ScoreSettings(method="delta-energy", background=False, temperature=0.1))
    ((missing,),) = store.query("SELECT count(*) FROM scores WHERE novelty IS NULL").rows
    assert missing == alone.images


def test_only_the_ranking_is_by_corrected_cosines(one_folder):
    """Nearest classes and cosines are as they were, and ΔEnergy alone is the paper's."""
    store, _ = one_folder
    columns = "SELECT label, label_2, max_cosine, lead, delta_energy FROM scores ORDER BY path"
    default = ood_audit.score(store, settings=ScoreSettings(background=False, temperature=0.1))
    by_default = store.query(columns).rows
    alone = ood_audit.score(store, settings=ScoreSettings(method="delta-energy", background=False, temperature=0.1))
    by_energy = store.query(columns).rows
    assert default.parameters["corrected"] is True
    assert "corrected" not in alone.parameters
    assert [row[:4] for row in by_default] == [row[:4] for row in by_energy]
    assert max(abs(one[4] - other[4]) for one, other in zip(by_default, by_energy, strict=True)) > 1e-3


@pytest.mark.parametrize("joins", [False, True])
def test_class_folders_are_corrected_where_their_pictures_are_not_joined(tmp_path, monkeypatch, joins):
    from ood_audit.classes.vocabulary import Vocabulary
    from tests.helpers.made import make_store

    images, _, text = folder()
    vocabulary = Vocabulary(tuple((f"class {k}",) for k in range(len(text))))
    paths = [f"class {min(i // 40, 5)}/{i:04d}.png" for i in range(len(images))]
    store = make_store(tmp_path / "store", images, paths, vocabulary, text)
    monkeypatch.setattr("ood_audit.scoring.pictures.forecast", lambda rounds, weight: float(joins))
    asked = ScoreSettings(background=False, temperature=0.1, top_c=1, reset_to=0.0, prototypes=False)
    found = ood_audit.score(store, settings=asked)
    assert ("corrected" in found.parameters, "pictures" in found.parameters) == (True, False)  # there are no prototypes
    rows = dict(store.query("SELECT path, ood_score FROM scores").rows)
    joint = joining.corrected(joining.prepare(images, len(images), text, 0.99), None, 1.0)  # by the card's τ
    cosines = (images @ text.T + text @ joint.correction).astype(np.float64)
    expected = energy_of(cosines, np.full(len(images), -np.inf), 0.1)
    assert [rows[path] for path in paths] == pytest.approx(expected.tolist(), abs=2e-3)
    by_pictures = ood_audit.score(store, settings=replace(asked, prototypes=True)).parameters
    assert ("corrected" in by_pictures, "pictures" in by_pictures) == (not joins, joins)


def test_novelty_can_be_set_and_switched_off(one_folder):
    store, _ = one_folder
    off = ood_audit.score(store, settings=ScoreSettings(novelty=False, background=False, temperature=0.1))
    assert off.parameters["novelty"] == 0
    ((kinds,),) = store.query("SELECT count(DISTINCT unlike) FROM scores").rows
    assert kinds == 1
    weighted = ood_audit.score(store, settings=ScoreSettings(novelty=0.3, background=False, temperature=0.1))
    assert weighted.parameters["novelty"] == 0.3
    with pytest.raises(UsageError, match="choose auto, on, off, or a weight from 0 to 100"):
        ood_audit.score(store, settings=ScoreSettings(novelty=-1.0))
    with pytest.raises(UsageError, match="mcm has no `novelty`"):
        ood_audit.score(store, settings=ScoreSettings(method="mcm", novelty=0.3))


@pytest.mark.parametrize("novelty", [0.3, False])
@pytest.mark.parametrize("auto", [True, False])
def test_novelty_does_not_count_beside_pictures_of_the_classes(one_folder, tmp_path, novelty, auto):
    """An image that is unlike all pictures stands out anyway; the same scores as without, and a note about a weight."""
    store, _ = one_folder
    chosen = [f"{i:04d}.png,class {i // 40}\n" for i in range(240)]
    (tmp_path / "labels.csv").write_text("path,label\n" + "".join(chosen))
    labelled.add(store, tmp_path / "labels.csv")
    told: list[str] = []
    scores = [
        ood_audit.score(store, settings=ScoreSettings(novelty=one, background=False, auto=auto), note=told.append)
        for one in (None, novelty)
    ]
    assert scores[0].parameters == scores[1].parameters
    assert any("novelty does not count" in one for one in told) == bool(novelty)


def test_a_few_labelled_images_calibrate_and_leave_the_ranking_as_it_is(one_folder, tmp_path):
    store, _ = one_folder
    settings = ScoreSettings(background=False, temperature=0.1)
    ood_audit.score(store, settings=settings)
    before = [row[0] for row in store.query("SELECT ood_score FROM scores ORDER BY path").rows]
    chosen = [f"{i:04d}.png,class {i // 40}\n" for i in range(0, 240, 5)]  # fewer than are needed to choose by
    (tmp_path / "labels.csv").write_text("path,label\n" + "".join(chosen))
    labelled.add(store, tmp_path / "labels.csv")
    found = ood_audit.score(store, settings=settings)
    assert found.parameters["novelty"] > 0
    rows = dict(store.query("SELECT path, ood_score FROM scores").rows)
    assert [rows[path] for path in sorted(rows)] == pytest.approx(before, abs=1e-5)
    known = read_json(found.path.with_suffix(".json"))["calibration"]["ood_score"]
    # Half a rank, by which rounding can differ, is most at the ends.
    assert sorted(known) == pytest.approx(sorted(rows[line.partition(",")[0]] for line in chosen), abs=0.1)


def test_a_sample_of_neighbours_stands_for_a_large_folder(one_folder, monkeypatch):
    store, is_ood = one_folder
    whole = ood_audit.score(store, settings=ScoreSettings(background=False, temperature=0.1))
    ranks = [row[0] for row in store.query("SELECT ood_score FROM scores ORDER BY path").rows]
    monkeypatch.setattr(joining, "WHOLE", 100)
    monkeypatch.setattr(joining, "SAMPLE", 160)
    sampled = ood_audit.score(store, settings=ScoreSettings(background=False, temperature=0.1, seed=1))
    assert not sampled.reused
    assert whole.images == sampled.images
    again = [row[0] for row in store.query("SELECT ood_score FROM scores ORDER BY path").rows]
    assert abs(auroc(is_ood, np.array(again)) - auroc(is_ood, np.array(ranks))) < 0.05


def scored(store):
    """By path the score of each image, as the default ranks without labels, and the score file's settings."""
    found = ood_audit.score(store, settings=ScoreSettings(temperature=0.1))
    return dict(found.store.query("SELECT path, ood_score FROM scores").rows), found.parameters


def imported(store, images, text, rows, background=None):
    """A store of vectors alone, of these rows of the images."""
    at = store.parent
    np.savez(at / "vectors.npz", v=images[rows], paths=np.array([f"{i:04d}.jpg" for i in rows]))
    np.savez(at / "names.npz", texts=text, names=np.array([f"class {k}" for k in range(len(text))]))
    if background is not None:
        np.savez(at / "others.npz", texts=background, names=np.array([f"thing {k}" for k in range(len(background))]))
        background = at / "others.npz"
    import_features(at / "vectors.npz", store=store, texts=at / "names.npz", background=background)
    return store


@pytest.mark.parametrize("things", [0, 300])
def test_imported_vectors_are_ranked_by_corrected_cosines(tmp_path, things):
    images, _, text = folder()
    rng = np.random.default_rng(4)
    background = unit(rng.normal(size=(things, text.shape[1]))) if things else None
    found, parameters = scored(imported(tmp_path / "store", images, text, range(len(images)), background))
    assert parameters["corrected"] is True
    others = None if background is None else spanned(background)
    joint = joining.corrected(joining.prepare(images, len(images), text, 0.99), others, 0.1)
    cosines, outside = images @ text.T, np.full(len(images), -np.inf)
    if background is not None:
        to_things = images @ background.T + background @ joint.correction
        outside = np.log(np.exp(to_things.astype(np.float64) / 0.1).sum(axis=1))
    energy = energy_of((cosines + text @ joint.correction).astype(np.float64), outside, 0.1)
    evidence = Evidence(energy, joining.standing(joint, cosines), outside, 0.1)
    expected = joining.join(joint, evidence, evidence, [(images, None)]).ood_score
    # Vectors are kept in float16: what is near another in rank may change places with it.
    ours = np.array([found[path] for path in sorted(found)])
    assert np.corrcoef(ours, expected)[0, 1] > 0.9999
    assert abs(ours - expected).mean() < 0.01


def test_images_imported_later_are_ranked_as_in_a_fresh_store(tmp_path):
    images, is_ood, text = folder()
    later = np.arange(len(images)) % 3 == 0
    store = imported(tmp_path / "store", images, text, np.flatnonzero(~later | is_ood))
    before, _ = scored(store)
    found, parameters = scored(imported(store, images, text, np.flatnonzero(later)))
    (tmp_path / "fresh").mkdir()
    fresh, expected = scored(imported(tmp_path / "fresh" / "store", images, text, range(len(images))))
    assert parameters == expected
    assert found == pytest.approx(fresh, abs=1e-3)
    assert abs(np.array([found[path] - before[path] for path in before])).max() > 0.01


def test_names_imported_anew_take_the_place_of_the_old_ones(tmp_path):
    images, _, text = folder()
    store = imported(tmp_path / "store", images, text, range(len(images)))
    scored(store)
    others = unit(text + 0.5 * np.roll(text, 1, axis=0))
    found, _ = scored(imported(store, images, others, range(4)))
    (tmp_path / "fresh").mkdir()
    fresh, _ = scored(imported(tmp_path / "fresh" / "store", images, others, range(len(images))))
    assert found == pytest.approx(fresh, abs=1e-3)


def test_pictures_added_later_are_ranked_as_in_a_fresh_store(tmp_path):
    pictures = [path for path in sorted((EXAMPLES / "images").rglob("*.jpg")) if path.read_bytes()[-2:] == b"\xff\xd9"]
    (tmp_path / "pictures").mkdir()
    names = (EXAMPLES / "classes.txt").read_text(encoding="utf-8").split("\n")[:-1]

    def ranked(store, some):
        for i in some:
            shutil.copy(pictures[i], tmp_path / "pictures" / f"{i:04d}.jpg")
        own = ood_audit.embed(tmp_path / "pictures", store=tmp_path / store, device="cpu").store
        done = ood_audit.report(own, labels=names, top=10)
        return dict(own.query("SELECT path, ood_score FROM scores").rows), done.scores.parameters

    before, settings = ranked("store", range(0, len(pictures), 2))
    assert settings["corrected"] is True
    found, again = ranked("store", range(1, len(pictures), 2))
    fresh, expected = ranked("fresh", [])
    assert len(before) < len(found) == len(fresh)
    assert again == expected
    assert found == pytest.approx(fresh, abs=0.05)  # ranks that rounding can change, of 81 images


def test_scores_of_an_older_version_are_still_read(one_folder):
    """Their file lacks the newer columns; queries go on, and a report scores anew."""
    import pyarrow.parquet as pq

    store, _ = one_folder
    path = ood_audit.score(store, settings=ScoreSettings(background=False, temperature=0.1)).path
    pq.write_table(pq.read_table(path).drop_columns(["novelty", "unlike"]), path)
    ((rows,),) = open_store(store.root).query("SELECT count(*) FROM report").rows
    assert rows == 252
