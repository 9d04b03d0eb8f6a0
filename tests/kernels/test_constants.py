"""Every supported version of Triton takes the kernels' constants, not only the installed one."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

KERNELS = Path(__file__).resolve().parents[2] / "kernels"
# Helpers whose parameter is used as a string or as a plan, not as a number.
CONSTANTS = {"activate": 1, "_extend": 4}


def compiled_functions(source: str) -> list[ast.FunctionDef]:
    return [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
        and any("triton.jit" in ast.unparse(decorator) for decorator in node.decorator_list)
    ]


def refused(source: str) -> list[str]:
    """Return the calls that Triton 3.6 refuses: attributes of constants, where a name is needed.

    Triton 3.9 takes both. In 3.6, an attribute of a constant is a plain Python object, which is no
    part of a shape, and no argument unless it is a number.
    """
    found = []
    for function in compiled_functions(source):
        for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            shapes = [part for part in call.args if isinstance(part, ast.Tuple)]
            if name in CONSTANTS:
                shapes.append(ast.Tuple(elts=[call.args[CONSTANTS[name]]]))
            if any(isinstance(part, ast.Attribute) for shape in shapes for part in shape.elts):
                found.append(ast.unparse(call))
    return found


@pytest.mark.parametrize("path", sorted(KERNELS.glob("*.py")), ids=lambda path: path.name)
def test_constants_have_names(path: Path) -> None:
    assert refused(path.read_text()) == []


@pytest.mark.parametrize(
    "call",
    ["tl.zeros((PLAN.group, 1), tl.float32)", "activate(x, PLAN.policy.activation)"],
)
def test_the_check_can_fail(call: str) -> None:
    assert refused(f"@triton.jit\ndef kernel(PLAN: tl.constexpr):\n    x = {call}\n") == [call]
