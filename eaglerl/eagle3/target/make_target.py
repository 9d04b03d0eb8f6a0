"""Load a target, or wrap a loaded model as one, in its fastest implementation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel

from eaglerl.eagle3.target.packed_target import (
    DifferentModulesError,
    PackedTarget,
    why_not_packed,
)
from eaglerl.eagle3.target.target_files import load_transformers_model
from eaglerl.eagle3.target.target_model import TargetModel
from eaglerl.eagle3.target.transformers_target import TransformersTarget

Backend = Literal["auto", "packed", "transformers"]


def load_target(
    path: str | Path,
    *,
    feature_layers: Sequence[int] | Callable[[int], Sequence[int]] | None = None,
    backend: Backend = "auto",
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> TargetModel:
    """Load any dense causal language model that transformers loads.

    Args:
        path: folder or hub name.
        feature_layers: three layers whose inputs are the features, or a function that names them
            for a number of layers; EAGLE-3's choice by default. Empty for decoding without a draft
            head, which needs no features.
        backend: "packed" is the fast CPU path, "transformers" runs the library's own modules,
            "auto" takes the first where it can.
        dtype: of the weights; float32 on the CPU by default, as stored elsewhere.
        device: where to run; CUDA by default where there is one.

    Raises:
        ValueError: "packed" cannot run the model, the feature layers collide,
            `load_transformers_model` refuses the folder, or its generation config asks for
            something that is not supported.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    stored = torch.float32 if torch.device(device).type == "cpu" else "auto"
    model = load_transformers_model(path, stored if dtype is None else dtype)
    # In place. Called through the base class, since transformers' own wrapper is not typed.
    module: torch.nn.Module = model
    module.to(device)
    if callable(feature_layers):
        feature_layers = feature_layers(model.config.num_hidden_layers)
    return make_target(model, feature_layers=feature_layers, backend=backend)


def make_target(
    model: PreTrainedModel,
    *,
    feature_layers: Sequence[int] | None = None,
    backend: Backend = "auto",
) -> TargetModel:
    """Wrap a model that is already loaded; arguments as in `load_target`.

    The packed path copies the weights: later changes to the model are not seen.
    """
    if backend not in ("auto", "packed", "transformers"):
        raise ValueError(f'backend must be "auto", "packed" or "transformers", got {backend!r}')
    if backend == "transformers":
        return TransformersTarget(model, feature_layers)
    reason = why_not_packed(model)
    if reason is None:
        try:
            return PackedTarget(model, feature_layers)
        except DifferentModulesError as error:
            if backend == "packed":
                raise
            reason = str(error)
    if backend == "packed":
        raise ValueError(f"the packed CPU path cannot run this model: {reason}")
    if model.device.type == "cpu":
        warnings.warn(
            f"the target runs through transformers' modules, which is slower: {reason}",
            stacklevel=3,
        )
    return TransformersTarget(model, feature_layers)
