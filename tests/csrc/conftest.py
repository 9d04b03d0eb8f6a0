"""The CUDA kernels' bodies, compiled for the host."""

import importlib.util
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

from eaglerl.ops import _decision_cuda

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def emulation_module(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The extension's CUDA bindings over kernels that a loop over threads runs."""
    pybind11 = pytest.importorskip("pybind11", reason="needs pybind11 to compile the emulation")
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("needs g++ or clang++")
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    target = tmp_path_factory.mktemp("emulation") / f"cuda_emulation{suffix}"
    folders = (
        ROOT / "csrc",
        ROOT / "tests" / "csrc",
        sysconfig.get_path("include"),
        pybind11.get_include(),
    )
    extra = os.environ.get("EMULATION_FLAGS", "").split()
    subprocess.run(
        [compiler, "-std=c++17", "-O1", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall",
         "-Wextra", "-Werror", "-Wno-unknown-pragmas", *extra,
         *(f"-I{folder}" for folder in folders),
         str(ROOT / "tests" / "csrc" / "cuda_emulation.cpp"), "-o", str(target)],
        check=True,
    )  # fmt: skip
    spec = importlib.util.spec_from_file_location("cuda_emulation", target)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def emulation(emulation_module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`decide_cuda` and `step_cuda` run the emulated kernels, on tensors of the CPU."""
    monkeypatch.setattr(_decision_cuda, "C", emulation_module)
    emulation_module.set_order(0)
    return emulation_module
