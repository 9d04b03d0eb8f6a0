"""No call from Python into native code ends the process, hangs, or fails silently.

Every case runs in a child process and must end in a result, which for right arguments equals that
of the plain reference, or in a documented exception.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ..sanitizers import preloaded
from .pool import Worker

ROOT = Path(__file__).resolve().parents[2]
#: Names of eaglerl.ops that are no calls into native code: results, and references in torch.
PLAIN = {
    "AcceptedDrafts", "CacheStats", "DraftTree", "Frontier", "FusedEncodeOutput", "GreedyPath",
    "LookedUp", "NgramTable", "NodeSelection", "PolicyMlpOutput", "SelectionSizes", "pack_rule",
    "stack_rules",
    "accept_draft_ref", "accept_path_ref", "cached_attention_ref", "check_reproduced",
    "extend_ngrams_ref", "fused_encode_ref", "greedy_paths_ref", "move_rows_ref", "policy_mlp_ref",
    "rms_norm_ref", "select_draft_nodes_ref", "silu_mul_ref",
}  # fmt: skip


@pytest.fixture(scope="module")
def worker() -> Worker:
    with Worker() as made:
        yield made


def test_every_entry_point_has_cases(worker: Worker) -> None:
    listed = worker.ask("list", "", 0)
    covered, present = listed["covered"], listed["present"]
    assert set(present["public"]) - PLAIN == set(covered["public"]) | set(covered["object"])
    assert present["operator"] == covered["operator"]
    assert len(present["operator"]) >= 3
    assert present["native"] == covered["native"]


def fuzz(worker: Worker, calls: int, first_seed: int = 0) -> Counter[str]:
    """Run this many cases, of all kinds in turn, and count their outcomes.

    Fails with the smallest failing case that hypothesis finds.
    """
    listed = worker.ask("list", "", 0)["covered"]
    names = [(kind, name) for kind, members in listed.items() for name in members]
    ends: Counter[str] = Counter()
    batch = 10

    @settings(
        max_examples=-(-calls // batch),
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.lists(
            st.tuples(st.sampled_from(names), st.integers(first_seed, first_seed + 2**31)),
            min_size=batch,
            max_size=batch,
        )
    )
    def run_batch(cases: list[tuple[tuple[str, str], int]]) -> None:
        for (kind, name), seed in cases:
            end = worker.ask(kind, name, seed)
            assert end == "ok" or end.startswith("refused: "), (kind, name, seed, end)
            ends[end.split(":")[0]] += 1

    run_batch()
    return ends


def test_calls_end_in_a_result_or_a_documented_error(worker: Worker) -> None:
    ends = fuzz(worker, 600)
    assert ends.total() >= 600
    # Both are tried: neither all refused, nor all let through.
    assert min(ends["ok"], ends["refused"]) >= 150


@pytest.mark.slow
def test_many_calls_end_in_a_result_or_a_documented_error(worker: Worker) -> None:
    assert fuzz(worker, 12_000, first_seed=2**40).total() >= 12_000


def sanitized_extension(folder: Path) -> Path:
    """Build eaglerl._C with AddressSanitizer and UndefinedBehaviorSanitizer."""
    pybind11 = pytest.importorskip("pybind11", reason="needs pybind11 to build the extension")
    flags = "-O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all"
    settings = {
        "CMAKE_BUILD_TYPE": "None",
        "CMAKE_CXX_FLAGS": flags,
        "CMAKE_LIBRARY_OUTPUT_DIRECTORY": folder / "lib",
        "CMAKE_MAKE_PROGRAM": shutil.which("ninja"),
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
        "EAGLERL_WITH_CUDA": "0",
    }
    options = [f"-D{name}={value}" for name, value in settings.items()]
    build = str(folder / "build")
    for command in (
        ["cmake", "-S", str(ROOT), "-B", build, "-G", "Ninja", *options],
        ["cmake", "--build", build],
    ):
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return folder / "lib" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="preloads the sanitizers as Linux does")
def test_calls_under_sanitizers(tmp_path: Path) -> None:
    if not shutil.which("cmake") or not shutil.which("ninja"):
        pytest.skip("needs cmake and ninja")
    libraries = preloaded()
    built = os.environ.get("EAGLERL_SANITIZED_EXTENSION")
    extension = Path(built) if built else sanitized_extension(tmp_path)
    environment = {
        "LD_PRELOAD": libraries,
        # Python itself does not free everything at its end; torch's allocator may say no.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    with Worker(extension, **environment) as worker:
        assert fuzz(worker, 3000).total() >= 3000
