"""Imports point one way: cli -> server -> training -> eagle3 -> ops -> kernels, extension."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A package may import those of a lower rank, and itself.
RANKS = {
    "eaglerl._C": 0,
    "eaglerl._lazy": 0,
    "eaglerl._moved": 0,
    "eaglerl._renamed": 0,
    "eaglerl.files": 0,
    "eaglerl.ratio_intervals": 0,
    "eaglerl.packaged_models": 0,
    "eaglerl.regular_file": 0,
    "eaglerl.gguf_convert": 1,
    "eaglerl.json_file": 1,
    "eaglerl.tensor_file": 2,
    "eaglerl._ext": 2,
    "eaglerl.kernels": 2,
    "eaglerl.prepare": 2,
    "eaglerl.runs": 3,
    "eaglerl.ops": 3,
    "eaglerl.eagle3": 4,
    "eaglerl.cost": 5,
    "eaglerl.fingerprints": 5,
    "eaglerl.actions": 6,
    "eaglerl.traces": 7,
    "eaglerl.envs": 8,
    "eaglerl.resps.policies": 9,
    "eaglerl.policies": 10,
    "eaglerl.fitting": 11,
    "eaglerl.sb3": 11,
    "eaglerl.training": 11,
    "eaglerl.evaluation": 12,
    "eaglerl.resps": 13,
    "eaglerl.server": 13,
    "eaglerl.cli.shared": 14,
    "eaglerl.resps.commands": 15,
    "eaglerl.cli": 16,
    "eaglerl.__main__": 17,
}
FORBIDDEN_LIBRARIES = {
    "eaglerl.kernels": {"transformers", "gymnasium", "stable_baselines3"},
    "eaglerl.ops": {"transformers", "gymnasium", "stable_baselines3"},
    "eaglerl.eagle3": {"gymnasium", "stable_baselines3", "typer", "rich"},
    "eaglerl.training": {"typer", "rich"},
}


def imported_modules(source: str, module: str, *, is_package: bool) -> Iterator[str]:
    """Yield the absolute name of everything that a module's source imports, wherever it does."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".") if is_package else module.split(".")[:-1]
            base = parts[: len(parts) - node.level + 1] if node.level else []
            origin = ".".join([*base, node.module] if node.module else base)
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def package_of(name: str) -> str | None:
    """Return the ranked package that a dotted name belongs to, the innermost one; None if none."""
    parts = name.split(".")
    if parts[0] != "eaglerl" or len(parts) == 1:
        return None
    names = [".".join(parts[:count]) for count in range(len(parts), 1, -1)]
    return next((name for name in names if name in RANKS), names[-1])


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """Return a sentence for each import that a module must not have."""
    own = package_of(module)
    found = []
    for name in imported_modules(source, module, is_package=is_package):
        other = package_of(name)
        if other in RANKS and other != own and RANKS[other] >= RANKS.get(own, -1):
            found.append(f"{module} imports {name}")
        if name.split(".")[0] in FORBIDDEN_LIBRARIES.get(own, set()):
            found.append(f"{module} imports {name}")
    return found


def project_modules() -> list[tuple[str, Path]]:
    files = [(path.relative_to(ROOT), path) for path in (ROOT / "eaglerl").rglob("*.py")]
    files += [
        (Path("eaglerl") / path.relative_to(ROOT), path) for path in (ROOT / "kernels").glob("*.py")
    ]
    modules = []
    for relative, path in sorted(files):
        parts = relative.with_suffix("").parts
        modules.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    # The package itself may offer names of all of its parts.
    return [(name, path) for name, path in modules if name != "eaglerl"]


def test_every_package_has_a_rank() -> None:
    packages = {package_of(name) for name, _ in project_modules()} - {None}
    assert packages <= RANKS.keys()


@pytest.mark.parametrize(("module", "path"), project_modules(), ids=lambda value: str(value))
def test_imports_point_downwards(module: str, path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert violations(source, module, is_package=path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("eaglerl.ops.norm", "import eaglerl.eagle3.tree.tree_drafter"),
        ("eaglerl.ops.norm", "from eaglerl.eagle3 import TreeParams"),
        ("eaglerl.ops.norm", "from eaglerl import eagle3"),
        ("eaglerl.ops.norm", "from ..eagle3.tree import DraftTree"),
        ("eaglerl.ops.norm", "def f():\n    import transformers"),
        ("eaglerl.eagle3.tree.tree_drafter", "from eaglerl.training import distill"),
        ("eaglerl.training.distill", "from eaglerl.cli.shared.terminal import notes"),
        ("eaglerl.files", "from eaglerl.ops import rms_norm"),
    ],
)
def test_an_upward_import_is_found(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("eaglerl.ops.norm", "from eaglerl._ext import C"),
        ("eaglerl.ops.norm", "from .shapes import check"),
        ("eaglerl.eagle3.tree.tree_drafter", "from eaglerl.ops import DraftTreeBuilder"),
        ("eaglerl.cli.app", "from eaglerl.training.distill import distill"),
        ("eaglerl.eagle3.target.target_model", "import transformers"),
    ],
)
def test_a_downward_import_is_allowed(module: str, source: str) -> None:
    assert violations(source, module) == []
