"""Acceptance models as safetensors files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self, cast

import torch
from pydantic import Field, model_validator
from safetensors.torch import save_file

from eaglerl.eagle3.policy import TreeParams
from eaglerl.eagle3.tree.tree_row import TreeRow
from eaglerl.files import atomic_path
from eaglerl.fingerprints import ModelId, is_same_model
from eaglerl.json_file import Schema, parse_json
from eaglerl.ops.limits import LARGEST_POOL, LARGEST_TREE
from eaglerl.policies.acceptance_model import (
    LOOKUP_INPUTS,
    POOL_INPUTS,
    STOP_INPUTS,
    AcceptanceModel,
)
from eaglerl.policies.small_net import SmallNet
from eaglerl.tensor_file import check_finite, check_tensor, read_tensors

FORMAT = "eaglerl-acceptance"
VERSION = 1

_LONGEST_LOOKUP = 1024


class _SettingsSchema(Schema):
    top_k: Annotated[int, Field(ge=1, le=LARGEST_TREE["top_k"])]
    max_depth: Annotated[int, Field(ge=0, le=LARGEST_TREE["depth"])]
    max_rows: Annotated[int, Field(ge=2, le=LARGEST_TREE["total_tokens"])]
    chain_length: Annotated[int, Field(ge=0, le=_LONGEST_LOOKUP)]
    rate: Annotated[float, Field(gt=0.0)]
    constant: TreeRow | None
    gain: Annotated[float, Field(gt=-1.0)]

    @model_validator(mode="after")
    def _check_pool(self) -> Self:
        pool = self.top_k + self.max_depth * self.top_k**2
        if pool > LARGEST_POOL:
            raise ValueError(
                f"top_k + max_depth * top_k^2 must be at most {LARGEST_POOL:,}, got {pool:,}"
            )
        return self


def save_acceptance(
    model: AcceptanceModel,
    path: str | Path,
    *,
    target_id: str,
    head_id: str,
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write a model to a file.

    Args:
        model: the model.
        path: the file.
        target_id: hash of the target whose text it was fitted to.
        head_id: hash of the head whose candidates it scores.
        training: JSON values about the fit and its gain, for readers.
    """
    tensors = model.pool_net.tensors("pool")
    if model.lookup_net is not None:
        tensors |= model.lookup_net.tensors("chain")
    tensors["stop_weights"] = torch.from_numpy(model.stop_weights)
    tree = model.constant
    settings = {
        "top_k": model.top_k,
        "max_depth": model.max_depth,
        "max_rows": model.max_rows,
        "chain_length": model.lookup_tokens,
        "rate": model.rate,
        "constant": None if tree is None else [tree.total_tokens, tree.depth, tree.top_k],
        "gain": model.gain,
    }
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "target_id": target_id,
        "head_id": head_id,
        **{
            f"{name}_fingerprint": made.fingerprint
            for name, made in (("target", target_id), ("head", head_id))
            if isinstance(made, ModelId) and made.fingerprint is not None
        },
        "settings": json.dumps(settings),
        "training": json.dumps(dict(training or {})),
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def load_acceptance(
    path: str | Path, *, target_id: str | None = None, head_id: str | None = None
) -> AcceptanceModel:
    """Read a model from a file.

    The same target or head at another precision is accepted with a warning.

    Args:
        path: a file that `save_acceptance` wrote.
        target_id: hash of the target that it will be used with; None skips the check.
        head_id: hash of the head that it will be used with; None skips the check.

    Raises:
        ValueError: the file is not an acceptance model, or belongs to another target or head,
            which the message names.
    """
    tensors, metadata = read_tensors(path, "policy")
    if metadata.get("format") != FORMAT or metadata.get("version") != str(VERSION):
        raise ValueError(
            f"{str(path)!r} is not an acceptance policy of version {VERSION}: its format is "
            f"{metadata.get('format')!r}, version {metadata.get('version')!r}"
        )
    _check_ids(metadata, path, target_id, head_id)
    settings = parse_json(
        metadata.get("settings", ""),
        _SettingsSchema,
        f"the entry 'settings' of the policy {str(path)!r}",
    )
    where = f"the policy {str(path)!r}"
    if "stop_weights" not in tensors:
        raise ValueError(f"{where} lacks the tensor 'stop_weights'")
    shape = (settings.max_depth, STOP_INPUTS)
    check_tensor("stop_weights", tensors["stop_weights"], torch.float32, shape, where)
    check_finite(tensors, where)
    try:
        model = AcceptanceModel(
            pool_net=SmallNet.from_tensors(tensors, "pool"),
            lookup_net=(
                SmallNet.from_tensors(tensors, "chain") if "chain.weight.0" in tensors else None
            ),
            stop_weights=tensors["stop_weights"].numpy(),
            top_k=settings.top_k,
            max_depth=settings.max_depth,
            max_rows=settings.max_rows,
            lookup_tokens=settings.chain_length,
            rate=settings.rate,
            # The validator of `TreeRow` has made it a tree.
            constant=cast("TreeParams | None", settings.constant),
            gain=settings.gain,
        )
    except ValueError as error:
        raise ValueError(f"{where} cannot be used: {error}") from error
    _check_inputs(model, path)
    return model


def _check_ids(
    metadata: Mapping[str, str], path: str | Path, target_id: str | None, head_id: str | None
) -> None:
    """Check that a file belongs to a target and a head, as far as they are given."""
    for name, wanted in (("target_id", target_id), ("head_id", head_id)):
        fingerprint = metadata.get(name.replace("_id", "_fingerprint"))
        known = ModelId(metadata.get(name, ""), fingerprint)
        if not is_same_model(known, wanted, name, f"the policy {str(path)!r}"):
            raise ValueError(
                f"{name} of the policy {str(path)!r} is {metadata.get(name)}, this one is {wanted}"
            )


def _check_inputs(model: AcceptanceModel, path: str | Path) -> None:
    """Check that the nets of a file have the inputs that the candidates provide."""
    for name, net, inputs in (
        ("pool", model.pool_net, POOL_INPUTS),
        ("lookup", model.lookup_net, LOOKUP_INPUTS),
    ):
        if net is not None and net.inputs != inputs:
            raise ValueError(
                f"the {name} net of {str(path)!r} takes {net.inputs} inputs, must take {inputs}"
            )
