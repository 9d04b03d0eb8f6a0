"""Acceptance models as safetensors files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from eaglerl.eagle3.params import TreeParams
from eaglerl.files import atomic_path
from eaglerl.rl.acceptance_model import CHAIN_INPUTS, POOL_INPUTS, STOP_INPUTS, AcceptanceModel
from eaglerl.rl.small_net import SmallNet

FORMAT = "eaglerl-acceptance"
VERSION = 1

_SIZES = ("top_k", "max_depth", "max_rows", "chain_length")


def save_acceptance(
    model: AcceptanceModel,
    path: str | Path,
    *,
    target_id: str,
    head_id: str,
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write a model.

    Args:
        model: the model.
        path: the file.
        target_id: hash of the target whose text it was fitted to.
        head_id: hash of the head whose candidates it judges.
        training: JSON values that say how it was fitted and what it is worth.
    """
    tensors = model.pool_net.tensors("pool")
    if model.chain_net is not None:
        tensors |= model.chain_net.tensors("chain")
    tensors["stop_weights"] = torch.from_numpy(model.stop_weights)
    settings = {name: getattr(model, name) for name in _SIZES}
    tree = model.constant
    settings |= {
        "rate": model.rate,
        "constant": None if tree is None else [tree.total_tokens, tree.depth, tree.top_k],
        "gain": model.gain,
    }
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "target_id": target_id,
        "head_id": head_id,
        "settings": json.dumps(settings),
        "training": json.dumps(dict(training or {})),
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def load_acceptance(
    path: str | Path, *, target_id: str | None = None, head_id: str | None = None
) -> AcceptanceModel:
    """Read a model.

    Args:
        path: a file that `save_acceptance` wrote.
        target_id: hash of the target that it will be used with; None does not compare.
        head_id: hash of the head that it will be used with; None does not compare.

    Raises:
        ValueError: the file is not one, or belongs to another target or head; the message says
            both.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"the policy {str(path)!r} cannot be read: {error}") from error
    if metadata.get("format") != FORMAT or metadata.get("version") != str(VERSION):
        raise ValueError(
            f"{str(path)!r} is no acceptance policy of version {VERSION}: its format is "
            f"{metadata.get('format')!r}, version {metadata.get('version')!r}"
        )
    for name, wanted in (("target_id", target_id), ("head_id", head_id)):
        if wanted is not None and metadata.get(name) != wanted:
            raise ValueError(
                f"{name} of the policy {str(path)!r} is {metadata.get(name)}, this one is {wanted}"
            )
    settings = _read_settings(path, metadata.get("settings", ""))
    model = AcceptanceModel(
        pool_net=SmallNet.from_tensors(tensors, "pool"),
        chain_net=SmallNet.from_tensors(tensors, "chain") if "chain.weight.0" in tensors else None,
        stop_weights=_stop_weights(path, tensors, settings["max_depth"]),
        **settings,
    )
    for name, net, inputs in (
        ("pool", model.pool_net, POOL_INPUTS),
        ("chain", model.chain_net, CHAIN_INPUTS),
    ):
        if net is not None and net.inputs != inputs:
            raise ValueError(
                f"the {name} net of {str(path)!r} takes {net.inputs} inputs, must take {inputs}"
            )
    return model


def _read_settings(path: str | Path, text: str) -> dict[str, Any]:
    try:
        settings = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"the settings of {str(path)!r} are no JSON: {error}") from error
    minima = {"top_k": 1, "max_depth": 0, "max_rows": 2, "chain_length": 0}
    others = {"rate", "constant", "gain"}
    if not isinstance(settings, dict) or settings.keys() != minima.keys() | others:
        raise ValueError(f"the settings of {str(path)!r} are not those of a policy: {settings!r}")
    for name, minimum in minima.items():
        value = settings[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise ValueError(f"{name} in {str(path)!r} must be at least {minimum}, got {value!r}")
    for name, above in (("rate", 0.0), ("gain", -1.0)):
        value = settings[name]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not above < value < math.inf:
            raise ValueError(f"{name} in {str(path)!r} must be above {above:g}, got {value!r}")
    settings["constant"] = _read_tree(path, settings["constant"])
    return settings


def _read_tree(path: str | Path, value: object) -> TreeParams | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 3:
        raise ValueError(f"constant in {str(path)!r} must be null or a tree, got {value!r}")
    try:
        return TreeParams(*value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"constant in {str(path)!r} is no tree: {error}") from error


def _stop_weights(path: str | Path, tensors: dict[str, torch.Tensor], max_depth: int):
    tensor = tensors.get("stop_weights")
    shape = (max_depth, STOP_INPUTS)
    if tensor is None or tensor.dtype != torch.float32 or tuple(tensor.shape) != shape:
        found = "nothing" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}"
        raise ValueError(f"stop_weights in {str(path)!r} must be float32 {shape}, got {found}")
    return tensor.numpy()
