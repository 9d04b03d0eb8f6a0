"""Imports point one way, from `cli` down to the extension, and nowhere in a circle."""

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
    "eaglerl.prepared_folder": 2,
    "eaglerl.prepare": 3,
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
    "eaglerl.sb3": 11,
    "eaglerl.training": 11,
    "eaglerl.evaluation": 12,
    "eaglerl.resps": 13,
    "eaglerl.headroom": 13,
    "eaglerl.server": 13,
    "eaglerl.policy_export": 14,
    "eaglerl.cli.shared": 14,
    "eaglerl.distributed": 15,
    "eaglerl.resps.commands": 15,
    "eaglerl.cli": 16,
    "eaglerl.serve_ray": 17,
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


def import_graph() -> dict[str, set[str]]:
    """Return the modules of the project that each of them imports, for types included."""
    modules = project_modules()
    names = {name for name, _ in modules}
    graph = {}
    for name, path in modules:
        source, is_package = path.read_text(encoding="utf-8"), path.name == "__init__.py"
        imported = imported_modules(source, name, is_package=is_package)
        # A name that is no module is an attribute of one.
        found = {other if other in names else other.rpartition(".")[0] for other in imported}
        graph[name] = (found & names) - {name}
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other, directly or through others."""
    reached = {name: set(others) for name, others in graph.items()}
    # Transitive closure (Warshall, 1962): some hundred modules take a second.
    for middle in graph:
        for others in reached.values():
            if middle in others:
                others |= reached[middle]
    rings = {
        tuple(sorted(other for other in others if name in reached[other]))
        for name, others in reached.items()
        if name in others
    }
    return [list(ring) for ring in sorted(rings)]


def test_every_package_has_a_rank() -> None:
    packages = {package_of(name) for name, _ in project_modules()} - {None}
    assert packages <= RANKS.keys()


@pytest.mark.parametrize(("module", "path"), project_modules(), ids=lambda value: str(value))
def test_imports_point_downwards(module: str, path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert violations(source, module, is_package=path.name == "__init__.py") == []


def test_no_modules_import_each_other() -> None:
    assert circles(import_graph()) == []


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b"}, "b": {"a"}, "c": {"a"}}, [["a", "b"]]),
        (
            {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a", "e"}, "e": {"d"}},
            [["a", "b", "c"], ["d", "e"]],
        ),
    ],
)
def test_a_circle_is_found(graph: dict[str, set[str]], expected: list[list[str]]) -> None:
    assert circles(graph) == expected


def test_an_import_for_types_counts() -> None:
    source = "if TYPE_CHECKING:\n    from eaglerl.ops.action_cache import ActionCache"
    found = list(imported_modules(source, "eaglerl.ops.action_cache_step", is_package=False))
    assert found == ["eaglerl.ops.action_cache.ActionCache"]


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
        ("eaglerl.policies.baselines", "from eaglerl.sb3 import train_policy"),
        ("eaglerl.resps.policies.ppo", "from eaglerl.resps.bench import evaluate"),
        ("eaglerl.cost.cost_table", "from eaglerl.actions import ActionSpace"),
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
