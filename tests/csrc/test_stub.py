"""The stub `eaglerl/_C.pyi` names what the built extension has, with as many arguments."""

import ast
from pathlib import Path
from types import ModuleType

from eaglerl._ext import C

STUB = Path(__file__).resolve().parents[2] / "eaglerl" / "_C.pyi"
CUDA_ONLY = {"CudaFoldedDecision", "cuda_action_cache_step"}


def counted(arguments: ast.arguments) -> tuple[int, int]:
    """Return how many positional arguments a function takes, and how many have defaults."""
    return len(arguments.posonlyargs) + len(arguments.args), len(arguments.defaults)


def stub_members(body: list[ast.stmt]) -> dict[str, object]:
    """Return the names of a stub or of a class in it, each with its arity, kind or members."""
    members: dict[str, object] = {}
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            members[node.target.id] = "value"
        elif isinstance(node, ast.FunctionDef):
            members[node.name] = "property" if node.decorator_list else counted(node.args)
        elif isinstance(node, ast.ClassDef):
            members[node.name] = stub_members(node.body)
    return members


def built_arity(docstring: str) -> tuple[int, int]:
    """Read the signature that pybind11 writes into a docstring's first line."""
    (function,) = ast.parse(f"def {docstring.splitlines()[0]}: ...").body
    assert isinstance(function, ast.FunctionDef)
    return counted(function.args)


def built_members(owner: ModuleType | type) -> dict[str, object]:
    """Return the same of the built module, or of a class in it."""
    members: dict[str, object] = {}
    for name, value in vars(owner).items():
        if name.startswith("_") and name != "__init__":
            continue
        if isinstance(value, type):
            members[name] = built_members(value)
        elif isinstance(value, property):
            members[name] = "property"
        else:
            members[name] = built_arity(value.__doc__) if callable(value) else "value"
    return members


def test_the_stub_names_what_the_extension_has() -> None:
    stub = stub_members(ast.parse(STUB.read_text(encoding="utf-8")).body)
    if not C.has_cuda:
        stub = {name: member for name, member in stub.items() if name not in CUDA_ONLY}
    assert stub == built_members(C)


def test_a_stale_stub_is_found() -> None:
    text = STUB.read_text(encoding="utf-8")
    one_less = text.replace("def set_isa(name: str, /)", "def set_isa()")
    unnamed = text.replace("def cpu_isa() -> str: ...\n", "")
    for changed in (one_less, unnamed):
        assert changed != text
        assert stub_members(ast.parse(changed).body) != stub_members(ast.parse(text).body)
