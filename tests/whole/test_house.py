"""What the code itself is held to."""

import ast
import re
from pathlib import Path

import ood_audit

PACKAGE = Path(ood_audit.__file__).parent


def test_functions_are_short_and_have_few_parameters():
    found = [
        (f"{path.relative_to(PACKAGE)}: {node.name}", node)
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    ]
    assert len(found) > 500
    assert [name for name, node in found if len(parameters(node.args)) > 10] == []
    assert [name for name, node in found if node.name[0] != "_" and length(node) > 80] == []


def length(node: ast.FunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def parameters(of: ast.arguments) -> list[str]:
    every = (*of.posonlyargs, *of.args, *of.kwonlyargs, of.vararg, of.kwarg)
    return [one.arg for one in every if one is not None and one.arg not in ("self", "cls")]


def test_any_stands_only_at_the_borders():
    """Where untyped libraries, JSON, DuckDB and a caller's keyword arguments come in; see `values` for their names."""
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Name) and node.id == "Any"
    ]
    assert len(found) <= 40, found


def test_each_module_is_in_the_architecture():
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    words = set(re.findall(r"\w+", page))
    modules = {path.stem for path in PACKAGE.rglob("*.py")} - {"__init__", "__main__", "_version"}
    commands = {path.stem for path in (PACKAGE / "commands").glob("*.py")}
    assert sorted(modules - commands - words) == []
