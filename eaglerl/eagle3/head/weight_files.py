"""Reading of all weights in a folder, from one file or several."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

import torch
from torch import Tensor

from eaglerl.regular_file import check_regular
from eaglerl.tensor_file import check_finite, read_tensors, read_weight_index

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_WHAT = "checkpoint"


def read_weight_folder(path: str | Path) -> dict[str, Tensor]:
    """Read all tensors of a folder, on the CPU and in the dtypes of the files.

    A ``.bin`` file is read with ``weights_only=True``, so it cannot run code.

    Args:
        path: a folder with ``model.safetensors`` or ``pytorch_model.bin``, or the index of either.

    Raises:
        ValueError: there is no such file, a file cannot be read or is not a regular file, an index
            names a missing file, two files have the same tensor, or a tensor is not finite.
    """
    folder = Path(path)
    # lexists: a pipe or a dangling link of that name is refused later, not skipped.
    file = next((folder / name for name in WEIGHT_FILES if os.path.lexists(folder / name)), None)
    if file is None:
        raise ValueError(f"path must hold one of {list(WEIGHT_FILES)}, got {str(path)!r}")
    if not file.name.endswith(".index.json"):
        state = _read_file(file)
    else:
        state = {}
        for name in sorted(read_weight_index(file)):
            part = _read_file(folder / name)
            if twice := sorted(part.keys() & state.keys()):
                raise ValueError(f"{str(folder / name)!r} holds {twice[0]!r}, as another file does")
            state |= part
    check_finite(state, f"the weights in {str(path)!r}")
    return state


def _read_file(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return read_tensors(file, _WHAT)[0]
    check_regular(file, _WHAT)
    try:
        with warnings.catch_warnings():
            # Warnings about old formats, which can still be read.
            warnings.simplefilter("ignore")
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # A damaged file can raise any exception in its reader.
        raise ValueError(f"the {_WHAT} {str(file)!r} cannot be read: {_reason(error)}") from error
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise ValueError(f"the {_WHAT} {str(file)!r} must hold a mapping of names to tensors")
    for key, value in state.items():
        if not _is_plain(value):
            raise ValueError(
                f"{key!r} of the {_WHAT} {str(file)!r} must be a dense tensor on the CPU whose "
                f"elements are all in the file, got {value.layout} of {tuple(value.shape)} on "
                f"{value.device}"
            )
    return state


def _reason(error: Exception) -> str:
    # Not the library's own message: it explains how to run the code in the file.
    if foreign := re.search(r"Unsupported \w+: \w+ (\S+)", str(error)):
        return f"it asks for {foreign[1]!r}, and nothing but tensors is ever loaded"
    return f"{type(error).__name__} {str(error)[:200]}".strip()


def _is_plain(tensor: Tensor) -> bool:
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    # With strides of 0, a few bytes would give a tensor of any size.
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
