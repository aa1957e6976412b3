"""What is installed with the package, and what its distributions hold."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from setuptools.config.pyprojecttoml import load_file

ROOT = Path(__file__).parent.parent.parent
PARTS = ("benchmarks", "docs", "examples", "ood_audit", "tests")
FILES = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "MANIFEST.in",
    "Makefile",
    "README.md",
    "pyproject.toml",
    "setup.py",
)
NOT_IMPORTED = {"pytz", "sentencepiece", "transformers"}  # DuckDB, transformers and open_clip import them
ALIKE = {"faiss-gpu": "faiss-cpu"}  # either may be installed
TOOLS = ("dev", "docs")  # extras of programs that the package does not import
# Distributions that may not be installed, or, on Python 3.10, do not tell their modules.
OPTIONAL = {"umap": "umap-learn", "ray": "ray", "requests": "requests", "open_clip": "open-clip-torch"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return dict(load_file(ROOT / "pyproject.toml")["project"])


def _declared(project: dict[str, Any]) -> dict[str, Requirement]:
    extras = (line for name, lines in project["optional-dependencies"].items() if name not in TOOLS for line in lines)
    found = map(Requirement, (*project["dependencies"], *extras))
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def _imported() -> set[str]:
    names: set[str] = set()
    for path in (ROOT / "ood_audit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module)
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"ood_audit"}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported(project: dict[str, Any]) -> None:
    declared = _declared(project)
    installed = packages_distributions()
    sources = {
        module: {ALIKE.get(name := canonicalize_name(one), name) for one in installed.get(module, [])}
        or {OPTIONAL.get(module, module)}
        for module in _imported()
    }
    assert {module: names for module, names in sources.items() if names.isdisjoint(declared)} == {}
    needed = {ALIKE.get(name, name) for name in declared}
    assert needed - set().union(*sources.values()) <= NOT_IMPORTED


def test_every_dependency_has_a_floor(project: dict[str, Any]) -> None:
    developers = [Requirement(line) for name in TOOLS for line in project["optional-dependencies"][name]]
    without = [
        one.name
        for one in (*_declared(project).values(), *developers)
        if one.name != project["name"] and not any(part.operator == ">=" for part in one.specifier)
    ]
    assert not without


@pytest.mark.parametrize(
    ("system", "machine", "name"),
    [
        ("linux", "x86_64", "faiss-gpu"),
        ("linux", "aarch64", "faiss-cpu"),
        ("darwin", "arm64", "faiss-cpu"),
        ("win32", "AMD64", "faiss-cpu"),
    ],
)
def test_each_system_gets_one_faiss(project: dict[str, Any], system: str, machine: str, name: str) -> None:
    """Both are the module `faiss`, in the same files: one beside the other would break it."""
    asked = [one for one in map(Requirement, project["dependencies"]) if one.name.startswith("faiss")]
    here = {"sys_platform": system, "platform_machine": machine}
    assert [one.name for one in asked if one.marker is None or one.marker.evaluate(here)] == [name]


def test_the_versions_of_python_are_those_that_are_allowed(project: dict[str, Any]) -> None:
    named = {line.rpartition(" ")[2] for line in project["classifiers"] if "Python :: 3." in line}
    assert f">={min(named, key=lambda version: int(version[2:]))}" == project["requires-python"]
    assert f"3.{sys.version_info[1]}" in named


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], set[str], str]:
    """The names in the source distribution and in a wheel that is built from it, and the wheel's metadata."""
    folder = tmp_path_factory.mktemp("built")
    tree = folder / "tree"
    for part in PARTS:
        shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, tree)
    with tarfile.open(_build(tree, "sdist", folder)) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
        sdist.extractall(folder)
        unpacked = folder / sdist.getnames()[0].partition("/")[0]
    with zipfile.ZipFile(_build(unpacked, "wheel", folder)) as wheel:
        contents = set(wheel.namelist())
        metadata = next(name for name in contents if name.endswith(".dist-info/METADATA"))
        return names, contents, wheel.read(metadata).decode()


def _build(tree: Path, kind: str, target: Path) -> Path:
    """Build as `python -m build --no-isolation` does: it needs no network."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({os.fspath(target)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target / done.stdout.split()[-1]


def test_the_source_distribution_is_all_that_a_packager_needs(built: tuple[set[str], set[str], str]) -> None:
    wanted = {
        path.relative_to(ROOT).as_posix()
        for part in PARTS
        for path in (ROOT / part).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted | set(FILES) <= built[0]
    assert not [name for name in built[0] if "__pycache__" in name or name.endswith(".pyc")]


def test_the_wheel_is_the_package_with_its_data(built: tuple[set[str], set[str], str]) -> None:
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "ood_audit").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted <= built[1]
    assert {name.partition("/")[0] for name in built[1] if ".dist-info/" not in name} == {"ood_audit"}


def test_the_long_description_links_to_no_file_beside_it(built: tuple[set[str], set[str], str]) -> None:
    description = built[2].partition("\n\n")[2]
    assert "# ood-audit" in description
    assert re.findall(r"\]\((?!https?://|#)[^)]*\)", description) == []
    assert "`docs/cli.md`" in description  # the names are still there, for those who have the sources
    assert "[arXiv 2510.11296](https://arxiv.org/abs/2510.11296)" in description


def test_the_readme_begins_with_the_recipe_for_a_machine_without_a_gpu() -> None:
    """PyTorch's CPU build comes before what would bring the one of 7 GB."""
    first = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:60]
    commands = [line for line in first if line.startswith(".venv/bin/pip install torch") or line == "make demo"]
    assert len(commands) == 2 and commands[1] == "make demo"
    assert "CPU build" in commands[0]
    assert any("about 7 GB" in line for line in first)
