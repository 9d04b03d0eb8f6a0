"""Teams and parallel loops on a pool whose threads may be late: see team_program.cpp."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    *(
        ROOT / "csrc" / "common" / f"{name}.cpp"
        for name in ("gomp", "parallel", "signal_word", "team", "thread_chooser", "thread_limit")
    ),
    ROOT / "tests" / "csrc" / "team_program.cpp",
]


def run_program(folder: Path, *flags: str) -> None:
    """Compile the program and run it."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("needs g++ or clang++")
    program = folder / "team"
    # The extension looks the pool's functions up by name, so the program has to export its own.
    subprocess.run(
        [compiler, "-std=c++17", "-O1", "-pthread", "-rdynamic", "-Wall", "-Wextra", "-Werror",
         *flags, f"-I{ROOT / 'csrc'}", *map(str, SOURCES), "-ldl", "-o", str(program)],
        check=True,
    )  # fmt: skip
    result = subprocess.run([program], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr


def test_late_members(tmp_path: Path) -> None:
    run_program(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="links the sanitizer as on Linux")
def test_late_members_under_thread_sanitizer(tmp_path: Path) -> None:
    run_program(tmp_path, "-fsanitize=thread", "-g")
