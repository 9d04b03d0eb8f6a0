"""The build: what it says when something is missing, and that a wheel works by itself."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOT_COPIED = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.so", "*.egg-info", ".*")


def run_build(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs setup.py as pip does, with its build folders outside the repository."""
    cleaned = {name: value for name, value in os.environ.items() if name != "CXX"}
    folders = ["--build-temp", str(tmp_path / "temp"), "--build-lib", str(tmp_path / "lib")]
    return subprocess.run(
        [sys.executable, "setup.py", "build_ext", *folders],
        cwd=ROOT,
        env=cleaned | environment,
        capture_output=True,
        text=True,
    )


def test_missing_compiler_says_what_to_install(tmp_path: Path) -> None:
    result = run_build(tmp_path, PATH=str(tmp_path))
    assert result.returncode != 0
    assert "no C++ compiler found (looked for c++, g++, clang++)" in result.stderr
    assert "apt install g++" in result.stderr
    assert "Traceback" not in result.stderr


def test_named_compiler_that_is_missing_is_named(tmp_path: Path) -> None:
    result = run_build(tmp_path, CXX="no-such-compiler -O1")
    assert result.returncode != 0
    assert "looked for no-such-compiler)" in result.stderr


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_missing_cmake_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "c++").symlink_to(shutil.which("c++"))
    result = run_build(tmp_path, PATH=str(tmp_path))
    assert result.returncode != 0
    assert "'cmake' was not found. Install it: 'pip install cmake'" in result.stderr


def test_unknown_choice_of_cuda_is_refused(tmp_path: Path) -> None:
    result = run_build(tmp_path, EAGLERL_WITH_CUDA="maybe")
    assert result.returncode != 0
    assert "EAGLERL_WITH_CUDA must be 0, 1 or auto, not 'maybe'" in result.stderr


@pytest.mark.parametrize(
    ("version", "choice"),
    [
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n", "0"),
        ("__version__ = '2.13.0+cu130'\ncuda: Optional[str] = '13.0'\n", "auto"),
        (None, "auto"),
    ],
)
@pytest.mark.parametrize("asked", [None, "0", "1", "auto"])
def test_cuda_is_built_for_a_torch_that_can_use_it(
    tmp_path: Path, version: str | None, choice: str, asked: str | None
) -> None:
    if version is not None:
        (tmp_path / "torch").mkdir()
        (tmp_path / "torch" / "version.py").write_text(version)
    script = (
        "import runpy, setuptools, sysconfig\n"
        "setuptools.setup = lambda **_: None\n"
        f"sysconfig.get_path = lambda name: {str(tmp_path)!r}\n"
        "print(runpy.run_path('setup.py')['cuda_choice']())"
    )
    cleaned = {name: value for name, value in os.environ.items() if name != "EAGLERL_WITH_CUDA"}
    given = {} if asked is None else {"EAGLERL_WITH_CUDA": asked}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=ROOT, env=cleaned | given, capture_output=True, text=True)
    assert result.stdout.strip() == (asked or choice), result.stderr


@pytest.mark.slow
def test_wheel_installs_into_an_empty_environment(tmp_path: Path) -> None:
    clone = shutil.copytree(ROOT, tmp_path / "clone", ignore=NOT_COPIED)
    environment = os.environ | {"EAGLERL_WITH_CUDA": "0"}
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", str(tmp_path), str(clone)],
        check=True,
        env=environment,
    )
    (wheel,) = tmp_path.glob("eaglerl-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "eaglerl/kernels/__init__.py" in names
    assert not any(name.startswith(("kernels/", "tests/", "csrc/")) for name in names)
    heads = [path.relative_to(ROOT) for path in ROOT.glob("models/*/*.safetensors")]
    assert names.issuperset(f"eaglerl/{head}" for head in heads)

    venv.create(tmp_path / "empty", with_pip=True)
    python = tmp_path / "empty" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--no-deps", "--no-index", wheel], check=True)
    script = "import eaglerl, eaglerl._C as c; print(eaglerl.__version__, c.cpu_isa(), c.has_cuda)"
    result = subprocess.run(
        [python, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    version, isa, has_cuda = result.stdout.split()
    assert version == wheel.name.split("-")[1]
    assert isa in ("avx512vnni", "avx512", "avx2", "baseline")
    assert has_cuda == "False"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs the CUDA compiler")
@pytest.mark.parametrize("architecture", ["80", "90", "100"])
def test_cuda_sources_compile(tmp_path: Path, architecture: str) -> None:
    for source in sorted((ROOT / "csrc").rglob("*.cu")):
        target = tmp_path / f"{source.stem}.o"
        subprocess.run(
            ["nvcc", "-std=c++17", "-Werror", "all-warnings", f"-arch=sm_{architecture}",
             "-I", str(ROOT / "csrc"), "-c", str(source), "-o", str(target)],
            check=True,
        )  # fmt: skip
        assert target.stat().st_size > 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs the CUDA compiler")
def test_build_with_cuda_links_its_runtime_statically(tmp_path: Path) -> None:
    result = run_build(tmp_path, EAGLERL_WITH_CUDA="1")
    assert result.returncode == 0, result.stderr
    (library,) = (tmp_path / "lib").rglob("_C*.so")
    names = ("cuda_action_cache_step", "CudaFoldedDecision")
    script = f"import _C; print(_C.has_cuda, all(hasattr(_C, name) for name in {names}))"
    loaded = subprocess.run(
        [sys.executable, "-c", script], cwd=library.parent, capture_output=True, text=True
    )
    assert loaded.stdout.split() == ["True", "True"]
    assert b"libcudart.so" not in library.read_bytes()
