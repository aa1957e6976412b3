"""The endurance run, in short, and that it sees what it is there to see."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

if sys.platform == "win32":
    pytest.skip("forks", allow_module_level=True)

from benchmarks import soak


def test_a_short_endurance_run_loses_nothing() -> None:
    """In a process of its own, as it forks."""
    arguments = ["--kills", "3", "--commands", "embed", "compact", "quarantine", "--mutants", "20", "--writers", "0"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", *arguments, "--minutes", "0.3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith(("kill: ", "damaged "))]
    assert len(rows) == 4
    for row in rows:
        tried, survived, lost, doubled, tracebacks = map(int, row[-5:])
        assert (survived, lost, doubled, tracebacks) == (tried, 0, 0, 0)
    assert int(rows[-1][-5]) == 20
    assert int(rows[-1][3]) >= 20  # formats


@pytest.fixture
def world(tmp_path: Path) -> soak.World:
    return soak.World(tmp_path / "world", random.Random(1))


def test_a_picture_that_is_gone_is_counted_as_lost(world: soak.World) -> None:
    assert world.check().faults == []
    (world.pictures / "cup" / "4.jpg").unlink()
    found = world.check()
    assert (found.lost, found.doubled) == (1, 0)


def test_a_picture_in_two_places_is_counted_as_doubled_once_all_is_settled(world: soak.World) -> None:
    world.aside.mkdir()
    (world.aside / "4.jpg").write_bytes((world.pictures / "cup" / "4.jpg").read_bytes())
    assert world.check().faults == []
    found = world.check(settled=True)
    assert (found.lost, found.doubled) == (0, 1)


def test_a_store_that_is_gone_is_counted_as_lost(world: soak.World) -> None:
    world.rows = {"file:///a.jpg": ["0", "ok"]}
    assert world.check().lost == 1


@pytest.mark.parametrize(
    ("text", "code", "tracebacks", "faults"),
    [
        ("81 added", 0, 0, 0),
        ("error: no room", 1, 0, 1),
        ("Traceback (most recent call last):\n…", 1, 1, 1),
        ("error: internal error, KeyError: 'a'", 0, 1, 1),
        ("", -11, 0, 1),
    ],
)
def test_how_a_command_ended(tmp_path: Path, text: str, code: int, tracebacks: int, faults: int) -> None:
    (tmp_path / "out").write_text(text, encoding="utf-8")
    line = soak.Line("kind")
    soak.judge(line, soak.Child(0, tmp_path / "out"), code, (0,))
    assert (line.tracebacks, len(line.faults)) == (tracebacks, faults)


def test_a_try_with_a_fault_has_not_survived() -> None:
    line, good, bad = soak.Line("kind"), soak.Line("good"), soak.Line("bad")
    bad.fault("a row is gone", lost=1)
    line.add(good)
    line.add(bad)
    assert (line.tried, line.survived, line.lost) == (2, 1, 1)
