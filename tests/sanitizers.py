"""The libraries of AddressSanitizer and UndefinedBehaviorSanitizer, to be loaded before Python."""

import shutil
import subprocess
from pathlib import Path

import pytest


def preloaded() -> str:
    """The value of LD_PRELOAD; the test is skipped where there is no g++ or it has none of them."""
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
    return ":".join(libraries)
