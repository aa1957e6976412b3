"""Each number of a report has one source: the page, the exports and SQL over the store say the same."""

import io
from typing import Any

import numpy as np
import pytest

import ood_audit
from ood_audit import FindingSettings, ScoreSettings
from ood_audit.actions.export import export
from ood_audit.arrays import Spanned
from ood_audit.classes import pools, prompts
from ood_audit.classes.labelled import Labelled
from ood_audit.findings import duplicates, records
from ood_audit.images.decode import Decoded
from ood_audit.images.sources import ImageRef
from ood_audit.reports import content, summary
from ood_audit.store.parts import PartWriter
from ood_audit.store.views import connect
from tests.findings.test_shift import CLASSES, NAMES
from tests.helpers.made import make_store, unit
from tests.reports.test_html import Parsed, cards_of, counts_of

SETTINGS: dict[str, Any] = {
    "settings": ScoreSettings(auto=False, background=True, prototypes=True),
    "find": FindingSettings(false_alarms=0.05),
}


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """A store with findings of all kinds: unknown classes, drawings, wrong folders, copies and unreadable files."""
    rng = np.random.default_rng(0)
    text, style = NAMES[:6], 0.8 * unit(rng.normal(size=48))
    pool = pools.Pool(
        [f"thing {i}" for i in range(80)], Spanned(NAMES.astype(np.float16)), text, np.stack([np.arange(6)] * 2, axis=1)
    )

    def images(of, count):
        return unit(of[np.arange(count) % len(of)] + 0.09 * rng.normal(size=(count, 48)))

    # The last class looks more like the name of the first than like its own: names and pictures disagree about it.
    looks = np.concatenate([text[:5], unit(0.5 * text[5:] + 0.53 * text[:1])])
    labelled, known = images(looks, 96), images(looks, 240)
    strange = [images(text + style, 40), images(NAMES[6:40], 60)]
    kinds = [(CLASSES.names[(i + (i % 40 == 0)) % 6], f"id-{i}") for i in range(240)]
    kinds += [("new", f"drawn-{i}") for i in range(40)] + [("new", f"a-{i}") for i in range(60)]
    features = np.concatenate([known, *strange, known[:7]])
    paths = [f"{folder}/{name}.png" for folder, name in kinds] + [f"copies/{i}.png" for i in range(7)]
    hashes = [f"{i:064x}" for i in [*range(340), *range(7)]]
    store = make_store(tmp_path_factory.mktemp("audited"), features, paths, CLASSES, text, hashes)
    own = Labelled(labelled, np.arange(96) % 6, [""] * 96, np.arange(96))
    arrays = {"context": np.zeros((1, 48), np.float32), "class_features": text}
    prompts.save(store, "own", CLASSES, arrays, own, {"created": "2030", "improved": True, "prototypes": True})
    with PartWriter(store, "more") as writer:
        for i in range(3):
            image = ImageRef(f"file:///made-up/broken/{i}.png", "/made-up", f"broken/{i}.png", 1, 1)
            writer.add(image, Decoded(size_bytes=1, mtime_ns=1, error="truncated"), None, supersedes=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "sizes", lambda uris: [1] * len(uris))  # as if the files were there
        patch.setattr(pools, "load", lambda *arguments: pool)
        made = ood_audit.report(store, top=8, **SETTINGS)
    return store, made, text


@pytest.fixture(scope="module")
def page(audited):
    return Parsed(audited[1].html.read_text(encoding="utf-8"))


def counted(store, condition: str, view: str = "report") -> int:
    return int(store.query(f"SELECT count(*) FROM {view} WHERE {condition}").rows[0][0])


def exported(store, *kinds: str) -> list[str]:
    out = io.BytesIO()
    export(store, out=out, kinds=kinds)
    return [line.rpartition("/made-up/")[2] for line in out.getvalue().decode().splitlines()]


def test_each_number_of_the_page_is_that_of_sql_and_of_the_exports(audited, page):
    store, made, _ = audited
    flagged, covariate = counted(store, "flagged"), counted(store, "shift = 'covariate'")
    both = counted(store, "flagged AND shift = 'covariate'")
    labels = counted(store, "kind = 'label'", "issues")
    copies_ = counted(store, "kind IN ('exact-duplicate', 'near-duplicate')", "issues")
    unreadable = counted(store, "status = 'error'", "images")
    assert unreadable == len(exported(store, "unreadable")) == 3
    assert min(flagged - both, both, covariate - both, labels, copies_) > 0  # there is something to confuse

    exact = counted(store, "kind = 'exact-duplicate'", "issues")
    expected = [f"{flagged} belong to no class", f"{labels} look mislabelled", f"{exact} exact duplicates"]
    expected += [f"{covariate - both} perhaps in another style", f"{unreadable} unreadable", "Details"]
    assert [text for text in counts_of(page) if "unusual" not in text] == expected
    assert f"{counted(store, 'true')} images" in page.text("span")
    sections = {section.kind: section.count for section in made.sections}
    assert (sections["ood"], sections["label"], sections["exact-duplicate"]) == (flagged, labels, exact)
    said = " ".join(summary.lines(made))
    assert f"{flagged} belong to no class" in said and f"{unreadable} cannot be read" in said
    assert counted(store, "kind = 'ood'", "issues") == len(exported(store, "ood")) == flagged
    assert len(exported(store, "covariate-shift")) == covariate
    assert len(exported(store, "label")) == labels
    assert len(exported(store, "exact-duplicate", "near-duplicate")) == copies_
    assert any(f"flagged: {flagged} images" in note for note in made.decisions.notes)


