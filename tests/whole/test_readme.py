"""The README, the pages of the site and the command reference show what the commands print."""

import doctest
import importlib.util
import re
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.helpers.readme import CLI, PAGES, SHOWN, audit, parts, reference, replaced

NUMBER = r"-?\d+\.\d+"


def alike(text: str) -> list[str]:
    """Words and whole numbers, with decimal ones cut out: seconds differ, and last digits do between processors."""
    return re.sub(r"[-\s]+", " ", re.sub(NUMBER, "#", text)).split()


def test_command_reference():
    text = CLI.read_text(encoding="utf-8")
    assert replaced(text, {"help": reference()}) == text, "run `make docs`"


def test_outputs_shown():
    new = audit()
    # Two settings are about equally good there, and the last digits decide between them.
    assert "by 48 labelled images; about" in new.pop("flags")
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        fresh = replaced(text, new)
        assert alike(fresh) == alike(text), f"{page.name}: run `make docs`"
        shown, now = (
            [float(n) for n in re.findall(NUMBER, re.sub(rf"{NUMBER} s\b", "", version))] for version in (text, fresh)
        )
        assert now == pytest.approx(shown, rel=0.02, abs=2e-4), page.name


def test_every_part_is_generated():
    known = {*SHOWN, "views", "help"}
    assert {name for page in PAGES for name in parts(page.read_text(encoding="utf-8"))} <= known


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_examples_in_python_run(tmp_path, monkeypatch):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "howto" / "python.md"
    result = doctest.testfile(str(page), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert (result.failed, result.attempted > 10) == (0, True)


@pytest.mark.skipif(importlib.util.find_spec("sphinx") is None, reason="needs the extra `docs`")
def test_the_site_builds_without_warnings(tmp_path):
    docs = shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("_build"))
    (tmp_path / "ood_audit").symlink_to(ROOT / "ood_audit")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", docs, tmp_path / "site"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "howto" / "labelled-images.html").exists()
