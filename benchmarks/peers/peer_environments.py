"""Environments with released packages, each in a folder that is complete or made again."""

from __future__ import annotations

import shutil
import subprocess
import venv
from collections.abc import Callable, Sequence
from pathlib import Path

from eaglerl.prepare import prepare_model

#: Runs OpenVINO's models.
OPENVINO = ("openvino-genai==2026.4.1.0",)
#: Converts models for both peers.
CONVERT = (
    "torch==2.13.0",
    "optimum-intel==2.2.0",
    "nncf==3.4.0",
    "openvino==2026.4.1",
    "openvino-tokenizers==2026.4.1.0",
    "sentencepiece==0.2.3",
    # optimum-intel imports both to convert an EAGLE-3 head. A diffusers of 0.38 or later needs a
    # newer huggingface_hub than transformers 5.5 allows.
    "diffusers==0.37.1",
    "einops==0.8.2",
    "cmake==4.4.5",
    "ninja==1.13.2",
)
_MARKER = "complete"


def environment(folder: Path, requirements: Sequence[str], without: Sequence[str] = ()) -> Path:
    """Return the folder with the programs of an environment; make it first if need be.

    Args:
        folder: the environment; made again unless it was completed with these requirements.
        requirements: what pip installs.
        without: what is removed again after that.
    """
    programs = folder / "bin"
    content = "\n".join([*requirements, *(f"without {name}" for name in without)])
    marker = folder / _MARKER
    if marker.is_file() and marker.read_text(encoding="utf-8") == content:
        return programs
    venv.create(folder, with_pip=True, clear=True)
    pip = [programs / "python", "-m", "pip", "--quiet"]
    run([*pip, "install", *requirements])
    if without:
        run([*pip, "uninstall", "--yes", *without])
    marker.write_text(content, encoding="utf-8")
    return programs


def converters(folder: Path) -> Path:
    """Return the folder with the programs that convert models for the peers."""
    # optimum-intel requires torchvision, whose build for CUDA does not load beside a torch for the
    # CPU and then keeps transformers from loading. Nothing here uses it.
    return environment(folder / "convert", CONVERT, without=["torchvision"])


def make_folder(folder: Path, write: Callable[[Path], None]) -> Path:
    """Return a folder that ``write`` fills; not called if the folder is there."""
    if not folder.exists():
        temporary = folder.with_name(f".{folder.name}.tmp")
        if temporary.exists():
            shutil.rmtree(temporary)
        write(temporary)
        temporary.rename(folder)
    return folder


def run(command: Sequence[str | Path], **options: object) -> None:
    """Run a command.

    Raises:
        RuntimeError: it failed; the message shows the end of its output.
    """
    done = subprocess.run(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        **options,  # type: ignore[call-overload]
    )
    if done.returncode:
        shown = "\n".join(done.stdout.splitlines()[-15:])
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{shown}")


def export_openvino(folder: Path, weights: Sequence[str]) -> None:
    """Convert the packaged model for OpenVINO, once, as its documents say: with optimum-cli.

    Args:
        folder: gets ``openvino-WEIGHTS``.
        weights: "f32", "int8" or "int4".
    """
    formats = {
        "f32": ["fp32"],
        "int8": ["int8"],
        # The default, 128, does not divide the model's 576 columns.
        "int4": ["int4", "--group-size", "64"],
    }
    for name in weights:
        if (folder / f"openvino-{name}").exists():
            continue
        program = converters(folder) / "optimum-cli"
        # In a cache of its own: transformers needs weights that the user's folder does without.
        model = prepare_model(cache_dir=folder / "float32", float32=True)
        command = [program, "export", "openvino", "--model", model, "--task"]
        command += ["text-generation-with-past", "--weight-format", *formats[name]]
        make_folder(folder / f"openvino-{name}", lambda to, made=command: run([*made, to]))
