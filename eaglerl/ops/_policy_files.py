"""A policy's weights on disk: ``config.json`` and ``model.safetensors`` in a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field
from torch import Tensor

from eaglerl.files import atomic_path
from eaglerl.json_file import Schema, read_json
from eaglerl.ops._policy_fields import Activation, MlpInput, gather_fields
from eaglerl.ops.limits import MAX_ACTIONS, MAX_HORIZON
from eaglerl.tensor_file import read_tensors, write_tensors

FORMAT_VERSION: Final = 1
MODEL_TYPE: Final = "eaglerl_policy"
_WEIGHTS_NAME, _CONFIG_NAME = "model.safetensors", "config.json"
_SETTINGS = ("activation", "mlp_input", "norm_chunks", "eps", "horizon", "fallback_action")


class _Config(Schema):
    format: Literal[1]
    model_type: Literal["eaglerl_policy"]
    activation: Activation
    mlp_input: MlpInput
    norm_chunks: Literal[0, 1, 3]
    eps: Annotated[float, Field(ge=0.0)]
    horizon: Annotated[int, Field(ge=1, le=MAX_HORIZON)]
    fallback_action: Annotated[int, Field(ge=0, lt=MAX_ACTIONS)]


def write_policy(folder: Path, tensors: Mapping[str, Tensor], settings: object) -> None:
    """Write tensors and settings, each file atomically.

    Args:
        folder: an existing folder, whose lock the caller holds.
        tensors: tensors by their names in the file.
        settings: the object that has the settings as attributes.
    """
    config: dict[str, Any] = {"format": FORMAT_VERSION, "model_type": MODEL_TYPE}
    config |= {name: getattr(settings, name) for name in _SETTINGS}
    contiguous = {name: t.contiguous().cpu() for name, t in tensors.items()}
    write_tensors(folder / _WEIGHTS_NAME, contiguous)
    with atomic_path(folder / _CONFIG_NAME) as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_policy(path: str | Path) -> dict[str, Any]:
    """Read the fields of a `PolicyWeights` to the CPU.

    Raises:
        ValueError: a file is missing, malformed or of another format; the message names it.
    """
    folder = Path(path)
    config = read_json(folder / _CONFIG_NAME, _Config, "policy's settings")
    file = folder / _WEIGHTS_NAME
    tensors, _ = read_tensors(file, "policy's weights")
    try:
        fields = gather_fields(tensors)
    except ValueError as error:
        raise ValueError(f"the policy's weights {str(file)!r} cannot be used: {error}") from None
    return {**fields, **{name: getattr(config, name) for name in _SETTINGS}}
