"""What is told while one waits, and who has to wait for whom."""

import fcntl
import os
import shutil
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest

import ood_audit
from ood_audit import ScoreSettings, progress
from ood_audit.classes import background
from ood_audit.store import files, locks, open_store, writing
from ood_audit.store.compaction import compact
from tests.conftest import EXAMPLES
from tests.helpers.cli import invoke

LABELS = EXAMPLES / "classes.txt"


class Stages:
    """A `Progress` that remembers what it was told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int | None]] = []

    def __call__(self, stage: str, done: int = 0, total: int | None = None, /) -> None:
        self.calls.append((stage, done, total))

    def names(self) -> list[str]:
        return list(dict.fromkeys(stage for stage, _, _ in self.calls))

    def of(self, stage: str) -> list[tuple[int, int | None]]:
        return [(done, total) for name, done, total in self.calls if name == stage]


def test_embed_tells_its_stages_and_counts_from_the_first_image(pictures, tmp_path):
    told = Stages()
    ood_audit.embed(pictures, store=tmp_path / "store", device="cpu", on_progress=told)
    assert told.names() == ["looking for images", "loading the model", "embedding", "building the index"]
    assert told.of("embedding") == [(done, 6) for done in range(7)]


def test_report_tells_its_stages(store_copy):
    told = Stages()
    ood_audit.report(store_copy, labels=LABELS, settings=ScoreSettings(auto=False), on_progress=told)
    assert told.names()[-7:] == [
        "scoring",
        "looking for duplicates",
        "deciding what to flag",
        "naming what is flagged",
        "looking for shortcuts",
        "looking for leaks",
        "writing the report",
    ]
    assert told.of("scoring")[-1] == (81, 81)


def test_choosing_settings_counts_its_rounds():
    from ood_audit.scoring import selection
    from tests.helpers.made import problem

    features, labels, text = problem(8, 80)
    told: list[tuple[int, int]] = []
    sample = selection.Sample(features, labels, labels >= 0, presumed=False)
    defaults = {"temperature": 1.0, "top_c": 2, "reset_to": 0.0}
    grid = selection.Grid(background=(False,))
    selection.select(sample, text, defaults, grid=grid, rounds=3, on_progress=lambda *done: told.append(done))
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_evaluate_names_the_scores_whose_names_are_not_encoded(store_copy, monkeypatch):
    monkeypatch.setattr(background, "_encode", lambda *_: pytest.fail("it encodes names that nobody asked for"))
    notes: list[str] = []
    result = ood_audit.evaluate(
        store_copy,
        truth=EXAMPLES / "truth.csv",
        labels=LABELS,
        settings=ScoreSettings(auto=False),
        rounds=2,
        note=notes.append,
    )
    (left_out,) = (note for note in notes if "not evaluated" in note)
    assert "neglabel, csp" in left_out
    assert "--score neglabel --score csp" in left_out
    assert {"mcm", "delta-energy", "knn", "best"} <= {row["score"] for row in result.rows}
    assert not {"neglabel", "csp"} & {row["score"] for row in result.rows}


def test_evaluate_does_not_keep_a_report_waiting(store_copy):
    reports: list[int] = []

    def meanwhile(stage: str, done: int = 0, total: int | None = None, /) -> None:
        if stage not in ("loading the model",) and not reports:
            reports.append(
                len(ood_audit.report(store_copy, labels=LABELS, settings=ScoreSettings(auto=False), top=5).rows)
            )

    ood_audit.evaluate(
        store_copy,
        truth=EXAMPLES / "truth.csv",
        only=["mcm"],
        labels=LABELS,
        settings=ScoreSettings(auto=False),
        rounds=2,
        on_progress=meanwhile,
    )
    assert reports == [5]


def test_a_report_waits_for_the_moment_in_which_another_takes_its_name(store_copy):
    began, release = threading.Event(), threading.Event()

    def hold() -> None:
        with writing(store_copy, "scores"):
            began.set()
            release.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    began.wait(60)
    threading.Timer(1.0, release.set).start()
    ood_audit.report(store_copy, labels=LABELS, settings=ScoreSettings(auto=False))
    assert release.is_set()
    holder.join()


def test_parts_that_a_report_reads_are_not_deleted(pictures, tmp_path):
    store = tmp_path / "store"
    for name in ("airplane", "sunflower"):
        ood_audit.embed(pictures / name, store=store, device="cpu")
    opened = open_store(store)
    with locks.reading(store):
        assert compact(opened).left == 2
    assert compact(opened).left == 0


def test_a_killed_reader_does_not_keep_parts_for_ever(tmp_path):
    code = "import os, signal; from pathlib import Path; from ood_audit.store import locks\n"
    code += f"with locks.reading(Path({str(tmp_path)!r})): os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run(
        [sys.executable, "-c", code], check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert len(list(tmp_path.iterdir())) == 1
    assert not locks.has_readers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_temporary_files_of_the_living_are_left_alone(tmp_path):
    mine = files.temporary_name(tmp_path / "scores.parquet")
    other = tmp_path / f".scores.parquet.{os.getpid()}@another-machine.tmp"
    old = tmp_path / ".scores.parquet.4711.tmp"
    for path in (mine, other, old):
        path.touch()
    assert [files.is_leftover(path) for path in (mine, other, old)] == [False, False, True]
    two_days_ago = time.time() - 2 * 86_400
    os.utime(other, (two_days_ago, two_days_ago))
    assert files.is_leftover(other)


def test_the_bar_of_a_stage_has_a_clock_of_its_own(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress.bars() as on_progress:
        on_progress("looking for images")
        on_progress("looking for images", 4096)
        on_progress("embedding", 0, 81)
        first = on_progress._bar.start_t  # type: ignore[attr-defined]
        on_progress("embedding", 81, 81)
        assert on_progress._bar.start_t == first  # type: ignore[attr-defined]
        on_progress("building the index")
        assert on_progress._bar.start_t > first  # type: ignore[attr-defined]
    shown = capsys.readouterr().err
    assert "looking for images" in shown
    assert "0/81" in shown
    assert "0image" not in shown


def test_the_rate_is_of_what_was_done_since_the_bar_is_there(monkeypatch, capsys):
    """As where the first epoch is told when it is over: the wait for the model says nothing of the others."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress.bars() as on_progress:
        on_progress("loading the model")
        on_progress("tuning", 1, 40)
        assert isinstance(on_progress, progress.Bars) and on_progress._bar is not None
        assert (on_progress._bar.n, on_progress._bar.initial) == (1, 1)
        on_progress.show({"loss": 0.25})
    shown = capsys.readouterr().err
    assert "1/40" in shown
    assert "loss=0.250" in shown


def test_tune_tells_its_stages(example_store, tmp_path):
    store = Path(shutil.copytree(example_store, tmp_path / "store"))
    stages, epochs = Stages(), []
    ood_audit.tune(
        store,
        settings=ood_audit.TuneSettings(method="residual", epochs=2),
        on_progress=stages,
        on_epoch=lambda figures, total: epochs.append((figures.epoch, total, stages.calls[-1][0])),
    )
    assert epochs and {stage for *_, stage in epochs} == {"tuning"}


@pytest.mark.parametrize("columns", [0, 5, 40, 200])
def test_there_are_bars_on_a_terminal_of_any_width(monkeypatch, columns):
    """0 is what the terminals of some programs say, which have no width."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with open(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with progress.bars() as on_progress:
            on_progress("embedding", 1, 81)
        terminal.flush()
        shown = os.read(ours, 65_536).decode()
    os.close(ours)
    assert ("embedding" if columns != 5 else "embe") in shown


def test_no_bars_where_stderr_is_no_terminal(pictures, tmp_path):
    done = invoke("embed", pictures, "--store", tmp_path / "store", "--device", "cpu")
    assert done.returncode == 0
    assert "embedding" not in done.stderr
