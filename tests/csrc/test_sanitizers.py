"""The emulated kernels under AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="preloads the sanitizers as Linux does")
def test_emulation_under_sanitizers() -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    libraries = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], check=True, capture_output=True, text=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    if not all(Path(library).exists() for library in libraries):
        pytest.skip("needs the sanitizers' libraries")
    environment = os.environ | {
        "EMULATION_FLAGS": "-fsanitize=address,undefined -fno-sanitize-recover=all "
        "-Wno-maybe-uninitialized",
        "LD_PRELOAD": ":".join(libraries),
        # Python itself does not free everything at its end.
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    tests = [str(FOLDER / name) for name in ("test_folded_decision.py", "test_cuda_cache.py")]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        env=environment,
        capture_output=True,
        text=True,
        cwd=FOLDER.parents[1],
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
