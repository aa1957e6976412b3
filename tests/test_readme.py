"""The README and the command reference show what the commands print."""

import re

import pytest

from tests.readme import CLI, README, audit, reference, replaced

NUMBER = r"-?\d+\.\d+"


def alike(text: str) -> list[str]:
    """Words and whole numbers, with decimal ones cut out: seconds differ, and last digits do between processors."""
    return re.sub(r"[-\s]+", " ", re.sub(NUMBER, "#", text)).split()


def test_command_reference():
    text = CLI.read_text()
    assert replaced(text, {"help": reference()}) == text, "run `make docs`"


def test_outputs_shown():
    text = README.read_text()
    fresh = replaced(text, audit())
    assert alike(fresh) == alike(text), "run `make docs`"
    shown, now = (
        [float(n) for n in re.findall(NUMBER, re.sub(rf"{NUMBER} s\b", "", version))] for version in (text, fresh)
    )
    assert now == pytest.approx(shown, rel=0.02, abs=2e-4)
