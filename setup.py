"""Builds the extension eaglerl._C with CMake and ninja. All metadata is in pyproject.toml."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CUDA_CHOICES = ("0", "1", "auto")


def require_compiler() -> None:
    """Stops with what to install where a C++ compiler or Python's headers are missing."""
    named = os.environ.get("CXX", "").split()
    candidates = named[:1] or ["c++", "g++", "clang++"]
    if not any(shutil.which(candidate) for candidate in candidates):
        raise SystemExit(
            f"eaglerl: no C++ compiler found (looked for {', '.join(candidates)}). Install one: "
            "'apt install g++' (Debian, Ubuntu), 'dnf install gcc-c++' (Fedora), "
            "'xcode-select --install' (macOS), or name it in the variable CXX."
        )
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        raise SystemExit(
            f"eaglerl: Python's headers are missing ({header}). Install them: "
            "'apt install python3-dev' (Debian, Ubuntu), 'dnf install python3-devel' (Fedora)."
        )


def require_tool(name: str) -> str:
    """Returns the path of a build tool, or stops with how to get it."""
    path = shutil.which(name)
    if path is None:
        raise SystemExit(f"eaglerl: '{name}' was not found. Install it: 'pip install {name}'.")
    return path


class CMakeExtension(Extension):
    """An extension whose sources CMake knows."""

    def __init__(self, name: str) -> None:
        super().__init__(name, sources=[])


class CMakeBuild(build_ext):
    """Runs CMake where setuptools would run the compiler."""

    def build_extension(self, ext: Extension) -> None:
        require_compiler()
        import pybind11

        with_cuda = os.environ.get("EAGLERL_WITH_CUDA", "auto")
        if with_cuda not in CUDA_CHOICES:
            raise SystemExit(f"EAGLERL_WITH_CUDA must be 0, 1 or auto, not '{with_cuda}'.")
        cmake, ninja = require_tool("cmake"), require_tool("ninja")
        build_folder = Path(self.build_temp).resolve() / "cmake"
        target_folder = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        settings = {
            "CMAKE_MAKE_PROGRAM": ninja,
            "CMAKE_BUILD_TYPE": "Debug" if self.debug else "Release",
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": target_folder,
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "EAGLERL_WITH_CUDA": with_cuda,
        }
        # A folder left by another environment (build isolation makes a new one each time) holds
        # paths that no longer exist; --fresh would need CMake 3.24.
        (build_folder / "CMakeCache.txt").unlink(missing_ok=True)
        shutil.rmtree(build_folder / "CMakeFiles", ignore_errors=True)
        options = [f"-D{name}={value}" for name, value in settings.items()]
        subprocess.run([cmake, "-S", ROOT, "-B", build_folder, "-G", "Ninja", *options], check=True)
        subprocess.run([cmake, "--build", build_folder], check=True)


setup(
    packages=[*find_packages(include=["eaglerl", "eaglerl.*"]), "eaglerl.kernels"],
    # Not importable as a top-level package: a published one has the name `kernels`.
    package_dir={"eaglerl.kernels": "kernels"},
    ext_modules=[CMakeExtension("eaglerl._C")],
    cmdclass={"build_ext": CMakeBuild},
)
