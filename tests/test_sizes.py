"""Files and functions stay as short as CONTRIBUTING.md says."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILE_LINES, FUNCTION_LINES = 400, 60
SOURCES = sorted(
    path
    for folder in ("eaglerl", "kernels", "benchmarks", "examples", "csrc")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".pyi", ".cpp", ".h", ".cu")
)


def long_functions(source: str) -> Iterator[str]:
    """Yield the functions that are too long.

    Docstrings do not count: a public one documents every argument. Nor does the signature of a
    command, where typer reads its options.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1 - _docstring_lines(node)
            if _is_command(node):
                lines -= node.body[0].lineno - node.lineno
            if lines > FUNCTION_LINES:
                yield f"{node.name}: {lines} lines"


def _docstring_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    if ast.get_docstring(function) is None:
        return 0
    return function.body[0].end_lineno - function.body[0].lineno + 1


def _is_command(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether it is decorated as a command of typer."""
    return any("command" in ast.unparse(decorator) for decorator in function.decorator_list)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_and_its_functions(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= FILE_LINES
    if path.suffix == ".py":
        assert list(long_functions(source)) == []


def test_a_long_function_is_found() -> None:
    body = "".join("    x = 1\n" for _ in range(FUNCTION_LINES))
    assert list(long_functions(f"def f():\n{body}")) == [f"f: {FUNCTION_LINES + 1} lines"]
    documented = f'def f():\n    """Do it.\n\n    Much.\n    """\n{body}'
    assert list(long_functions(documented)) == [f"f: {FUNCTION_LINES + 1} lines"]
    assert list(long_functions(documented.replace(body, body[10:]))) == []
    command = f"@app.command()\ndef f(\n    x: int,\n    y: int,\n) -> None:\n{body}"
    assert list(long_functions(command)) == []
