"""The policy's decision on a CUDA device by the extension's own kernels, without Triton."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from eaglerl._ext import C
from eaglerl.kernels._launch import workspace
from eaglerl.ops._encode_cpu import ACTIVATIONS, element_type
from eaglerl.ops.action_cache import ActionCache, CacheView
from eaglerl.ops.policy_weights import PolicyWeights

_ADVICE = (
    "build the extension where a CUDA compiler is found (EAGLERL_WITH_CUDA=1 makes a missing one "
    "an error), or install Triton"
)


def has_cuda_kernels() -> bool:
    """Return whether the extension was built with its CUDA sources."""
    return hasattr(C, "CudaFoldedDecision")


def native_decision(weights: PolicyWeights) -> Any:
    """Pass the addresses of weights to native code. The weights must outlive the result.

    Args:
        weights: a policy without ``fc_weight``, which reads reduced features or low, mid and high.

    Returns:
        ``eaglerl._C.CudaFoldedDecision``, with the methods of ``PolicyEncoder`` on the CPU, and
        those for scratch memory and the stream.

    Raises:
        RuntimeError: the extension has no CUDA kernels.
        ValueError: the weights have an FC, or more hidden layers than a launch can take.
    """
    if not has_cuda_kernels():
        raise RuntimeError(f"eaglerl._C was built without CUDA kernels: {_ADVICE}")
    if weights.fc_weight is not None:
        raise ValueError(
            "weights must have no fc_weight for the CUDA C++ kernels: use weights.fold() if the "
            "features are not needed, or install Triton"
        )
    matrices = (*weights.hidden_weights, weights.output_weight)
    vectors = (*weights.hidden_biases, weights.output_bias)
    return C.CudaFoldedDecision(
        [matrix.data_ptr() for matrix in matrices],
        [vector.data_ptr() for vector in vectors],
        [matrices[0].shape[1], *(matrix.shape[0] for matrix in matrices)],
        element_type(weights.dtype),
        ACTIVATIONS[weights.activation],
        _address(weights.norm_weight),
        weights.norm_chunks,
        weights.eps,
        weights.joined_size is not None,
        weights.actions.data_ptr(),
        weights.num_actions,
        weights.action_columns,
        weights.horizon,
        weights.fallback_action,
    )


def decide_cuda(
    weights: PolicyWeights,
    low: Tensor,
    mid: Tensor | None,
    high: Tensor | None,
    rows: Tensor | None,
    last: Tensor | None,
    cache: ActionCache | CacheView | None,
    slots: Tensor | None,
    temperature: float,
    seed: int,
    offset: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run `fused_encode` without features on checked CUDA arguments, in one launch.

    If the cache serves every sequence, neither weights nor inputs are read. Whether an adaptive
    cache does is known only after the first layer; a hit then saves the rest.

    The arguments are those of `fused_encode`; `weights` must have no ``fc_weight``.

    Nothing waits for the device. A row out of range reads as NaN, and a slot out of range changes
    no record; both get the policy's ``fallback_action``. The logits of a slot out of range are NaN.

    Returns:
        Logits (S, horizon * A) float32, NaN where the action came from the cache; actions (S,)
        int32; parameters (S, 3 or 4) int32.

    Raises:
        RuntimeError: the extension has no CUDA kernels, or the launch failed.
        ValueError: these kernels cannot take the weights.
    """
    native = native_decision(weights)
    count = low.shape[0] if rows is None else rows.shape[0]
    sequences = count if last is None else last.shape[0]
    logits = torch.empty((sequences, weights.output_weight.shape[0]), device=low.device)
    action = torch.empty((sequences,), dtype=torch.int32, device=low.device)
    params = torch.empty((sequences, weights.action_columns), dtype=torch.int32, device=low.device)
    if sequences == 0:
        return logits, action, params
    parts = (low, mid, high)
    strides = (0 if part is None else part.stride(0) for part in parts)
    native.set_inputs(*map(_address, parts), *strides, element_type(low.dtype), low.shape[0])
    if cache is not None:
        native.set_cache(
            cache.mode,
            cache.state.data_ptr(),
            cache.state.shape[0],
            _address(cache.reference),
            0 if cache.reference is None else cache.reference.shape[1],
            _address(cache.ring),
        )
    native.set_draw(temperature, seed)
    native.set_outputs(logits.data_ptr(), action.data_ptr(), params.data_ptr())
    with on_device(low.device):
        scratch, tickets = workspace(low.device, native.scratch(sequences)[0])
        native.set_scratch(scratch.data_ptr(), tickets.data_ptr())
        stream = current_stream(low.device)
        native.run(
            _address(rows), count, _address(last), sequences, _address(slots), offset, stream
        )
    return logits, action, params


def step_cuda(
    logits: Tensor,
    actions: Tensor,
    features: Tensor | None,
    state: Tensor,
    reference: Tensor | None,
    ring: Tensor | None,
    slots: Tensor | None,
    mode: int,
    temperature: float,
    seed: int,
    offset: int,
    fallback_action: int,
) -> tuple[Tensor, Tensor]:
    """Run `action_cache_step` on checked CUDA arguments, in one launch.

    Nothing waits for the device. A slot out of range changes no record and gets the fallback.

    Args:
        logits: see `action_cache_step`.
        actions: see `action_cache_step`.
        features: see `action_cache_step`.
        state: (slots, 16) int32 records of the cache.
        reference: (slots, reference_size) float32, or None.
        ring: (slots, horizon, 5) int32, or None.
        slots: see `action_cache_step`.
        mode: the cache's mode, a value of ``eaglerl._C.cache_modes``.
        temperature: see `action_cache_step`.
        seed: see `action_cache_step`.
        offset: see `action_cache_step`.
        fallback_action: see `action_cache_step`.

    Returns:
        Actions (S,) and parameters (S, 3 or 4), int32.

    Raises:
        RuntimeError: the extension has no CUDA kernels, or the launch failed.
    """
    if not has_cuda_kernels():
        raise RuntimeError(f"eaglerl._C was built without CUDA kernels: {_ADVICE}")
    sequences, (count, columns) = logits.shape[0], actions.shape
    action, params = actions.new_empty((sequences,)), actions.new_empty((sequences, columns))
    with on_device(logits.device):
        C.cuda_action_cache_step(
            logits.data_ptr(),
            actions.data_ptr(),
            _address(features),
            state.data_ptr(),
            _address(reference),
            _address(ring),
            _address(slots),
            action.data_ptr(),
            params.data_ptr(),
            sequences,
            count,
            columns,
            logits.shape[1] // count,
            state.shape[0],
            0 if reference is None else reference.shape[1],
            mode,
            temperature,
            seed,
            offset,
            fallback_action,
            current_stream(logits.device),
        )
    return action, params


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which launches go to a device; it does nothing on the CPU."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def current_stream(device: torch.device) -> int:
    """Return the handle of the device's current stream; 0 on the CPU."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