def test_the_page_has_all_findings_whatever_is_printed(audited, page):
    """`--top 8` is what is printed, and in report.csv and report.json."""
    store, made, _ = audited
    assert len(made.rows) == 8
    assert len((made.folder / "report.csv").read_text().splitlines()) == 9
    sql = "SELECT path FROM report WHERE rank <= 8 OR flagged OR shift = 'covariate' ORDER BY rank"
    expected = [path for (path,) in store.query(sql).rows]
    ranked = with_records(page, "ood", "covariate-shift", "unusual")
    assert {card["data-path"] for card, _ in ranked} == set(expected)
    ranks = [int(dict(record["facts"])["Rank"].split()[0]) for _, record in ranked if record["kind"] == "ood"]
    assert len(ranks) == counted(store, "flagged")
    assert ranks == sorted(ranks)


def with_records(page, *kinds):
    """The cards of some kinds, each with its record."""
    pairs = zip(cards_of(page), page.data["records"], strict=True)
    return [(card, record) for card, record in pairs if record["kind"] in kinds]


def test_the_map_counts_what_is_found(audited, page):
    store, _, _ = audited  # all images are on the map
    flagged = counted(store, "flagged")
    other = counted(store, "NOT flagged AND (shift = 'covariate' OR suggested_label IS NOT NULL)")
    rest = counted(store, "true") - flagged - other
    assert f"{rest} not flagged, {other} other finding, {flagged} flagged." in page.text("desc", id="map-text")[0]


def test_the_nearest_class_is_the_longest_bar(audited):
    """By the similarities that the score is made of, names and prototypes joined; those of names alone differ."""
    store, _, text = audited
    made = ood_audit.report(store, top=1000, name="whole", **SETTINGS)
    rows = {row["path"]: row for row in store.query("FROM report").dicts()}
    parsed = Parsed(made.html.read_text(encoding="utf-8"))
    shown = with_records(parsed, "ood", "covariate-shift", "unusual", "label")
    assert len({card["data-image"] for card, _ in shown}) > 300
    apart = 0
    embedding = dict(store.query(f"SELECT path, embedding FROM read_parquet('{store.parts[0]}')").rows)
    for card, record in shown:
        row = rows[card["data-path"]]
        (label, similarity, width), *others = record["bars"]
        assert label == row["label"]
        assert width == max(bar for _, _, bar in record["bars"])
        assert row["given_label"] in [None, *(name for name, _, _ in record["bars"])]
        assert others[0][0] == row["label_2"]
        gap = float(similarity.replace("−", "-")) - float(others[0][1].replace("−", "-"))
        assert gap == pytest.approx(row["margin"], abs=2e-4)
        apart += label != CLASSES.names[int((text @ embedding[row["path"]]).argmax())]
    assert apart > 0
    assert made.scores.parameters["prototypes"] > 0


def test_similarities_of_a_reused_score_are_the_same(audited, page):
    store, _, _ = audited
    again = ood_audit.report(store, top=8, name="again", **SETTINGS)
    assert again.scores.reused
    assert Parsed(again.html.read_text(encoding="utf-8")).data["records"] == page.data["records"]


def test_findings_of_the_same_severity_are_in_the_order_of_their_rank(audited):
    """Most flagged images have the smallest p-value there is; their names are in another order."""
    store, _, _ = audited
    rank = dict(store.query("SELECT path, rank FROM report").rows)
    for kinds in (["ood"], ["covariate-shift"], ["label"]):
        severity = {row.path: row.severity for row in records.read(store) if row.kind == kinds[0]}
        in_order = sorted(severity, key=lambda path: (-severity[path], rank[path]))
        assert list(severity) == in_order
        assert exported(store, *kinds) == in_order
    ood = [row for row in records.read(store) if row.kind == "ood"]
    assert ood[0].severity == ood[5].severity
    assert rank[ood[0].path] == 1
    assert [row.path for row in ood] != sorted(row.path for row in ood)


def test_typical_images_are_of_their_class_and_nothing_was_found_about_them(audited, page):
    store, made, _ = audited
    with connect(store) as db:
        found = content.Found(db, made.folder / "issues.parquet", 8, []).typical(list(CLASSES.names))
    rows = {row["image_id"]: row for row in store.query("FROM report").dicts()}
    issues_of = {row.image_id for row in records.read(store)}
    assert set(found) <= set(CLASSES.names) and len(found) > 3
    for label, ids in found.items():
        assert 0 < len(ids) <= content.TYPICAL
        assert all(rows[i]["label"] == rows[i]["given_label"] == label and i not in issues_of for i in ids)
        hashes = [rows[i]["content_hash"] for i in ids]
        assert len(set(hashes)) == len(hashes)
        distances = [rows[i]["distance"] for i in ids]
        assert distances == sorted(distances)
