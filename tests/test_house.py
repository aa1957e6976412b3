"""What the code itself is held to."""

import ast
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
