"""Totals: kept in step by whatever changes the images, and never believed when they are of other parts."""

import json

import numpy as np
import pytest

import ood_audit
from ood_audit.classes.vocabulary import Vocabulary
from ood_audit.images.decode import Decoded
from ood_audit.images.sources import ImageRef
from ood_audit.store import open_store, views, writing
from ood_audit.store.compaction import compact
from ood_audit.store.forget import forget
from ood_audit.store.parts import PartWriter
from ood_audit.store.totals import Total, keep, scored, totals
from tests.conftest import EXAMPLES
from tests.helpers.made import make_store, problem, unit


@pytest.fixture
def store(tmp_path):
    features, _, text = problem(3, 6)
    made = make_store(tmp_path / "store", features, [f"{i}.png" for i in range(6)], Vocabulary((("a",),)), text)
    with PartWriter(made, "more") as writer:
        other = ImageRef("file:///other/1.png", "/other", "1.png", 7, 7)
        writer.add(other, Decoded(8, 8, "PNG", 7, 7, error="damaged PNG"), None, supersedes=False)
        known = ImageRef("file:///made-up/0.png", "/made-up", "0.png", 5, 2)
        writer.add(known, Decoded(8, 8, "PNG", 5, 2, "new"), unit(np.ones(text.shape[1])), supersedes=True)
    return made


@pytest.fixture
def asked(monkeypatch):
    """The number of times that DuckDB was opened."""
    opened = []
    connect = views.connect

    def counting(*values, **options):
        opened.append(1)
        return connect(*values, **options)

    monkeypatch.setattr(views, "connect", counting)
    return opened


def test_totals_are_by_source_and_of_what_counts(store):
    assert totals(store) == [Total("/made-up", 6, 0, 10), Total("/other", 0, 1, 7)]


def test_kept_totals_are_read_without_duckdb(store, asked):
    with writing(store.root, "images"):
        keep(store)
    asked.clear()
    assert totals(store) == [Total("/made-up", 6, 0, 10), Total("/other", 0, 1, 7)]
    assert not asked


@pytest.mark.parametrize("damage", ["", "[]", '{"parts": {}, "totals": []}'])
def test_totals_of_other_parts_are_not_believed(store, damage):
    (store.root / "totals.json").write_text(damage)
    assert sum(total.images for total in totals(store)) == 6


def test_a_killed_run_leaves_totals_that_are_counted_anew(store):
    keep(store)
    with PartWriter(store, "killed") as writer:
        writer.remove(ImageRef("file:///made-up/1.png", "/made-up", "1.png", 1, 1))
    assert [total.images for total in totals(store)] == [5, 0]


def test_whatever_changes_images_keeps_totals(pictures, tmp_path, asked):
    own = ood_audit.embed(pictures, store=tmp_path / "store", device="cpu").store

    def of_file():
        asked.clear()
        found = [(total.images, total.unreadable) for total in totals(own)]
        assert not asked
        return found

    assert of_file() == [(6, 0)]
    next(pictures.rglob("*.jpg")).unlink()
    (pictures / "broken.jpg").write_bytes(b"no picture")
    ood_audit.embed(pictures, store=own.root, device="cpu")
    assert of_file() == [(5, 1)]
    compact(own)
    assert len(own.parts) == 1
    assert of_file() == [(5, 1)]
    forget(pictures, own)
    assert of_file() == []


def test_scored_images_are_counted_by_the_recipe_or_the_scores(store_copy):
    store = open_store(store_copy)
    assert scored(store) == 0
    images = ood_audit.score(
        store, labels=EXAMPLES / "classes.txt", settings=ood_audit.ScoreSettings(auto=False)
    ).images
    assert scored(store) == images
    recipe = next(store.scores.glob("*.json"))
    values = json.loads(recipe.read_text())
    del values["images"]  # as 0.1.0 wrote it
    recipe.write_text(json.dumps(values))
    assert scored(store) == images == store.query("SELECT count(*) FROM scores").rows[0][0]
