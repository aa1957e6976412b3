"""The parts of a report that the command line tests don't reach."""

import gc
from dataclasses import replace
from itertools import pairwise

import pytest

import ood_audit
from ood_audit import ScoreSettings
from ood_audit.errors import UsageError
from ood_audit.reports import paging, ranking, summary
from ood_audit.reports import run as report_run
from ood_audit.reports.model import Group, Kind, Section
from ood_audit.store import open_store
from ood_audit.store.views import connect


def test_one_class_has_no_runner_up(store_copy):
    made = ood_audit.report(store_copy, labels=["airplane"], top=3)
    assert [row["label_2"] for row in made.rows] == [None] * 3
    assert [row["margin"] for row in made.rows] == [None] * 3
    assert made.html.exists()


@pytest.mark.parametrize("was_enabled", [True, False])
def test_garbage_is_collected_after_a_report_if_it_was_before(was_enabled, store_copy, monkeypatch):
    during = []

    def fail(*args):
        during.append(gc.isenabled())
        raise ZeroDivisionError

    monkeypatch.setattr(report_run, "_write_pages", fail)
    (gc.enable if was_enabled else gc.disable)()
    try:
        with pytest.raises(ZeroDivisionError):
            ood_audit.report(store_copy, labels=["airplane"], top=3)
        assert during == [False]
        assert gc.isenabled() == was_enabled
    finally:
        gc.enable()


def test_a_long_report_goes_on_in_further_files(store_copy, monkeypatch):
    monkeypatch.setattr(paging, "LENGTH", 10)
    made = ood_audit.report(store_copy, labels=["airplane", "chair"], top=25)
    pages = [made.folder / paging.file_name(number) for number in range(1, 10)]
    cards = [page.read_text().count('<li class="card"') for page in pages if page.exists()]
    assert cards[0] == 10 and all(0 < count <= 10 for count in cards)
    assert sum(cards) == sum(section.count for section in made.sections) >= 25


def test_histogram_counts_every_image_once(store_copy):
    ood_audit.score(store_copy, labels=["airplane", "chair"])
    with connect(open_store(store_copy)) as db:
        bins = ranking.histogram(db)
        low, high = db.execute("SELECT min(ood_score), max(ood_score) FROM report").fetchall()[0]
    assert sum(count for _, _, count in bins) == 81
    assert [bins[0][0], bins[-1][1]] == pytest.approx([low, high])
    assert all(a[1] == pytest.approx(b[0]) for a, b in pairwise(bins))


def test_histogram_of_nothing(store_copy):
    with connect(open_store(store_copy)) as db:
        assert ranking.histogram(db) == []


def test_a_report_replaces_its_older_self_as_a_whole(store_copy):
    first = ood_audit.report(store_copy, labels=["airplane", "chair"], top=3)
    (first.folder / "extra.txt").write_text("of another version")
    ood_audit.report(store_copy, top=2)
    assert sorted(path.name for path in first.folder.parent.iterdir()) == ["latest"]
    assert not (first.folder / "extra.txt").exists()


def test_the_heading_says_what_was_audited(store_copy):
    with connect(open_store(store_copy)) as db:
        sources = db.execute("SELECT DISTINCT source FROM images").fetchall()
    folder = sources[0][0].rpartition("/")[2]
    first = ood_audit.report(store_copy, labels=["airplane"], top=3)
    assert f"<title>{folder} · ood-audit</title>" in first.html.read_text()
    second = ood_audit.report(store_copy, labels=["airplane"], top=3, name="again")
    assert f"<title>{folder} · again · ood-audit</title>" in second.html.read_text()


def test_a_heading_of_many_sources_stays_short(pictures, tmp_path):
    for number, path in zip(range(5), list(pictures.glob("*/*")), strict=False):
        (tmp_path / f"<b>{number}").mkdir()
        path.rename(tmp_path / f"<b>{number}" / path.name)
    done = ood_audit.embed([tmp_path / f"<b>{number}" for number in range(5)], store=tmp_path / "store")
    made = ood_audit.report(done.store, labels=["airplane"], top=1)
    assert "<title>&lt;b&gt;0, &lt;b&gt;1, &lt;b&gt;2, 2 more · ood-audit</title>" in made.html.read_text()


@pytest.mark.parametrize("name", ["../up", ".hidden", "", "a/b"])
def test_names_stay_inside_the_store(store_copy, name):
    with pytest.raises(UsageError, match="`name`"):
        ood_audit.report(store_copy, labels=["airplane"], name=name)


def test_pictures_that_are_gone_do_not_stop_a_report(pictures, tmp_path):
    done = ood_audit.embed(pictures, store=tmp_path / "store")
    for path in pictures.glob("*/*"):
        path.unlink()
    made = ood_audit.report(done.store, top=6)
    assert len(made.rows) == 6
    assert made.html.exists()


@pytest.mark.parametrize("method", ["auto", "delta-energy"])
def test_scores_do_not_depend_on_the_chunk(store_copy, monkeypatch, method):
    """With `auto`, each score is joined from ranks among all images: these, too, are the same to the last digits."""
    sql = "SELECT path, label, ood_score, delta_energy, max_cosine, margin, novelty, lead FROM scores ORDER BY path"
    found = []
    for chunk_bytes in (4 << 20, 100):
        monkeypatch.setattr("ood_audit.scoring.similarity._CHUNK_BYTES", chunk_bytes)
        made = ood_audit.score(store_copy, labels=["airplane", "chair", "cup"], settings=ScoreSettings(method=method))
        assert not made.reused
        found.append(made.store.query(sql).rows)
        made.path.unlink()  # so that it is computed again
    whole, pieces = found
    assert len(whole) == 81
    assert [row[:2] for row in whole] == [row[:2] for row in pieces]
    for one, other in zip(whole, pieces, strict=True):
        assert one[2:] == pytest.approx(other[2:], abs=1e-5)


def test_groups_are_told_in_words(store_copy):
    made = ood_audit.report(store_copy, settings=ScoreSettings(auto=False))
    found: dict[Kind, dict[tuple[str, ...], int]] = {
        "ood": {("gun",): 4, (): 8},
        "label": {("crab", "lobster"): 4, (): 2},
        "shortcut": {("car", "look grey"): 14},
        "text": {("cup",): 3},
        "exact-duplicate": {(): 3},
    }
    sections = [
        Section(kind, sum(groups.values()), [Group(name, count, ()) for name, count in groups.items()])
        for kind, groups in found.items()
    ]
    assert list(summary.lines(replace(made, sections=sections)))[1:6] == [
        "12 belong to no class: gun 4, others 8",
        "6 look mislabelled: 4 in crab look like lobster, others 2",
        "14 show what goes with their class: 14 of car look grey",
        "3 have the name of another class in them: 3 in cup",
        "3 are exact duplicates",
    ]
