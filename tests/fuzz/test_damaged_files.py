"""Whatever a file holds, it is read or refused by a ValueError that names it, soon and in bounds.

Files are damaged here and read in a process of its own, see `worker`.
"""

import ast
import json
import os
import random
import selectors
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .damage import copy_example, damage, files_of
from .file_kinds import KINDS

ROOT = Path(__file__).resolve().parents[2]
#: Of one file; a machine that many share is slow, so the wall clock is only for what hangs.
CPU_SECONDS, HANGS_AFTER = 20.0, 120.0

# What reads JSON, or a file of tensors, by the names of functions.
READERS = {
    "read_json", "parse_json", "check_json", "read_lines", "read_whole_lines", "read_regular",
    "open_regular", "read_tensors", "open_tensors", "read_weight_index", "read_weight_folder",
}  # fmt: skip
# What must not be called but by these readers.
BARE = {
    "json.load",
    "json.loads",
    "torch.load",
    "np.load",
    "safe_open",
    "load_file",
    "jiter.from_json",
}
ALLOWED_BARE = {
    "eaglerl.json_file": {"jiter.from_json"},
    "eaglerl.tensor_file": {"safe_open"},
    # With weights_only, of a file that was looked at.
    "eaglerl.eagle3.head.weight_files": {"torch.load"},
    # Through text and back: tuples become lists.
    "eaglerl.runs.checkpoints": {"json.loads"},
    "eaglerl.runs.head_run": {"json.loads"},
    "eaglerl.resps.presets": {"json.loads"},
    # A file that `open_tensors` has read before.
    "eaglerl.training.features": {"safe_open"},
}


class Worker:
    """The process that reads."""

    def __init__(self, examples: dict[str, Path]) -> None:
        self._examples = examples
        self._start()

    def _start(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
            env=environment,
            text=True,
        )
        self._ask({kind: str(path) for kind, path in self._examples.items()}, 600.0)

    def read(self, kind: str, folder: Path) -> dict[str, object]:
        """What came of reading; an "error" is named, too, where the process died or hangs."""
        answer = self._ask({"kind": kind, "folder": str(folder)}, HANGS_AFTER)
        if answer is None:
            self.end()
            code = self._process.returncode
            self._start()
            return {"error": f"the process hung or ended with {code}", "expected": False}
        return answer

    def _ask(self, request: dict[str, str], seconds: float) -> dict[str, object] | None:
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                return None
        line = self._process.stdout.readline()
        return json.loads(line) if line else None

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root, found = tmp_path_factory.mktemp("examples"), {}
    for kind, files in KINDS.items():
        found[kind] = root / kind.replace(" ", "-")
        found[kind].mkdir()
        files.write(found[kind])
    return found


@pytest.fixture(scope="module")
def worker(examples: dict[str, Path]) -> Iterator[Worker]:
    worker = Worker(examples)
    yield worker
    worker.end()


def check(kind: str, seed: int, example: Path, folder: Path, worker: Worker) -> str:
    """Damage a copy of an example and have it read; what came of it."""
    draw = random.Random(seed)
    copy_example(example, folder)
    path = draw.choice(files_of(folder))
    done = damage(path, draw)
    answer = worker.read(kind, folder)
    if answer["error"] is None:
        return "read"
    told = f"{kind}, {path.name}, {done}, seed {seed}: {answer}"
    assert answer["expected"], told
    assert str(folder) in answer["text"] or path.name in answer["text"], told
    assert answer["seconds"] < CPU_SECONDS, told
    assert len(answer["text"]) < 5000, told
    return "refused"


@settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(kind=st.sampled_from(sorted(KINDS.keys() - {"target"})), seed=st.integers(0, 1 << 62))
def test_some_damaged_files(
    kind: str, seed: int, examples: dict[str, Path], tmp_path: Path, worker: Worker
) -> None:
    check(kind, seed, examples[kind], tmp_path / "it", worker)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files(
    kind: str,
    examples: dict[str, Path],
    tmp_path: Path,
    worker: Worker,
    record_property: Callable[[str, object], None],
) -> None:
    found: Counter[str] = Counter()

    @settings(
        max_examples=240,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(seed=st.integers(0, 1 << 62))
    def one(seed: int) -> None:
        found[check(kind, seed, examples[kind], tmp_path / "it", worker)] += 1

    one()
    record_property("files", json.dumps(found))
    # Damage that nothing is refused for would show nothing; a model that is not whole is made anew.
    assert found["refused"] > 50 or kind == "prepared model"


def test_whole_examples_are_read(examples: dict[str, Path]) -> None:
    for kind, files in KINDS.items():
        files.read(examples[kind])


def modules() -> dict[str, ast.Module]:
    """The source of every module of the package."""
    found = {}
    for path in sorted((ROOT / "eaglerl").rglob("*.py")) + sorted((ROOT / "kernels").glob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts if parts[0] == "eaglerl" else ("eaglerl", *parts)
        found[".".join(parts).removesuffix(".__init__")] = ast.parse(path.read_text())
    return found


def calls(source: ast.Module) -> set[str]:
    """Names of what a module calls: ``name`` and ``module.name``."""
    functions = [node.func for node in ast.walk(source) if isinstance(node, ast.Call)]
    return {ast.unparse(f) for f in functions if isinstance(f, ast.Name | ast.Attribute)}


def test_every_reader_has_a_kind() -> None:
    """A new kind of file is added to `KINDS`, so that it is damaged, too."""
    known = {module for files in KINDS.values() for module in files.modules}
    own = {"eaglerl.json_file", "eaglerl.tensor_file", "eaglerl.regular_file"}
    reading = {name for name, source in modules().items() if calls(source) & READERS} - own
    assert reading - known == set()


def test_files_are_read_in_one_place() -> None:
    for name, source in modules().items():
        assert (calls(source) & BARE) - ALLOWED_BARE.get(name, set()) == set(), name
