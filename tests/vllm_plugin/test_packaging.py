"""The wheel of the plugin."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from .conftest import PLUGIN


def test_the_wheel_has_all_modules_and_the_entry_point(tmp_path: Path) -> None:
    # A build leaves its products in the folder.
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    shutil.copytree(PLUGIN, source, ignore=ignored)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    build += ["--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("eaglerl_vllm-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entries,) = (name for name in names if name.endswith("entry_points.txt"))
        points = archive.read(entries).decode()
    modules = {f"eaglerl_vllm/{path.name}" for path in (PLUGIN / "eaglerl_vllm").glob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    assert points.split() == [
        "[vllm.general_plugins]",
        "eaglerl",
        "=",
        "eaglerl_vllm.plugin:register",
    ]


def test_where_it_is_off_eaglerl_is_not_imported() -> None:
    """vLLM imports the entry point in each of its processes."""
    code = "import sys, eaglerl_vllm.plugin, eaglerl_vllm.metrics; print('eaglerl' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=PLUGIN, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"
