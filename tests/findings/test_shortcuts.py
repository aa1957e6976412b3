"""Shortcuts: what goes with one class, in the statistics and through a report."""

import numpy as np
import pyarrow as pa
import pytest

import ood_audit
from ood_audit.classes import background
from ood_audit.classes.vocabulary import Vocabulary
from ood_audit.findings import shortcuts
from ood_audit.findings.words import Names
from tests.helpers.made import make_store, unit

AXES = np.eye(12)
NAMES = Names(["snow", "text", "frame"], unit(AXES[5:8] + 0.01), 0.3)


def images(classes=3, each=30, shift=0.0, share=1.0, seed=0):
    """Features of images whose class is one of the first axes; a share of the last class also has the fifth."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    rows = AXES[labels] + 0.1 * rng.normal(size=(len(labels), 12))
    rows[(labels == classes - 1) & (rng.random(len(labels)) < share), 5] += shift
    return unit(rows), labels


def found(features, labels, least=3.0):
    least = np.broadcast_to(least, (len(set(labels.tolist())), 3))
    return list(shortcuts.strongest(features @ NAMES.features.T, labels, least, np.full(3, 0.75)))


def test_what_a_class_has_and_the_others_have_not_is_found():
    (one,) = found(*images(shift=0.6))
    assert (one.group, NAMES.names[one.condition]) == (2, "snow")
    assert one.share > 0.9
    assert one.share_others == pytest.approx(0.05, abs=0.01)


def test_nothing_is_found_where_nothing_goes_with_a_class():
    assert not any(found(*images(seed=seed)) for seed in range(5))


def test_what_few_of_a_class_have_is_not_found():
    assert found(*images(shift=0.6, share=0.2)) == []


def test_what_means_the_class_is_not_found():
    least = np.full((3, 3), 3.0)
    least[2, 0] = np.inf
    features, labels = images(shift=0.6)
    assert found(features, labels, least) == []


def test_a_class_of_few_images_has_no_shortcut():
    features, labels = images(shift=0.6)
    rows = np.r_[: 2 * 30, 2 * 30 : 2 * 30 + 9]
    assert found(features[rows], labels[rows]) == []


def test_a_measure_is_a_shortcut_too():
    table = pa.table({"image_id": [str(i) for i in range(60)], "brightness": [0.5] * 30 + [0.1] * 30})
    values = np.stack([np.r_[np.full(30, 0.5), np.full(29, 0.1), np.nan]] * 2, axis=1) * [1, -1]
    values += 0.01 * np.random.default_rng(0).normal(size=values.shape)
    bright, dark = shortcuts.strongest(values, np.repeat([0, 1], 30), np.full((2, 2), 3.0), np.full(2, 0.6))
    assert (bright.condition, dark.condition) == (0, 1)
    assert shortcuts._above(table, -table["brightness"].to_numpy(), dark.threshold) == tuple(map(str, range(30, 60)))


def test_measures_that_older_stores_lack_are_no_shortcuts():
    features, labels = images(shift=0.6)
    values = np.hstack([features @ NAMES.features.T, np.full((len(labels), 2), np.nan, np.float32)])
    assert [one.condition for one in shortcuts.strongest(values, labels, np.full((3, 5), 3.0), np.full(5, 0.6))] == [0]


def test_names_of_a_class_are_told_from_others():
    vocabulary = Vocabulary((("road sign",), ("drawing",), ("wolf",)))
    names = Names(["sign", "sketch", "snow"], unit(AXES[:3]), 0.3)
    meant = shortcuts.meant(vocabulary.names, vocabulary, unit(AXES[3:6]), names)
    # a word in common; a kind of it, by WordNet; neither
    assert meant.tolist() == [[True, False, False], [False, True, False], [False, False, False]]


@pytest.fixture
def store(tmp_path, monkeypatch):
    features, labels = images(shift=0.6)
    names = ["cat", "dog", "<b>\x1b[31mwolf"]
    paths = [f"{names[k]}/{i}.jpg" for i, k in enumerate(labels)]
    vocabulary = Vocabulary(tuple((name,) for name in names))
    made = make_store(tmp_path / "store", features, paths, vocabulary, unit(AXES[:3]))
    monkeypatch.setattr(shortcuts, "conditions", lambda store, encoder: NAMES)
    return made


def test_a_report_lists_the_images_that_show_it(store):
    report = ood_audit.report(store, settings=ood_audit.ScoreSettings(method="maxlogit", auto=False))
    rows = ood_audit.open(store.root).findings("shortcut").rows
    assert len(rows) > 25
    assert all(row.path.startswith("<b>") for row in rows)
    assert "look like snow, against 4% of the other images" in rows[0].evidence.replace("5%", "4%")
    page = report.html.read_text()
    assert "Shortcuts" in page
    assert "<b>" + "\x1b" not in page
    (section,) = [one for one in report.sections if one.kind == "shortcut"]
    assert section.groups[0].name == ("<b>\x1b[31mwolf", "look like snow")
    assert section.count == len(rows)
    assert any(note.startswith("shortcut: ") for note in report.decisions.notes)


def test_a_split_has_shortcuts_too(tmp_path, monkeypatch):
    features, labels = images(classes=2, shift=0.6)
    paths = [f"{('train', 'test')[k]}/dog/{i}.jpg" for i, k in enumerate(labels)]
    vocabulary = Vocabulary((("dog",), ("cat",)))
    splits = [path.split("/")[0] for path in paths]
    made = make_store(tmp_path / "store", features, paths, vocabulary, unit(AXES[:2]), splits=splits)
    monkeypatch.setattr(shortcuts, "conditions", lambda store, encoder: NAMES)
    ood_audit.report(made, settings=ood_audit.ScoreSettings(method="maxlogit", auto=False))
    row = ood_audit.open(made.root).findings("shortcut").rows[0]
    assert "of the split test look like snow" in row.evidence


def test_pictures_are_measured_where_no_names_can_be_encoded(store, monkeypatch):
    """They may be in no cache, and a report on scores that are there loads no model."""
    monkeypatch.setattr(shortcuts, "conditions", lambda store, encoder: None)
    rows = store.query("SELECT image_id, folder AS given_label, split FROM images ORDER BY image_id").rows
    names = ("image_id", "given_label", "split")
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    grey = [0.0 if row[1] == "cat" else 0.4 + 0.001 * i for i, row in enumerate(rows)]
    for name in shortcuts.MEASURES:
        values = grey if name == "saturation" else [0.5] * len(rows)
        table = table.append_column(name, pa.array(values, pa.float32()))
    notes: list[str] = []
    vocabulary = Vocabulary((("cat",), ("dog",), ("wolf",)))
    found = shortcuts.find(store, table, vocabulary, unit(AXES[:3]), None, notes.append)
    assert [(one.group, one.shows) for one in found] == [("cat", "look grey")]
    assert notes == ["shortcuts: none looked for by the names of conditions, as they are not encoded in the cache"]


def test_no_condition_has_two_names():
    corpus = background.CORPORA["conditions"]()
    assert len(corpus.names) == len(set(corpus.names)) < 200
