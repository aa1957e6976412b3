"""How the settings of a report come about, on stores of every odd shape, with made-up features."""

import json
import os
from functools import partial
from typing import Any

import numpy as np
import pytest

import ood_audit
from ood_audit import ScoreSettings
from ood_audit.classes import pools, prompts
from ood_audit.classes.labelled import Labelled
from ood_audit.classes.vocabulary import Vocabulary
from ood_audit.errors import StoreError, UsageError
from ood_audit.scoring import metrics, selection
from ood_audit.scoring.settings import PROTOTYPE_WEIGHT
from ood_audit.store import open_store
from tests.helpers.cli import invoke
from tests.helpers.made import make_pool, make_store, problem

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen")


def vocabulary(classes):
    return Vocabulary(tuple((NAMES[k] if k < 8 else f"thing {k}",) for k in range(classes)))


@pytest.fixture(autouse=True)
def background(monkeypatch):
    """A small background in place of WordNet's, and the names of the pools that were asked for."""
    asked = []

    def load(store, vocabulary, name, encoder, on_progress, note):
        asked.append(name)
        text = np.load(store.root / "text.npy")
        return make_pool(text)

    monkeypatch.setattr(pools, "load", load)
    return asked


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Few rounds and few resamples: what they are for is tested elsewhere."""
    monkeypatch.setattr(selection, "select", partial(selection.select, rounds=3))
    original = metrics.bootstrap
    monkeypatch.setattr(metrics, "bootstrap", lambda *given, rounds: original(*given, rounds=3))


@pytest.fixture
def made(tmp_path):
    """Make a store of `images` images of `shown` of `classes` classes, in folders named as these or in one."""

    def make(classes, images, *, shown=None, ood=0, folders=True, name="store", seed=0):
        features, labels, text = problem(classes, images, shown=shown, ood=ood, seed=seed)
        words = vocabulary(classes)
        folder = [words.names[k] if folders and k >= 0 else "all" for k in labels]
        paths = [f"{f}/{i}.png" for i, f in enumerate(folder)]
        store = make_store(tmp_path / name, features, paths, words, text)
        np.save(store.root / "text.npy", text)
        return store

    return make


def ood_scores(store):
    return store.query("SELECT path, ood_score, label FROM scores ORDER BY path").rows


@pytest.mark.parametrize(
    ("classes", "images", "shown", "folders"),
    [
        (1, 1, 1, True),
        (1, 70, 1, True),
        (2, 2, 2, True),
        (3, 5, 3, False),
        (5, 100, 5, True),  # too few classes to choose
        (8, 9, 8, True),  # too few images
        (8, 80, 1, True),  # all of one class
        (8, 80, 1, False),
        (8, 80, 2, False),
        (8, 100, 8, True),
        (8, 100, 8, False),
        (300, 90, 8, True),
    ],
)
def test_stores_of_every_shape(made, classes, images, shown, folders):
    store = made(classes, images, shown=shown, folders=folders)
    for method in ("auto", "delta-energy", "best", "knn", "logitgap"):
        done = ood_audit.score(
            store, settings=ScoreSettings(method=method, prototypes=True if method == "logitgap" else None)
        )
        rows = ood_scores(store)
        assert len(rows) == images
        assert np.isfinite([row[1] for row in rows]).all()
        forecast = folders and method in ("auto", "delta-energy", "best")  # not by presumed labels
        assert (done.forecast is not None) == (forecast and images >= 80 and shown >= 6)


def test_no_readable_image(made):
    store = made(8, 0)
    with pytest.raises(ood_audit.OodAuditError, match="no readable image"):
        ood_audit.score(store)


@pytest.mark.parametrize("folders", [True, False])
def test_the_choice_is_the_same_in_every_run_and_by_seed(made, folders):
    first, second = (made(8, 200, ood=20, folders=folders, name=name) for name in "ab")
    done = [ood_audit.score(store, settings=ScoreSettings(method="best")) for store in (first, second)]
    assert done[0].parameters == done[1].parameters
    assert done[0].forecast == done[1].forecast
    assert ood_scores(first) == ood_scores(second)
    again = ood_audit.score(first, settings=ScoreSettings(method="best"))
    assert again.reused
    assert (again.parameters, again.forecast) == (done[0].parameters, done[0].forecast)
    other = ood_audit.score(second, settings=ScoreSettings(method="best", seed=1))
    assert not other.reused
    assert (other.forecast != done[0].forecast) == folders


def test_the_forecast_is_about_right(made):
    """20 planted images of no class: their AUROC is what leaving classes out foretold."""
    store = made(8, 200, ood=40)
    done = ood_audit.score(store)
    rows = ood_scores(store)
    from sklearn.metrics import roc_auc_score

    found = roc_auc_score([path.startswith("all/") for path, _, _ in rows], [score for _, score, _ in rows])
    assert found == pytest.approx(done.forecast, abs=0.1)


def test_what_is_given_is_kept_and_the_rest_chosen(made):
    store = made(8, 100)
    given: dict[str, Any] = {
        "temperature": 0.37,
        "top_c": 3,
        "reset_to": 0.05,
        "background": False,
        "prototypes": False,
    }
    for name, value in given.items():
        done = ood_audit.score(store, settings=ScoreSettings(**{name: value}))
        assert done.parameters[name] == value
        assert done.forecast is not None
    on = ood_audit.score(store, settings=ScoreSettings(background=True, prototypes=True))
    assert on.parameters["background"] is True
    assert on.parameters["prototypes"] == PROTOTYPE_WEIGHT
    every = ood_audit.score(store, settings=ScoreSettings(**given)).parameters
    assert every == {**given, "prototypes": 0.0, "corrected": True}


def test_the_weight_is_that_of_the_prototypes_module():
    from ood_audit.classes.prototypes import DEFAULT_WEIGHT

    assert PROTOTYPE_WEIGHT == DEFAULT_WEIGHT


def test_the_background_is_on_where_too_little_is_known_to_choose(made, background):
    store = made(8, 10)
    done = ood_audit.score(store)
    assert done.parameters["background"] is True
    assert done.parameters["prototypes"] == 0
    assert done.forecast is None
    assert background == ["background"]


def test_the_background_on_without_a_choice(made, background):
    auto = False
    store = made(8, 100)
    without = ood_audit.score(store, settings=ScoreSettings(auto=auto))
    assert without.parameters["background"] is False
    assert background == []
    plain = ood_scores(store)
    done = ood_audit.score(store, settings=ScoreSettings(auto=auto, background=True))
    assert done.parameters == {**without.parameters, "background": True}
    assert done.forecast is None
    assert background == ["background"]
    assert ood_scores(store) != plain


def test_energy_and_delta_energy_beside_another_score_are_the_encoders(made):
    store = made(8, 100)
    columns = "SELECT delta_energy, energy FROM scores ORDER BY path"
    ood_audit.score(store, settings=ScoreSettings(auto=False))
    expected = store.query(columns).rows
    ood_audit.score(store, settings=ScoreSettings(method="knn"))
    np.testing.assert_allclose(store.query(columns).rows, expected, rtol=1e-5)


def test_energy_is_of_what_delta_energy_runs_over(made):
    """E_0 of classes and background, which falls as names join."""
    store = made(8, 100)
    ood_audit.score(store, settings=ScoreSettings(auto=False))
    (classes,) = store.query("SELECT avg(energy) FROM scores").rows
    ood_audit.score(store, settings=ScoreSettings(auto=False, background=True))
    (both,) = store.query("SELECT avg(energy) FROM scores").rows
    assert both[0] == pytest.approx(classes[0] - np.log(68 / 8), abs=0.1)  # τ = 1: about −log of how many


def report(store, *options):
    return invoke("report", "--store", store.root, "--top", 2, "--format", "json", *options)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--temperature", "warm"], "'warm' is neither a number nor 'auto'"),
        (["--temperature", "nan"], "choose between 0.0001 and 10000"),
        (["--temperature", "-1"], "choose between 0.0001 and 10000"),
        (["--temperature", "inf"], "choose between 0.0001 and 10000"),
        (["--top-c", "2.5"], "'2.5' is neither a whole number nor 'auto'"),
        (["--top-c", ""], "neither a whole number nor 'auto'"),
        (["--top-c", "0"], "choose 1 or more"),
        (["--reset-to", "2"], "choose a cosine between -1 and 1"),
        (["--reset-to", "low"], "'low' is neither a number nor 'auto'"),
        (["--background", "yes"], "'yes' is not one of"),
        (["--seed", "-1"], "-1 is not in the range"),
        (["--seed", "99999999999999999999"], "is not in the range"),
        (["--score", "nope"], "there is no such score; choose one of delta-energy, "),
        (["--score", "mcm", "--background", "on"], "the score mcm has no --background"),
        (["--score", "knn", "--temperature", "1"], "the score knn has no --temperature"),
        (["--score", "best", "--top-c", "2"], "--score best chooses --top-c itself"),
        (["--score", "best", "--temperature", "2"], "--score best chooses --temperature itself"),
        (["--prompts", "nope"], "there are no prompts of this name (there are: none yet)"),
        (["--prompts", "../x"], "use letters, digits"),
    ],
)
def test_nonsense_is_one_clear_line(made, options, complaint):
    done = report(made(8, 10), *options)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "internal" not in done.stderr


def test_auto_is_a_value_too(made):
    store = made(8, 100)
    done = report(store, "--temperature", "auto", "--top-c", "AUTO", "--reset-to", " auto ")
    assert done.returncode == 0, done.stderr
    assert "expected AUROC on this data about" in done.stderr
    assert "(as scored before)" in report(store).stderr  # the same request
    three = report(store, "--top-c", "3")
    assert "c = 3" in three.stderr
    assert "(as scored before)" not in three.stderr
    assert "100 images against 8 classes by ΔEnergy, τ = 1, c = 2, v = 0\n" in report(store, "--no-auto").stderr
    assert "τ = 1, c = 2, v = 0, background\n" in report(store, "--no-auto", "--background", "on").stderr
    assert "prototypes" not in report(store, "--no-prototypes").stderr


def test_best_says_what_it_chose(made):
    store = made(8, 100)
    done = report(store, "--score", "best")
    assert done.returncode == 0, done.stderr
    meta = json.loads((store.reports / "latest" / "meta.json").read_text())
    assert meta["method"] == "best"
    name = meta["parameters"]["score"]
    assert f"by {'ΔEnergy' if name == 'delta-energy' else name}" in done.stderr
    few = report(made(8, 10, name="few"), "--score", "best")
    assert "needs 60 images in 6 classes" in few.stderr
    assert "by ΔEnergy, τ = 1, c = 2, v = 0" in few.stderr


@pytest.fixture
def third_party(monkeypatch):
    """A score of another package, with an option that is a word."""
    from types import SimpleNamespace

    from ood_audit.scoring import scores

    def spread(cosines, *, how="std", power=1.0):
        return cosines.std(1) ** power

    entry = SimpleNamespace(name="spread", load=lambda: spread)
    monkeypatch.setattr(scores, "entry_points", lambda group, name=None: [entry] if name in (None, "spread") else [])
    scores.names.cache_clear()
    yield
    scores.names.cache_clear()


def test_a_score_of_another_package(made, third_party):
    store = made(8, 100)
    plain = report(store, "--score", "spread")
    assert plain.returncode == 0, plain.stderr
    assert "by spread, how = std, power = 1\n" in plain.stderr
    before = ood_scores(store)
    joined = report(store, "--score", "spread", "--prototypes")
    assert "by spread, how = std, power = 1, prototypes = 0.2\n" in joined.stderr
    assert "pictures of the classes: 100 images, folders" in joined.stderr
    assert ood_scores(store) != before
    refused = report(store, "--score", "spread", "--top-c", 2)
    assert refused.returncode == 2
    assert "the score spread has no --top-c" in refused.stderr


def truth_of(store, path):
    rows = [f"{name},{int(name.startswith('all/'))},{name.split('/')[0]}" for name, _, _ in ood_scores(store)]
    path.write_text("path,is_ood,label\n" + "\n".join(rows) + "\n")
    return path


def test_evaluate_tells_settings_forecast_and_prompts(made, tmp_path):
    store = made(8, 200, ood=30)
    ood_audit.score(store)
    truth = truth_of(store, tmp_path / "truth.csv")
    save_prompts(store, "mine")
    only = ["--score", "delta-energy", "--score", "best", "--score", "mcm", "--score", "mcm"]
    done = invoke("evaluate", "--store", store.root, "--truth", truth, "--format", "json", *only)
    assert done.returncode == 0, done.stderr
    rows = {(row["score"], row["prompts"]): row for row in json.loads(done.stdout)}
    assert set(rows) == {(s, p) for s in ("delta-energy", "best", "mcm") for p in ("none", "mine")}
    for (score, _), row in rows.items():
        assert (row["forecast"] is None) == (score == "mcm")
        assert 0.5 < row["auroc"] <= 1
    assert rows["mcm", "none"]["settings"] == "mcm, τ = 1"
    assert rows["delta-energy", "none"]["settings"].startswith("ΔEnergy, τ = ")
    assert rows["mcm", "none"]["auroc"] != rows["mcm", "mine"]["auroc"]
    alone = invoke("evaluate", "--store", store.root, "--truth", truth, "--prompts", "none", "--score", "mcm")
    assert alone.stdout.count("mcm") == 1
    assert "mine" not in alone.stdout + alone.stderr
    table = invoke("evaluate", "--store", store.root, "--truth", truth, "--no-auto", *only, "--format", "json")
    assert {row["forecast"] for row in json.loads(table.stdout)} == {None}
    wrong = invoke("evaluate", "--store", store.root, "--truth", truth, "--score", "nope")
    assert wrong.returncode == 2
    assert "there is no such score" in wrong.stderr


def save_prompts(store, name, *, improved=True, prototypes=True, created="2030-01-01", images=64, classes=8):
    features, labels, text = problem(classes, images)
    close = text + 0.03 * np.random.default_rng(len(name)).normal(size=text.shape)
    class_features = (close / np.linalg.norm(close, axis=1, keepdims=True)).astype(np.float32)
    recipe = {"created": created, "improved": improved, "prototypes": prototypes}
    own = Labelled(features, labels, [""] * images, np.arange(0, images, 4))
    arrays = {"context": np.zeros((4, 8), np.float32), "class_features": class_features}
    prompts.save(store, name, vocabulary(classes), arrays, own, recipe)
    return class_features, own


def test_prompts_are_the_newest_that_improved_and_fit(made):
    store, words = made(8, 80), vocabulary(8)
    assert prompts.choose(store, words, "auto") is None
    save_prompts(store, "old", created="2030-01-01T10")
    save_prompts(store, "new", created="2030-01-02T10")
    save_prompts(store, "worse", created="2030-01-03T10", improved=False)
    save_prompts(store, "others", created="2030-01-04T10", classes=7)
    save_prompts(store, "elsewhere", created="2030-01-05T10")
    recipe = json.loads((store.prompts / "elsewhere.json").read_text())
    (store.prompts / "elsewhere.json").write_text(json.dumps({**recipe, "encoder": "1" * 64}))
    notes: list[str] = []
    found = prompts.choose(store, words, "auto", notes.append)
    assert found is not None
    assert found.name == "new"
    assert notes == ["prompts: new (tuned); use --prompts none for the class names alone"]
    assert prompts.choose(store, words, "none", notes.append) is None
    for name in ("old", "worse"):
        chosen = prompts.choose(store, words, name, notes.append)
        assert chosen is not None
        assert chosen.name == name
    assert len(notes) == 1
    for name in ("others", "elsewhere"):
        with pytest.raises(UsageError, match="tuned for other classes or another encoder"):
            prompts.choose(store, words, name)
    with pytest.raises(UsageError, match=r"there are: elsewhere, new, old, others, worse"):
        prompts.choose(store, words, "nope")


def test_prompts_are_kept_as_they_were(made):
    store = made(8, 80)
    class_features, own = save_prompts(store, "mine")
    found = prompts.choose(store, vocabulary(8), "mine")
    assert found is not None
    np.testing.assert_array_equal(found.class_features, class_features)
    np.testing.assert_array_equal(found.labelled.labels, own.labels)
    np.testing.assert_array_equal(found.labelled.held_out, own.held_out)
    assert found.labelled.image_ids == own.image_ids
    np.testing.assert_allclose(found.labelled.features, own.features, atol=5e-4)  # float16
    np.testing.assert_allclose(np.linalg.norm(found.labelled.features, axis=1), 1, atol=1e-6)


@pytest.mark.skipif(os.name == "nt", reason="files have no such modes there")
def test_whoever_reads_the_store_reads_its_features(made):
    """Arrays are kept with the mode of all other files, so that colleagues report on a shared store."""
    store = made(8, 80)
    save_prompts(store, "mine")
    scored = ood_audit.score(store, settings=ScoreSettings(prototypes=True, background=False))
    modes = [path.stat().st_mode for path in (scored.path.with_suffix(".safetensors"), store.prompts / "mine.json")]
    assert modes[0] == modes[1] == (store.prompts / "mine.safetensors").stat().st_mode


def test_prompts_that_say_shift_move_the_background_as_they_did(made):
    """An earlier development version kept what is added to all names, and no matrix."""
    from safetensors.numpy import load_file, save

    store = made(8, 80)
    save_prompts(store, "mine")
    path = store.prompts / "mine.safetensors"
    arrays = load_file(path)
    shift = np.linspace(-1, 1, arrays["class_features"].shape[1], dtype=np.float32)
    path.write_bytes(save({**arrays, "shift": shift}))
    found = prompts.choose(store, vocabulary(8), "auto")
    assert found is not None
    assert found.move is not None
    names = arrays["class_features"]
    np.testing.assert_array_equal(names @ found.move[:-1] + found.move[-1], names + shift)


@pytest.mark.parametrize("damage", ["short", "empty", "gone", "other"])
def test_damaged_prompts_are_named(made, damage):
    store = made(8, 80)
    save_prompts(store, "mine")
    path = store.prompts / "mine.safetensors"
    if damage == "gone":
        path.unlink()
    elif damage == "other":
        from safetensors.numpy import save_file

        save_file({"something": np.zeros(3)}, path)
    else:
        path.write_bytes(path.read_bytes()[:100] if damage == "short" else b"")
    with pytest.raises(StoreError, match=r"mine\.safetensors is damaged; delete it and run `ood-audit tune` again"):
        prompts.choose(store, vocabulary(8), "auto")
    done = report(store)
    assert done.returncode == 1
    assert done.stderr.count("\n") <= 2
    assert report(store, "--prompts", "none").returncode == 0


def test_a_damaged_recipe_is_named(made):
    store = made(8, 80)
    save_prompts(store, "mine")
    (store.prompts / "mine.json").write_text("{")
    for name in ("auto", "mine"):
        with pytest.raises(StoreError, match=r"mine\.json is damaged"):
            prompts.choose(store, vocabulary(8), name)


def test_prompts_without_a_recipe_are_not_there(made):
    """As where the process was killed between the two files."""
    store = made(8, 80)
    save_prompts(store, "mine")
    (store.prompts / "mine.json").unlink()
    assert prompts.choose(store, vocabulary(8), "auto") is None
    with pytest.raises(UsageError, match="there are no prompts of this name"):
        prompts.choose(store, vocabulary(8), "mine")


@pytest.mark.parametrize("name", ["", "auto", "none", "../up", ".hidden", "a/b", "x" * 62, "new\nline", "a b"])
def test_names_of_prompts(name):
    with pytest.raises(UsageError, match="use letters, digits"):
        prompts.check_name(name)


def test_tuned_prompts_take_the_place_of_the_text(made):
    store = made(8, 80)
    ood_audit.score(store, settings=ScoreSettings(auto=False))
    plain = ood_scores(store)
    class_features, _ = save_prompts(store, "mine")
    done = ood_audit.score(store, settings=ScoreSettings(auto=False))
    assert (done.prompts, done.reused) == ("mine", False)
    (best,) = store.query("SELECT max(max_cosine) FROM scores").rows
    features = np.concatenate([batch.features for batch in ood_audit_features(store)])
    assert best[0] == pytest.approx(float((features @ class_features.T).max()), abs=1e-5)
    assert ood_scores(store) != plain
    assert ood_audit.score(store, settings=ScoreSettings(auto=False, prompts="none")).prompts == "none"
    assert ood_scores(store) == plain
    again = ood_audit.score(store, settings=ScoreSettings(auto=False))
    assert again.reused
    save_prompts(store, "mine", created="2031-01-01")  # tuned anew under the same name
    assert not ood_audit.score(store, settings=ScoreSettings(auto=False)).reused


def ood_audit_features(store):
    from ood_audit.store.parts import iter_features

    return iter_features(store)


def test_prompts_tuned_without_prototypes(made, tmp_path):
    """Reports and evaluations go without prototypes then, unless they are asked for."""
    store = made(8, 200, ood=20)
    ood_audit.score(store)
    truth = truth_of(store, tmp_path / "truth.csv")
    save_prompts(store, "mine", prototypes=False)
    assert ood_audit.score(store).parameters["prototypes"] == 0
    assert ood_audit.score(store, settings=ScoreSettings(prototypes=True)).parameters["prototypes"] == 0.2
    evaluated = ood_audit.evaluate(store, truth=truth, only=["delta-energy"])
    (row,) = [row for row in evaluated.rows if row["prompts"] == "mine"]
    assert "prototypes" not in row["settings"]


def test_few_labelled_images_beside_fewer_others(made):
    """They calibrate, though too few to be references."""
    store = made(8, 5, folders=False)
    save_prompts(store, "mine", images=40)
    done = ood_audit.score(store)
    assert done.references is not None
    assert done.references["source"] == "presumed"
    calibration = json.loads(done.path.with_suffix(".json").read_text())["calibration"]
    assert len(calibration["ood_score"]) == 10
    assert np.isfinite(calibration["ood_score"]).all()


def test_a_report_on_scored_images_needs_no_torch(made, monkeypatch):
    """With prompts, a choice and a background in use; in a process of its own."""
    from tests.conftest import run_process

    store = made(8, 100)
    save_prompts(store, "mine")
    assert report(store, "--background", "on").returncode == 0
    (store.root / "sitecustomize.py").write_text(
        "import sys\nclass NoTorch:\n    def find_spec(self, name, *rest):\n"
        "        if name == 'torch': raise ImportError('no torch')\nsys.meta_path.insert(0, NoTorch())\n"
    )
    path = f"{store.root}:{ood_audit.__path__[0]}/.."
    options = ["--top", 2, "--background", "on"]
    done = run_process("report", "--store", store.root, *options, PYTHONPATH=path, OOD_AUDIT_REPORT_AUTO="1")
    assert done.returncode == 0, done.stderr
    assert "(as scored before)" in done.stderr
    assert "prompts: mine (tuned)" in done.stderr
    options += ["--top-c", 4, "--device", "cuda"]
    other = run_process("report", "--store", store.root, *options, PYTHONPATH=path, OOD_AUDIT_REPORT_AUTO="1")
    assert "torch" in other.stderr  # the block holds: a GPU needs it


def test_a_second_writer_is_told_of_the_first(made, monkeypatch):
    from ood_audit.scoring import run as scoring
    from ood_audit.store import writing

    monkeypatch.setattr(scoring, "COMMIT_SECONDS", 0.1)
    store = made(8, 10)
    with writing(store.root, "scores"), pytest.raises(StoreError, match="another ood-audit"):
        ood_audit.score(store)
    with writing(store.root, "images"):  # an embed goes on meanwhile
        assert ood_audit.score(store).images == 10


def test_reads_what_was_there_when_an_embed_adds_to_it(made, monkeypatch):
    """A part that appears while the settings are chosen: the scores are outdated, not wrong, and made anew."""
    import shutil

    store = made(8, 100)
    later = made(8, 30, name="later", seed=1)
    original = selection.select

    def select(*given, **named):
        shutil.copy(later.parts[0], store.images / "part-00000002.parquet")
        return original(*given, **named)

    monkeypatch.setattr(selection, "select", select)
    assert ood_audit.score(store).images == 100
    monkeypatch.setattr(selection, "select", original)
    again = ood_audit.score(open_store(store.root))
    assert not again.reused
    assert again.images == store.query("SELECT count(*) FROM images").rows[0][0]


def test_a_device_that_is_not_there_is_an_error_also_where_nothing_is_left_to_compute(made):
    store = made(3, 30, shown=3)
    ood_audit.score(store)
    for device in ("cuda:7", "gpu"):
        with pytest.raises(ood_audit.OodAuditError, match=r"device|GPU"):
            ood_audit.score(store, device=device)
