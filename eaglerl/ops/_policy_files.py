"""A policy's weights on disk: ``config.json`` and ``model.safetensors`` in a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from eaglerl.files import atomic_path

FORMAT_VERSION = 1
MODEL_TYPE = "eaglerl_policy"
_WEIGHTS_NAME, _CONFIG_NAME = "model.safetensors", "config.json"
_SETTINGS = ("activation", "mlp_input", "norm_chunks", "eps", "horizon", "fallback_action")
_REQUIRED = ("output_weight", "output_bias", "bins")
_OPTIONAL = ("fc_weight", "fc_bias", "norm_weight")
_LISTS = ("hidden_weights", "hidden_biases")


def write_policy(folder: Path, tensors: Mapping[str, Tensor], settings: object) -> None:
    """Writes tensors and the attributes that are settings, each file as a whole.

    Args:
        folder: It is there, and the caller holds its lock.
        tensors: By their names in the file.
        settings: What has them.
    """
    config = {"format": FORMAT_VERSION, "model_type": MODEL_TYPE}
    config |= {name: getattr(settings, name) for name in _SETTINGS}
    with atomic_path(folder / _WEIGHTS_NAME) as temporary:
        save_file({name: t.contiguous().cpu() for name, t in tensors.items()}, temporary)
    with atomic_path(folder / _CONFIG_NAME) as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_policy(path: str | Path, device: torch.device | str) -> dict[str, Any]:
    """Reads the fields of a `PolicyWeights`.

    Raises:
        ValueError: A file is missing, malformed or of another format; the message names it.
    """
    folder = Path(path)
    config = _read_config(folder / _CONFIG_NAME)
    file = folder / _WEIGHTS_NAME
    try:
        fields = gather_fields(load_file(file, device=str(device)))
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    return {**fields, **{name: config[name] for name in _SETTINGS}}


def gather_fields(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Turns tensors, named as in a file, into the fields of a `PolicyWeights`.

    Raises:
        ValueError: A tensor is missing or unknown.
    """
    fields: dict[str, Any] = {name: tensors[name] for name in _REQUIRED if name in tensors}
    fields |= {name: tensors[name] for name in _OPTIONAL if name in tensors}
    known = set(fields)
    for field in _LISTS:
        parts = []
        while (key := f"{field}.{len(parts)}") in tensors:
            parts.append(tensors[key])
            known.add(key)
        fields[field] = tuple(parts)
    missing, unknown = set(_REQUIRED) - known, tensors.keys() - known
    if missing or unknown:
        raise ValueError(f"missing tensors: {sorted(missing)}, unknown: {sorted(unknown)}")
    return fields


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not isinstance(config, dict) or config.get("model_type") != MODEL_TYPE:
        raise ValueError(f'{file} must have "model_type": "{MODEL_TYPE}"')
    if config.get("format") != FORMAT_VERSION:
        raise ValueError(f"{file} must have format {FORMAT_VERSION}, got {config.get('format')!r}")
    missing = [name for name in _SETTINGS if name not in config]
    if missing:
        raise ValueError(f"{file} lacks {', '.join(missing)}")
    return config
