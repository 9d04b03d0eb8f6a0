"""Builds the extension eaglerl._C with CMake and ninja. All metadata is in pyproject.toml."""

import os
import re
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
    """Stop and say what to install if a compiler or the headers of Python are missing."""
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
    """Return the path of a build tool, or stop with a message that says how to get it."""
    path = shutil.which(name)
    if path is None:
        raise SystemExit(f"eaglerl: '{name}' was not found. Install it: 'pip install {name}'.")
    return path


def torch_is_for_the_cpu() -> bool:
    """Return whether the environment has a torch without CUDA; False if it has no torch yet.

    torch cannot be imported in build isolation, so its version file is read.
    """
    for name in ("purelib", "platlib"):
        file = Path(sysconfig.get_path(name)) / "torch" / "version.py"
        if file.is_file():
            found = re.search(r"^cuda\b[^=\n]*=\s*(\S+)", file.read_text(encoding="utf-8"), re.M)
            return found is not None and found.group(1) == "None"
    return False


def cuda_choice() -> str:
    """Return EAGLERL_WITH_CUDA; if unset, 0 for a torch without CUDA, else auto."""
    asked = os.environ.get("EAGLERL_WITH_CUDA")
    if asked is None:
        return "0" if torch_is_for_the_cpu() else "auto"
    if asked not in CUDA_CHOICES:
        raise SystemExit(f"EAGLERL_WITH_CUDA must be 0, 1 or auto, not '{asked}'.")
    return asked


def discard_stale_build(folder: Path, configure: list[str]) -> None:
    """Empty a build folder that was configured with other settings or tools.

    CMake would keep using them. Build isolation, for example, has its own cmake and ninja in a
    folder that is deleted afterwards.
    """
    variables = [f"{name}={os.environ.get(name, '')}" for name in ("CXX", "CUDACXX", "CUDAARCHS")]
    stamp, wanted = folder / "configured_with.txt", "\n".join(configure + variables)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    stamp.write_text(wanted)


class CMakeExtension(Extension):
    """An extension that CMake builds; the sources are in CMakeLists.txt."""

    def __init__(self, name: str) -> None:
        super().__init__(name, sources=[])


class CMakeBuild(build_ext):
    """Runs CMake instead of setuptools' compiler."""

    def build_extension(self, ext: Extension) -> None:
        require_compiler()
        with_cuda = cuda_choice()
        cmake, ninja = require_tool("cmake"), require_tool("ninja")
        import pybind11

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
        options = [f"-D{name}={value}" for name, value in settings.items()]
        configure = [cmake, "-S", str(ROOT), "-B", str(build_folder), "-G", "Ninja", *options]
        discard_stale_build(build_folder, configure)
        subprocess.run(configure, check=True)
        subprocess.run([cmake, "--build", build_folder], check=True)


# Folders outside the package that are installed inside it. `kernels` must not be a top-level
# package: one of that name is on PyPI. `models` and `questions` are data and may be missing.
folders = {
    "eaglerl.kernels": "kernels",
    "eaglerl.models": "models",
    "eaglerl.questions": "questions",
}
folders = {package: folder for package, folder in folders.items() if (ROOT / folder).is_dir()}

setup(
    packages=[*find_packages(include=["eaglerl", "eaglerl.*"]), *folders],
    package_dir=folders,
    package_data={
        "eaglerl": ["py.typed", "_C.pyi"],
        "eaglerl.evaluation.report": ["page.css", "page.html"],
        "eaglerl.models": ["*/*"],
        "eaglerl.questions": ["*"],
        "eaglerl.server": ["static/*"],
    },
    ext_modules=[CMakeExtension("eaglerl._C")],
    cmdclass={"build_ext": CMakeBuild},
)
