"""Flags: conformal p-values, and what a report does with them."""

import csv
import json
import shutil
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

import ood_audit
from ood_audit import ScoreSettings
from ood_audit.findings.calibration import flag, p_values
from tests.conftest import EXAMPLES, run_cli
from tests.helpers.cli import invoke

scores = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=30)


@given(scores, scores)
def test_p_values_are_the_share_at_least_as_ood(calibration, ood_score):
    got = p_values(np.array(calibration), np.array(ood_score))
    expected = [(1 + sum(c >= s for c in calibration)) / (len(calibration) + 1) for s in ood_score]
    np.testing.assert_allclose(got, expected)


def test_false_alarms_are_as_asked_over_20_splits():
    """Exchangeable images: calibrated on one half, the other raises about the alarms that were asked for."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=800)
    for level in (0.05, 0.2):
        rates = []
        for _ in range(20):
            order = rng.permutation(800)
            rates.append(flag(images[order[:400]], images[order[400:]], false_alarms=level).flagged.mean())
        assert np.mean(rates) == pytest.approx(level, abs=0.015)


def test_false_discoveries_are_as_asked_over_20_splits():
    rng = np.random.default_rng(1)
    shares = []
    for _ in range(20):
        ood_score = np.concatenate([rng.normal(size=450), rng.normal(size=50) + 6])
        found = flag(rng.normal(size=1000), ood_score, fdr=0.2)
        assert found.flagged[450:].all()
        shares.append(found.flagged[:450].sum() / found.flagged.sum())
    assert np.mean(shares) <= 0.2


def test_fdr_is_benjamini_and_hochbergs_rule():
    rng = np.random.default_rng(2)
    found = flag(rng.normal(size=300), rng.normal(size=40) * 3, fdr=0.1)
    ordered = np.sort(found.p_values)
    passing = [k for k in range(1, 41) if ordered[k - 1] <= 0.1 * k / 40]
    expected = found.p_values <= ordered[passing[-1] - 1] if passing else np.zeros(40, bool)
    assert (found.flagged == expected).all()
    assert (found.flagged == (false_discovery_control(found.p_values) <= 0.1)).all()
    assert found.expected == pytest.approx(0.1 * found.flagged.sum())


levels = st.sampled_from(["0.01", "0.05", "0.1", "0.15", "0.2", "0.3", "0.35", "0.6", "0.7", "0.9"])


@given(scores, scores, levels)
def test_both_rules_decide_as_fractions_do(calibration, ood_score, written):
    """Also where a p-value is exactly the bound, which doubles lose."""
    level, n, count = Fraction(written), len(calibration), len(ood_score)
    p = [Fraction(1 + sum(c >= s for c in calibration), n + 1) for s in ood_score]
    passing = [q for k, q in enumerate(sorted(p), 1) if q <= level * k / count]

    by_rate = flag(np.array(calibration), np.array(ood_score), false_alarms=float(written))
    by_discoveries = flag(np.array(calibration), np.array(ood_score), fdr=float(written))

    assert by_rate.flagged.tolist() == [q <= level for q in p]
    assert by_rate.reachable == (Fraction(1, n + 1) <= level)
    assert by_discoveries.flagged.tolist() == [q <= max(passing, default=-1) for q in p]
    assert by_discoveries.reachable == (bool(passing) or p.count(Fraction(1, n + 1)) * level >= Fraction(count, n + 1))


def test_an_exact_tie_is_flagged():
    """Six of seven images have p = 3/5, which is just 0.7 · 6 / 7."""
    found = flag(np.array([0.0, 0.0, -1.0, -1.0]), np.array([0.0] * 6 + [-1.0]), fdr=0.7)
    assert found.p_values.tolist() == [0.6] * 6 + [1.0]
    assert found.flagged.tolist() == [True] * 6 + [False]


def test_too_few_calibration_images_are_said_to_be():
    found = flag(np.zeros(10), np.ones(5), false_alarms=0.05)
    assert not found.flagged.any()
    assert not found.reachable
    assert flag(np.zeros(19), np.ones(5), false_alarms=0.05).reachable
    assert not flag(np.zeros(19), np.concatenate([np.ones(1), np.zeros(99)]), fdr=0.05).reachable
    assert flag(np.zeros(19), np.ones(100), fdr=0.05).flagged.all()


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """Some pictures given to tune, all others under audit, a copy and a swap among them."""
    folder = tmp_path_factory.mktemp("audited")
    for source in sorted((EXAMPLES / "images").glob("*/*.jpg")):
        number = int(source.stem.removeprefix("img_"))
        place = folder / ("labelled" if number % 2 else "images") / source.parent.name
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, place)
    for path in (folder / "labelled").glob("*/img_9999.jpg"):
        path.unlink()
    sunflower = sorted((folder / "images" / "sunflower").iterdir())[0]
    shutil.copy(sunflower, folder / "images" / "sunflower" / "zz_copy.jpg")
    (folder / "images" / "chair" / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    store = folder / "store"
    assert run_cli("embed", folder / "images", "--store", store).returncode == 0
    labels = EXAMPLES / "classes.txt"
    done = run_cli(
        *("tune", "--labels", labels, "--from", folder / "labelled", "--store", store, "--epochs", "0", "--name", "own")
    )
    assert done.returncode == 0, done.stderr
    return store


def test_a_report_flags_and_lists_its_findings(audited):
    done = run_cli("report", "--store", audited, "--top", "5", "--false-alarms", "0.1", "--fail-over", "1%")
    assert done.returncode == 3, done.stderr
    store = ood_audit.open_store(audited)
    meta = json.loads((store.reports / "latest" / "meta.json").read_text())
    told = dict(store.query("SELECT shift, count(*) FROM report GROUP BY 1").rows)
    assert sum(told.values()) == meta["scored"]
    assert told == {
        name.replace("_", "-"): meta["shift"][name]
        for name in ("semantic", "covariate", "in_distribution")
        if meta["shift"][name]
    }
    rows = store.query("SELECT flagged, p_value FROM report ORDER BY rank").rows
    assert sum(flagged for flagged, _ in rows) == meta["flags"]["flagged"] > 0
    assert all(flagged == (p <= 0.1) for flagged, p in rows)
    assert [p for _, p in rows] == sorted(p for _, p in rows)
    assert meta["flags"]["expected"] == pytest.approx(0.1 * len(rows))
    kinds = dict(store.query("SELECT kind, count(*) FROM issues GROUP BY 1").rows)
    shift = meta["shift"]
    assert kinds["ood"] == meta["flags"]["flagged"] == shift["semantic"] + shift["flagged_covariate"]
    assert kinds.get("covariate-shift", 0) == shift["covariate"]
    assert kinds["exact-duplicate"] == 1
    assert kinds["unreadable"] == store.query("SELECT count(*) FROM images WHERE status = 'error'").rows[0][0] >= 1
    listed = run_cli("export", "--flagged", "--store", audited)
    assert len(listed.stdout.splitlines()) == kinds["ood"]
    calm = run_cli("report", "--store", audited, "--top", "5", "--false-alarms", "0.1", "--fail-over", "1")
    assert calm.returncode == 0


def test_what_was_kept_does_not_count_for_fail_over(audited, tmp_path):
    report = ("report", "--store", audited, "--top", "5", "--false-alarms", "0.1", "--fail-over", "1%")
    assert invoke(*report).returncode == 3
    sql = "SELECT path, content_hash, uri FROM issues JOIN images USING (image_id, path, uri) WHERE kind = 'ood'"
    rows = ood_audit.open_store(audited).query(sql).rows
    with (tmp_path / "decisions.csv").open("w", newline="") as file:
        writing = csv.writer(file)
        writing.writerow(["path", "content_hash", "uri", "kind", "decision", "label", "when"])
        writing.writerows([*row, "ood", "keep", "", "2026-01-01T00:00:00Z"] for row in rows)
    audit = ood_audit.open(audited)
    assert repr(audit.apply(tmp_path / "decisions.csv")) == f"Applied(kept={len(rows)})"
    assert invoke(*report).returncode == 0
    audit.undo(tmp_path / "decisions.csv")
    assert invoke(*report).returncode == 3


def test_flags_are_of_the_scores_they_were_made_from(audited):
    ood_audit.report(audited, settings=ScoreSettings(auto=False), top=3)
    assert ood_audit.open_store(audited).query("SELECT count(flagged) FROM report").rows[0][0] > 0
    ood_audit.score(audited, settings=ScoreSettings(method="mcm", auto=False))
    assert ood_audit.open_store(audited).query("SELECT count(flagged) FROM report").rows == [(0,)]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--fdr", "0.1", "--false-alarms", "0.1"], "not both"),
        (["--fdr", "1.5"], "choose between 0 and 1"),
        (["--fail-over", "many"], "write 1% or 0.01"),
    ],
)
def test_wrong_usage(audited, arguments, complaint):
    done = run_cli("report", "--store", audited, *arguments)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
