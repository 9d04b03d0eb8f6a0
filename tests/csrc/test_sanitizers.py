"""The emulated kernels under AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..sanitizers import preloaded

FOLDER = Path(__file__).resolve().parent


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="preloads the sanitizers as Linux does")
def test_emulation_under_sanitizers() -> None:
    libraries = preloaded()
    environment = os.environ | {
        "EMULATION_FLAGS": "-fsanitize=address,undefined -fno-sanitize-recover=all "
        "-Wno-maybe-uninitialized",
        "LD_PRELOAD": libraries,
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
