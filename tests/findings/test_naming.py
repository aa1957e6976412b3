"""Names for images: what clusters are named, what `labels suggest` prints, and what a report says."""

import csv
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest

import ood_audit
from ood_audit import FindingSettings, ScoreSettings
from ood_audit.arrays import Spanned
from ood_audit.classes import background, wordnet
from ood_audit.classes.vocabulary import Vocabulary, read_vocabulary
from ood_audit.errors import OodAuditError, UsageError
from ood_audit.findings import naming
from ood_audit.store import open_store
from tests.conftest import ROOT
from tests.helpers.cli import invoke
from tests.helpers.made import add_vocabulary, make_store, unit

DIMENSION = 48
NAMES = ["dog", "dalmatian", "dachshund", "guitar", "acoustic guitar", "hedgehog", "cup", "davys", "rushdie", "saxhorn"]


def text_features():
    """Names at right angles, but that kinds are near what they are kinds of."""
    features = np.eye(len(NAMES), DIMENSION)
    for kind, general in (("dalmatian", "dog"), ("dachshund", "dog"), ("acoustic guitar", "guitar")):
        features[NAMES.index(kind)] += 0.7 * features[NAMES.index(general)]
    return unit(features)


@pytest.fixture
def nouns(monkeypatch, tmp_path) -> tuple[list[str], Spanned]:
    """Ten nouns in place of 45,000; what `pools.nouns` would encode."""
    monkeypatch.setenv("OOD_AUDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(background.CORPORA, "background", lambda: background.Corpus(sorted(NAMES), [], ("{}",)))
    order = np.argsort(NAMES)
    by_name = dict(zip(NAMES, text_features(), strict=True))

    class Encoder:
        def encode_texts(self, texts):
            return np.stack([by_name[text] for text in texts])

    monkeypatch.setattr("ood_audit.encoders.loading.load_same_encoder", lambda identity, device: Encoder())
    monkeypatch.setattr("ood_audit.findings.shortcuts.find", lambda *arguments: [])  # which has names of its own
    monkeypatch.setattr(naming, "_LIKE", 1.0)  # of 45,000 nouns the best is farther above the others
    monkeypatch.setattr(naming, "_SURE_LIKE", 2.0)
    return sorted(NAMES), Spanned(text_features()[order].astype(np.float16))


def images_of(counts: dict[str, int], seed: int = 0, noise: float = 0.02):
    """Features of so many images of each, and their paths."""
    rng = np.random.default_rng(seed)
    rows, paths = [], []
    for name, count in counts.items():
        rows.append(text_features()[NAMES.index(name)] + noise * rng.normal(size=(count, DIMENSION)))
        paths += [f"{name}/{i}.jpg" for i in range(count)]
    # What all images have in common has a direction that no name has, and much weight.
    common = 2 * np.eye(1, DIMENSION, DIMENSION - 1)
    return unit(np.concatenate(rows) + common), paths


def store_of(root, counts: dict[str, int], **options):
    features, paths = images_of(counts, **options)
    vocabulary = Vocabulary((("dog",), ("cup",)))
    return make_store(root / "store", features, paths, vocabulary, text_features()[[0, 6]])


def test_names_and_counts(tmp_path, nouns):
    store = store_of(tmp_path, {"hedgehog": 30, "cup": 20, "guitar": 10})
    found = naming.suggest(store)
    assert [(row.name, row.images) for row in found.rows] == [("hedgehog", 30), ("cup", 20), ("guitar", 10)]
    assert (found.images, found.unnamed) == (60, 0)
    for row in found.rows:
        assert len(set(row.examples)) == 3
        assert {path.partition("/")[0] for path in row.examples} == {row.name}
    again = naming.suggest(store)
    assert again == found


def test_all_images_are_counted_where_some_are_sampled(tmp_path, nouns, monkeypatch):
    store = store_of(tmp_path, {"hedgehog": 90, "cup": 60})
    monkeypatch.setattr(naming, "MOST", 30)
    found = naming.suggest(store)
    assert [(row.name, row.images) for row in found.rows] == [("hedgehog", 90), ("cup", 60)]


def test_the_largest_come_first_where_few_names_are_asked_for(tmp_path, nouns):
    store = store_of(tmp_path, {"guitar": 12, "hedgehog": 30, "cup": 20})
    found = naming.suggest(store, most=2)
    assert [row.name for row in found.rows] == ["hedgehog", "cup"]
    assert found.unnamed == 12


def test_a_mixture_gets_no_name(nouns):
    features, _ = images_of({"hedgehog": 30, "cup": 30})
    likeness = naming._likeness(nouns[0], nouns[1], features)
    centers = np.stack([features.mean(axis=0), features[:30].mean(axis=0)])
    assert naming.name_clusters(centers, np.array([60, 30]), likeness, 9) == [None, "hedgehog"]


def test_a_noun_stands_for_a_mixture_of_its_kinds(nouns):
    features, _ = images_of({"dalmatian": 20, "dachshund": 20, "cup": 40})
    likeness = naming._likeness(nouns[0], nouns[1], features)
    dogs = features[:40].mean(axis=0)
    assert naming.name_clusters(np.stack([dogs]), np.array([40]), likeness, 9) == ["dog"]


def test_people_and_places_by_name_are_no_names(nouns):
    features, _ = images_of({"rushdie": 20, "cup": 20})
    likeness = naming._likeness(nouns[0], nouns[1], features)
    (name,) = naming.name_clusters(features[:20].mean(axis=0)[None], np.array([20]), likeness, 9)
    assert name != "rushdie"


def test_names_that_wordnet_does_not_know_are_names_too():
    features = unit(np.eye(3, 8))
    likeness = naming.Likeness(["widget 7", "gizmo b", "rushdie"], Spanned(features), np.zeros(8, np.float32), 0.1)
    assert naming.name_clusters(features, np.array([3, 2, 1]), likeness, 9)[:2] == ["widget 7", "gizmo b"]
    nothing = naming.Likeness(["rushdie"], Spanned(features[:1]), np.zeros(8, np.float32), 0.1)
    assert naming.name_clusters(features[:1], np.array([3]), nothing, 9) == [None]


def test_words_are_common_that_captions_have():
    ranks = naming._ranks()
    assert len(ranks) > 30_000
    assert ranks["dog"] < ranks["hedgehog"] < ranks["ibis"]
    assert "xanthate" not in ranks
    assert not [word for word in ("dog</w>", "", "#version:") if word in ranks]


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_any_number_of_images_can_be_clustered(count):
    features = unit(np.random.default_rng(1).normal(size=(count, 8)))
    centers, labels = naming.clusters(features)
    assert len(labels) == count and set(labels) == set(range(len(centers)))
    same = np.repeat(features[:1], count, axis=0)
    centers, labels = naming.clusters(same)
    assert len(centers) == 1 and not labels.any()


def test_the_scale_is_that_of_all_pairs(nouns):
    features, _ = images_of({"hedgehog": 7, "cup": 5})
    likeness = naming._likeness(nouns[0], nouns[1], features)
    pairs = (features - features.mean(axis=0)) @ nouns[1].vectors().T
    assert likeness.scale == pytest.approx(float(np.sqrt((pairs**2).mean())), rel=1e-4)


def test_senses_of_wordnet():
    names = ["dog", "dalmatian", "rushdie", "davys", "child", "musical instrument"]
    own, below = wordnet.senses(names)
    of = {names[row]: {names[kind] for kind in below[[sense]].indices} for sense, row in enumerate(own)}
    assert of["dog"] >= {"dog", "dalmatian"}
    assert of["dalmatian"] == {"dalmatian"}
    assert "child" in of and not {"rushdie", "davys"} & set(of)


def test_a_list_to_start_from_is_a_labels_file(tmp_path, nouns):
    hostile = ["a # b\n.jpg", "cup | mug\r\x1b[31m.jpg", "=1+1\u202e.jpg"]
    rows = [naming.Suggestion(name, 3 - i, [hostile[i]]) for i, name in enumerate(("dog", "grand piano", "cup"))]
    text = naming.as_labels(naming.Suggestions(rows, 6, 0))
    (tmp_path / "classes.txt").write_text(text)
    assert read_vocabulary(tmp_path / "classes.txt").names == ["dog", "grand piano", "cup"]
    assert text.splitlines()[1] == "dog  # 3 images, e.g. a # b\\n.jpg"
    assert "1 image, e.g." in text.splitlines()[3]
    assert len(text.splitlines()) == 4 and "\x1b" not in text


def test_the_command(tmp_path, nouns):
    store = store_of(tmp_path, {"hedgehog": 30, "cup": 20})
    table = invoke("labels", "suggest", "--store", store.root)
    assert table.returncode == 0, table.stderr
    assert [line.split()[:2] for line in table.stdout.splitlines()[2:]] == [["hedgehog", "30"], ["cup", "20"]]
    assert "2 names for 50 of 50 images" in table.stderr
    rows = json.loads(invoke("labels", "suggest", "--store", store.root, "--format", "json").stdout)
    assert rows[0]["name"] == "hedgehog" and rows[0]["example_3"].startswith("hedgehog/")
    (first, *_) = csv.DictReader(
        io.StringIO(invoke("labels", "suggest", "--store", store.root, "--format", "csv").stdout)
    )
    assert first["images"] == "30"
    (tmp_path / "classes.txt").write_text(
        invoke("labels", "suggest", "--store", store.root, "--names", 1, "--format", "labels").stdout
    )
    assert read_vocabulary(tmp_path / "classes.txt").names == ["hedgehog"]


def test_what_can_not_be_named_is_said(tmp_path, nouns):
    store = make_store(
        tmp_path / "empty", np.empty((0, DIMENSION)), [], Vocabulary((("a",), ("b",))), unit(np.eye(2, DIMENSION))
    )
    with pytest.raises(OodAuditError, match="no readable image"):
        naming.suggest(store)
    with pytest.raises(UsageError, match="`most` 0"):
        naming.suggest(store, most=0)
    assert invoke("labels", "suggest", "--names", 0).returncode == 2
    assert "no store" in invoke("labels", "suggest", "--store", tmp_path / "none").stderr


@pytest.mark.parametrize("rule", [("_SURE_IMAGES", 9), ("_SURE_LIKE", 9.0), ("_SURE_LEAD", 9.0)])
def test_only_sure_names_are_given(tmp_path, nouns, monkeypatch, rule):
    """Of several images that are very like a noun, and clearly more so than the next that does not say the same."""
    store = store_of(tmp_path, {"hedgehog": 8, "dachshund": 8, "guitar": 20})
    ids = dict(store.query("SELECT image_id, path FROM images WHERE NOT starts_with(path, 'guitar')").rows)
    names = naming.name_images(store, [*ids], 36, nouns)
    assert {name for i, name in names.items() if ids[i].startswith("hedgehog")} == {"hedgehog"}
    # The next noun to `dachshund` is `dog`, which says the same, so that it leaves no doubt.
    assert {name for i, name in names.items() if ids[i].startswith("dachshund")} <= {"dachshund", "dog"} != set()
    monkeypatch.setattr(naming, *rule)
    assert naming.name_images(store, [*ids], 36, nouns) == {}


def test_a_report_names_the_most_ood_images(tmp_path, nouns):
    store = store_of(tmp_path, {"dog": 40, "cup": 40, "hedgehog": 9, "guitar": 6})
    before = ood_audit.report(store, top=15, settings=ScoreSettings(auto=False))
    assert [note for note in before.decisions.notes if "labels suggest` once" in note]
    assert {row["cluster"] for row in before.rows} == {None}

    naming.suggest(store)
    made = ood_audit.report(store, top=15)
    names = {row["path"]: row["cluster"] for row in made.rows}
    assert {path.partition("/")[0] for path in names} == {"hedgehog", "guitar"}  # the most OOD, as it should be
    assert all(name == path.partition("/")[0] for path, name in names.items())
    assert "what they look like: hedgehog (9 images), guitar (6 images)" in made.decisions.notes
    counts = "SELECT cluster, count(*) FROM report GROUP BY 1 ORDER BY 2 DESC"
    assert open_store(store.root).query(counts).rows == [(None, 80), ("hedgehog", 9), ("guitar", 6)]
    page = made.html.read_text()

    (place,) = [row for row in made.rows if row["path"] == "guitar/0.jpg"]
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    classes = next(row for row in data["records"] if row["uri"] == place["uri"])["bars"]
    assert {label for label, *_ in classes} == {"dog", "cup"}


def test_flagged_images_are_named_and_their_findings_say_so(tmp_path, nouns, monkeypatch):
    store = store_of(tmp_path, {"dog": 40, "cup": 40, "hedgehog": 9, "guitar": 6})
    naming.suggest(store)
    scores = ood_audit.score(store)
    recipe = json.loads(scores.path.with_suffix(".json").read_text())
    recipe["calibration"] = {"ood_score": [-9.0] * 99, "distance": [0.0] * 99, "label": [0] * 99, "predicted": [0] * 99}
    monkeypatch.setattr("ood_audit.findings.decide.read_recipe", lambda path: recipe)
    made = ood_audit.report(store, top=3, find=FindingSettings(false_alarms=0.02))  # all are beyond that calibration
    assert made.decisions.flags is not None and made.decisions.flags["flagged"] == 95
    found = store.query("SELECT path, evidence FROM issues WHERE kind = 'ood'").rows
    named = [path for path, evidence in found if f"; looks like: {path.partition('/')[0]};" in f"{evidence};"]
    assert len(found) == 95 and len(named) == 95
    assert any(note.startswith("what they look like: ") for note in made.decisions.notes)


def test_decisions_of_an_older_report_lack_the_column(tmp_path, nouns):
    import pyarrow.parquet as pq

    store = store_of(tmp_path, {"dog": 40, "cup": 40, "hedgehog": 9})
    made = ood_audit.report(store, top=5)
    path = made.folder / "decisions.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["cluster"]), path)
    assert store.query("SELECT count(*), count(cluster) FROM report").rows == [(89, 0)]
    naming.suggest(store)
    assert ood_audit.report(store, top=9).rows[0]["cluster"] == "hedgehog"


def test_a_named_report_on_a_scored_store_imports_nothing_slow(tmp_path, nouns):
    store = store_of(tmp_path, {"dog": 40, "cup": 40, "hedgehog": 9})
    naming.suggest(store)
    ood_audit.report(store, top=9)
    code = (
        "import sys\nsys.modules['umap'] = None\n"
        "from ood_audit.classes import background\nfrom ood_audit.findings import naming\n"
        "naming._LIKE, naming._SURE_LIKE = 1.0, 2.0\n"
        f"background.CORPORA['background'] = lambda: background.Corpus({sorted(NAMES)!r}, [], ('{{}}',))\n"
        "import ood_audit\nmade = ood_audit.report(sys.argv[1], top=9)\nassert made.rows[0]['cluster'] == 'hedgehog'\n"
        "print([name for name in ('torch', 'open_clip', 'sklearn', 'scipy.stats') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(store.root)], capture_output=True, text=True, env=environment
    )
    assert done.stdout == "[]\n", done.stderr


def test_another_vocabulary_does_not_change_the_names(tmp_path, nouns):
    store = store_of(tmp_path, {"dog": 40, "cup": 40, "hedgehog": 9})
    naming.suggest(store)
    other = Vocabulary((("cup",), ("guitar",)))
    add_vocabulary(store, other, text_features()[[6, 3]])
    store.set_current(vocabulary=other.id)
    names = {row["path"]: row["cluster"] for row in ood_audit.report(store, top=89).rows}
    assert len(names) == 89
    assert all(name == path.partition("/")[0] for path, name in names.items())
