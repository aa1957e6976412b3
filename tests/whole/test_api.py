"""The package as a library: `ood_audit.open`, its results, and the examples in its docstrings."""

import doctest
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

import ood_audit
from ood_audit import ScoreSettings, UsageError, errors, frames, progress
from ood_audit import audit as module
from ood_audit.cli import cli
from ood_audit.commands.options import as_options
from tests.conftest import EXAMPLES, ROOT
from tests.helpers.cli import invoke


@pytest.fixture(scope="module")
def audit(example_store, tmp_path_factory):
    """An audit of the examples with a report."""
    made = ood_audit.open(shutil.copytree(example_store, tmp_path_factory.mktemp("api") / "store"))
    made.report(EXAMPLES / "classes.txt", top=5, auto=False, novelty=False)
    return made


def test_the_api_is_listed_and_everything_listed_is_there():
    assert {"open", "Audit", "Report", "Findings", "UsageError"} <= set(dir(ood_audit))
    for name in dir(ood_audit):
        assert getattr(ood_audit, name) is not None


def test_to_list_the_api_imports_nothing_else():
    code = (
        "import sys, ood_audit; dir(ood_audit); print([m for m in ('torch', 'duckdb', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_results_are_short_and_say_what_matters(audit):
    assert repr(audit) == f"Audit({audit.path!r}, images=81, model='starter')"
    report = audit.report(top=2, auto=False, novelty=False)
    assert repr(report) == f"Report('latest', images=81, flagged={report.decisions.flags['flagged']})"
    assert repr(report.scores).startswith("Scores('auto', images=81, classes=8")
    assert repr(audit.findings(kind="unreadable")) == "Findings(unreadable: 1)"
    assert repr(audit.status).startswith("Status(images=81, unreadable=1, model='starter', classes=8, scored=81")
    (source,) = audit.sources
    assert (source.images, source.unreadable) == (81, 1)


def test_a_report_is_a_table_of_all_images(audit):
    report = audit.report(top=2, auto=False, novelty=False)
    table = report.to_arrow()
    assert table["rank"].to_pylist() == list(range(1, 82))
    assert table["path"].to_pylist()[:2] == [row["path"] for row in report.rows]
    assert report.to_pandas()["path"].tolist() == table["path"].to_pylist()
    assert report.to_polars()["path"].to_list() == table["path"].to_pylist()


def test_a_report_in_a_notebook_is_escaped(tmp_path):
    (tmp_path / "pictures" / "<b>cup").mkdir(parents=True)
    for picture in sorted((EXAMPLES / "images" / "cup").glob("*.jpg"))[:2]:
        shutil.copy(picture, tmp_path / "pictures" / "<b>cup")
    made = ood_audit.open(tmp_path / "store")
    made.embed(tmp_path / "pictures", device="cpu")
    html = made.report(["cup", "chair"], auto=False, novelty=False)._repr_html_()
    assert "<b>cup" not in html
    assert "&lt;b&gt;cup/" in html
    assert html.count("<tr>") == 3


def test_a_missing_library_is_named(audit, monkeypatch):
    findings = audit.findings()
    for name in ("pandas", "polars"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ood_audit.UsageError, match=f"{name} is not installed; install it with `pip"):
            getattr(findings, f"to_{name}")()


def test_findings_are_chosen_by_kind(audit):
    every = audit.findings()
    assert {row.kind for row in every} >= {"unreadable"}
    assert len(every) == len(every.to_arrow()) == len(every.to_pandas())
    assert {row.kind for row in audit.findings(kind="duplicate")} <= {"exact-duplicate", "near-duplicate"}
    with pytest.raises(ValueError, match="there is no kind of finding 'odd'; choose from ood"):
        audit.findings(kind="odd")


def test_sql_is_a_relation_over_the_store_alone(audit, tmp_path):
    relation = audit.sql("SELECT label, count(*) AS n FROM report GROUP BY 1 ORDER BY 1")
    assert relation.columns == ["label", "n"]
    assert sum(n for _, n in relation.fetchall()) == 81
    assert audit.sql("SELECT path FROM images").filter("path LIKE 'cup/%'").df()["path"].str.startswith("cup/").all()
    (tmp_path / "other.csv").write_text("a\n1\n")
    for wrong in ("DELETE FROM images", "SELECT nope FROM images", f"SELECT * FROM '{tmp_path}/other.csv'"):
        with pytest.raises(ood_audit.UsageError):
            audit.sql(wrong).fetchall()


def test_images_are_quarantined_and_come_back(pictures, tmp_path):
    made = ood_audit.open(tmp_path / "store")
    first = sorted(pictures.rglob("*.jpg"))[0]
    shutil.copy(first, first.with_name("copy.jpg"))
    assert repr(made.embed(pictures, device="cpu")) == "EmbedResult(added=7)"
    made.report(["airplane", "sunflower"], auto=False, novelty=False)
    aside = tmp_path / "aside"
    assert made.quarantine(aside, kinds=["duplicate"], dry_run=True).counts == {"would-move": 1}
    assert made.quarantine(aside, kinds=["duplicate"]).counts == {"moved": 1}
    assert len(list(pictures.rglob("*.jpg"))) == 6
    assert made.restore(aside).counts == {"restored": 1}
    kept = tmp_path / "keep.txt"
    assert made.export(kept, kinds=["duplicate"], format="keep-list").lines == 6
    assert len(kept.read_text().splitlines()) == 6


def test_an_audit_that_is_not_there_yet(tmp_path):
    made = ood_audit.open(tmp_path / "new")
    assert repr(made) == f"Audit({str(tmp_path / 'new')!r}, not embedded yet)"
    assert made.status.images == 0
    with pytest.raises(ood_audit.StoreError, match="no store at"):
        made.report(["cat"])
    assert not (tmp_path / "new").exists()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with the examples and four labelled images; the first docstring makes a store in it."""
    folder = tmp_path_factory.mktemp("doctest")
    (folder / "examples").symlink_to(ROOT / "examples")
    rows = [f"{name}/{path.name},{name}" for name in ("cup", "sunflower") for path in _two(name)]
    (folder / "labelled.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    return folder


def _two(name: str) -> list[Path]:
    return sorted((ROOT / "examples" / "images" / name).glob("*.jpg"))[:2]


@pytest.mark.parametrize("owner", [module, frames, errors, progress], ids=lambda owner: owner.__name__)
def test_examples_in_docstrings_run(owner, small, monkeypatch):
    monkeypatch.chdir(small)
    result = doctest.testmod(owner, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_errors_name_parameters_and_the_command_line_names_options(store_copy):
    with pytest.raises(UsageError, match=r"^`top_c` 0: choose 1 or more$"):
        ScoreSettings(top_c=0)
    with pytest.raises(UsageError, match=r"^`top` 0: choose 1 or more"):
        ood_audit.report(store_copy, top=0)
    done = invoke("report", "--store", store_copy, "--name", "no/name")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --name no/name: use at most 61 letters")


def test_parameters_as_options():
    command = cli.get_command(click.Context(cli), "tune")
    assert as_options("`lambda_` -1: choose", command) == "--lambda -1: choose"
    assert as_options("give `folder` or `annotations`", command) == "give --from or --annotations"
    assert as_options("use `device=auto`, see `ood-audit tune`", command) == "use --device auto, see `ood-audit tune`"
    assert as_options("a `batch_size` of another command", None) == "a --batch-size of another command"
