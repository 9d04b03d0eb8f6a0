"""Load a target, or wrap a loaded model as one, in its fastest implementation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, cast, get_args

import torch

from eaglerl.eagle3.cache.kv_cache import KVCacheDtype, torch_cache_dtype
from eaglerl.eagle3.target.block_target import Precision
from eaglerl.eagle3.target.load_block_target import (
    BlockSource,
    has_gguf,
    load_block_target,
    open_block_source,
)
from eaglerl.eagle3.target.packed_target import (
    NotPackedError,
    packed_target,
    why_not_fast,
    why_not_packed,
)
from eaglerl.eagle3.target.target_files import load_transformers_model
from eaglerl.eagle3.target.target_model import TargetModel
from eaglerl.eagle3.target.weight_files import WeightFormat, check_weight_format

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Backend = Literal["auto", "packed", "transformers"]
TargetPrecision = Literal["auto", "native", "bfloat16", "int8", "float32"]
_PRECISIONS = get_args(TargetPrecision)


class TargetOptions(TypedDict, total=False):
    """How to run a target, see `load_target`."""

    backend: Backend
    dtype: torch.dtype | None
    device: torch.device | str | None
    precision: TargetPrecision
    weights: WeightFormat
    kv_cache_dtype: KVCacheDtype


def load_target(
    path: str | Path,
    *,
    feature_layers: Sequence[int] | Callable[[int], Sequence[int]] | None = None,
    backend: Backend = "auto",
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    precision: TargetPrecision = "auto",
    weights: WeightFormat = "stored",
    kv_cache_dtype: KVCacheDtype = "auto",
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
        precision: on the CPU, "native" multiplies the weights as they are stored, in a GGUF file
            or in safetensors files, with float32 activations: the function of the expanded
            weights. "bfloat16" multiplies them with activations in bfloat16, and "int8" with 8-bit
            activations, as llama.cpp does: other models by their rounding. "float32" expands the
            weights, and multiplies them in the same kernels. "auto" is native where the folder has
            a GGUF file that the kernels support or `weights` names a format, and nothing else is
            asked for.
        weights: format of the matrices in the other precisions than "float32". "stored" leaves them
            as they are. "q8_0", "q4_0" and "q4_1" quantise them while loading to 8 or 4 bits in
            blocks of 32, as the types of that name in GGUF files; of 4-bit formats, the embedding
            table and the output layer are in q8_0. "bf16", "f16" and "f32" store each by itself.
            This is weight-only quantisation, as transformers' ``QuantoConfig(weights=...)`` asks
            for it.
        kv_cache_dtype: of keys and values in the KV cache. With the CPU's own kernels "auto" is
            float32; "bfloat16" and "float16" halve the cache and change the text, since keys and
            values are rounded when they are written. transformers' modules keep the dtype of the
            model.

    Raises:
        ValueError: the model does not run in this precision or with these weights, "packed" cannot
            run it, the feature layers collide, `load_transformers_model` refuses the folder, or its
            generation config asks for something that is not supported.
        OSError: there is no model of this name.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    _check_names(precision, weights)
    cache_dtype = torch_cache_dtype(kv_cache_dtype)
    if precision not in ("auto", "float32") or weights != "stored":
        given = f'precision="{precision}"' if weights == "stored" else f'weights="{weights}"'
        _check_alone(given, backend, dtype, device)
        source = open_block_source(path, weights)
        if isinstance(source, str):
            raise ValueError(f"{given} cannot run {str(path)!r}: {source}")
        chosen = cast("Precision", "native" if precision == "auto" else precision)
        return load_block_target(
            source,
            feature_layers=feature_layers,
            precision=chosen,
            kv_cache_dtype=cache_dtype,
        )
    slower = None
    asked = (backend, dtype, device.type) != ("auto", None, "cpu")
    if precision == "auto" and not asked and has_gguf(path):
        found = open_block_source(path)
        if isinstance(found, BlockSource):
            return load_block_target(
                found, feature_layers=feature_layers, kv_cache_dtype=cache_dtype
            )
        slower = found
    stored = torch.float32 if device.type == "cpu" else "auto"
    model = load_transformers_model(path, stored if dtype is None else dtype)
    # In place. Called through the base class, since transformers' own wrapper is not typed.
    module: torch.nn.Module = model
    module.to(device)
    if callable(feature_layers):
        feature_layers = feature_layers(model.config.num_hidden_layers)
    # What keeps a model from every path of the CPU's own, `make_target` says.
    if slower is not None and slower != why_not_fast(model.config):
        warnings.warn(
            f"the target {str(path)!r} is expanded to float32, which is slower: {slower}",
            stacklevel=2,
        )
    return make_target(
        model, feature_layers=feature_layers, backend=backend, kv_cache_dtype=kv_cache_dtype
    )


def _check_names(precision: str, weights: str) -> None:
    if precision not in _PRECISIONS:
        names = ", ".join(f'"{name}"' for name in _PRECISIONS)
        raise ValueError(f"precision must be one of {names}, got {precision!r}")
    check_weight_format(weights)
    if precision == "float32" and weights != "stored":
        raise ValueError(
            f'weights must be "stored" with precision="float32", which expands them, got '
            f"{weights!r}"
        )


def _check_alone(
    given: str, backend: Backend, dtype: torch.dtype | None, device: torch.device
) -> None:
    """Refuse options that the block kernels leave no choice for."""
    for name, value, only in (
        ("backend", backend, "auto"), ("dtype", dtype, None), ("device", device.type, "cpu")
    ):  # fmt: skip
        if value != only:
            raise ValueError(f"{name} must be {only!r} with {given}, got {value!r}")


def make_target(
    model: PreTrainedModel,
    *,
    feature_layers: Sequence[int] | None = None,
    backend: Backend = "auto",
    kv_cache_dtype: KVCacheDtype = "auto",
) -> TargetModel:
    """Wrap a model that is already loaded; arguments as in `load_target`.

    The packed path copies the weights: later changes to the model are not seen.

    Raises:
        ValueError: "packed" cannot run the model, or transformers' modules cannot keep their cache
            in `kv_cache_dtype`.
    """
    # It needs transformers' modelling code, 40 MB and a second that targets in blocks do without.
    from eaglerl.eagle3.target.transformers_target import TransformersTarget

    cache_dtype = torch_cache_dtype(kv_cache_dtype)
    if backend not in ("auto", "packed", "transformers"):
        raise ValueError(f'backend must be "auto", "packed" or "transformers", got {backend!r}')
    if backend == "transformers":
        _check_cache_dtype(model, kv_cache_dtype, 'backend is "transformers"')
        return TransformersTarget(model, feature_layers)
    reason = why_not_packed(model)
    if reason is None:
        try:
            return packed_target(model, feature_layers, kv_cache_dtype=cache_dtype or torch.float32)
        except NotPackedError as error:
            if backend == "packed":
                raise
            reason = error.reason
    if backend == "packed":
        raise NotPackedError(reason)
    _check_cache_dtype(model, kv_cache_dtype, reason)
    if model.device.type == "cpu":
        warnings.warn(
            f"the target runs through transformers' modules, which is slower: {reason}",
            stacklevel=3,
        )
    return TransformersTarget(model, feature_layers)


def _check_cache_dtype(model: PreTrainedModel, kv_cache_dtype: str, reason: str) -> None:
    """Refuse another cache than the model's own where transformers' modules run it."""
    if torch_cache_dtype(kv_cache_dtype) not in (None, model.dtype):
        raise ValueError(
            f"kv_cache_dtype must be auto for a target that runs through transformers' modules, "
            f"which keep the model's {model.dtype}, got {kv_cache_dtype!r}; it does so because "
            f"{reason}"
        )
