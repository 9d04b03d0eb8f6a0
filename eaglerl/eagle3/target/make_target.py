"""Load a target, or wrap a loaded model as one, in its fastest implementation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypedDict

import torch
from transformers import PreTrainedModel

from eaglerl.eagle3.target.load_block_target import (
    BlockSource,
    load_block_target,
    open_block_source,
)
from eaglerl.eagle3.target.packed_target import (
    DifferentModulesError,
    PackedTarget,
    why_not_packed,
)
from eaglerl.eagle3.target.target_files import load_transformers_model
from eaglerl.eagle3.target.target_model import TargetModel
from eaglerl.eagle3.target.transformers_target import TransformersTarget

Backend = Literal["auto", "packed", "transformers"]
TargetPrecision = Literal["auto", "native", "int8", "float32"]


class TargetOptions(TypedDict, total=False):
    """How to run a target, see `load_target`."""

    backend: Backend
    dtype: torch.dtype | None
    device: torch.device | str | None
    precision: TargetPrecision


def load_target(
    path: str | Path,
    *,
    feature_layers: Sequence[int] | Callable[[int], Sequence[int]] | None = None,
    backend: Backend = "auto",
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    precision: TargetPrecision = "auto",
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
        precision: on the CPU, "native" multiplies the weights of the GGUF file in the folder as
            they are stored, with float32 activations: the function of the expanded weights.
            "int8" multiplies them with 8-bit activations, as llama.cpp does: faster, and another
            model by its rounding. "float32" expands the weights. "auto" is native where the
            folder has a GGUF file that the kernels support and nothing else is asked for.

    Raises:
        ValueError: the model does not run in this precision, "packed" cannot run it, the feature
            layers collide, `load_transformers_model` refuses the folder, or its generation config
            asks for something that is not supported.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    if precision in ("native", "int8"):
        _check_alone(precision, backend, dtype, device)
        source = open_block_source(path)
        if isinstance(source, str):
            raise ValueError(f'precision="{precision}" cannot run {str(path)!r}: {source}')
        return load_block_target(source, feature_layers=feature_layers, precision=precision)
    if precision == "auto" and backend == "auto" and dtype is None and device.type == "cpu":
        source = open_block_source(path)
        if isinstance(source, BlockSource):
            return load_block_target(source, feature_layers=feature_layers)
    if precision not in ("auto", "float32"):
        raise ValueError(
            f'precision must be "auto", "native", "int8" or "float32", got {precision!r}'
        )
    stored = torch.float32 if device.type == "cpu" else "auto"
    model = load_transformers_model(path, stored if dtype is None else dtype)
    # In place. Called through the base class, since transformers' own wrapper is not typed.
    module: torch.nn.Module = model
    module.to(device)
    if callable(feature_layers):
        feature_layers = feature_layers(model.config.num_hidden_layers)
    return make_target(model, feature_layers=feature_layers, backend=backend)


def _check_alone(
    precision: str, backend: Backend, dtype: torch.dtype | None, device: torch.device
) -> None:
    """Refuse options that a precision of the CPU's own kernels leaves no choice for."""
    for name, value, only in (
        ("backend", backend, "auto"), ("dtype", dtype, None), ("device", device.type, "cpu")
    ):  # fmt: skip
        if value != only:
            raise ValueError(f'{name} must be {only!r} with precision="{precision}", got {value!r}')


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
