"""The policy's decision, prepared once for a decoding loop that calls it in every cycle."""

from __future__ import annotations

import torch
from torch import Tensor

from eaglerl._ext import C, thread_count
from eaglerl.ops._check import NativeState, check_memory
from eaglerl.ops._encode_checks import (
    INPUT_DTYPES,
    MAX_ROWS,
    check_cache,
    check_draw,
    check_features,
    check_index,
    check_weights_type,
)
from eaglerl.ops._encode_cpu import native_policy, set_cache, set_inputs
from eaglerl.ops._policy_checks import check_policy_layout
from eaglerl.ops.action_cache import SKETCH_SIZE, ActionCache
from eaglerl.ops.policy_weights import PolicyWeights


class FusedEncoder(NativeState):
    """`fused_encode` with everything prepared that does not change in a loop.

    Weights, cache, output buffers, temperature and number of threads are fixed on construction. On
    the CPU, encoding is one native call that writes into the outputs; from the second call on
    nothing is allocated. Inputs, weights, cache and outputs are checked again only if their memory,
    shape or strides have changed since the previous call. An encoder cannot be copied. A call while
    another thread is in one raises a RuntimeError.

    Attributes:
        features: (max_rows, h) g of the rows of the last call, in the dtype of the inputs; further
            rows keep older values. None without an FC, or if not requested.
        logits: (max_sequences, horizon * A) float32; NaN where the action came from the cache.
        action: (max_sequences,) int32.
        params: (max_sequences, 3) or (max_sequences, 4) int32, see `FusedEncodeOutput`.
        reduce_seconds: seconds that ``features`` took in the last call on the CPU; 0 without them.
    """

    def __init__(
        self,
        weights: PolicyWeights,
        cache: ActionCache | None = None,
        *,
        max_rows: int = MAX_ROWS,
        max_sequences: int = 1,
        dtype: torch.dtype = torch.float32,
        temperature: float = 0.0,
        seed: int = 0,
        return_features: bool = True,
    ) -> None:
        """Check the arguments and allocate the outputs.

        Args:
            weights: the policy, see `fused_encode`. If it has an FC, the inputs are low, mid, high.
            cache: keeps actions; changed by every call.
            max_rows: most rows of a call; up to 1,024.
            max_sequences: most sequences of a call.
            dtype: dtype of the inputs: float32, bfloat16 or float16.
            temperature: see `fused_encode`.
            seed: see `fused_encode`.
            return_features: see `fused_encode`.

        Raises:
            TypeError: a dtype is not allowed.
            ValueError: a value is out of its range, or the cache does not fit.
        """
        check_weights_type(weights)
        for name, value in (("max_rows", max_rows), ("max_sequences", max_sequences)):
            if not isinstance(value, int) or not 1 <= value <= MAX_ROWS:
                raise ValueError(f"{name} must be an int in 1..{MAX_ROWS}, got {value!r}")
        for name, given in (("dtype", dtype), ("weights", weights.dtype)):
            if given not in INPUT_DTYPES:
                raise TypeError(f"{name} must be float32, bfloat16 or float16, got {given}")
        check_draw(temperature, seed, 0)
        self._weights, self._cache, self._dtype = weights, cache, dtype
        self._draw = (temperature, seed)
        self._max_rows, self._max_sequences = max_rows, max_sequences
        self._inputs: tuple[Tensor, Tensor | None, Tensor | None] | None = None
        self.reduce_seconds = 0.0
        self._available = 0
        self.features: Tensor | None = None
        device = weights.device
        if return_features and weights.fc_weight is not None:
            self.features = torch.zeros(
                (max_rows, len(weights.fc_weight)), dtype=dtype, device=device
            )
        self.logits = torch.zeros((max_sequences, len(weights.output_weight)), device=device)
        self.action = torch.zeros((max_sequences,), dtype=torch.int32, device=device)
        params = (max_sequences, weights.action_columns)
        self.params = torch.zeros(params, dtype=torch.int32, device=device)
        self._input_guard: C.TensorGuard | None = None
        self._prepare()

    def encode(
        self,
        low: Tensor,
        mid: Tensor | None = None,
        high: Tensor | None = None,
        *,
        rows: Tensor | None = None,
        last: Tensor | None = None,
        slots: Tensor | None = None,
        offset: int = 0,
    ) -> None:
        """Decide, and write the results to the first rows of the outputs.

        Args:
            low: (B, k), (B, 3k) or (B, h), see `fused_encode`.
            mid: see `fused_encode`.
            high: see `fused_encode`.
            rows: (N,) int64 rows of the input; N is at most ``max_rows``.
            last: (S,) int64 index into the N rows; S is at most ``max_sequences``.
            slots: (S,) int64 distinct slots of the cache; 0..S - 1 by default.
            offset: counter of the draws.

        Raises:
            TypeError: a dtype is not the encoder's.
            ValueError: shapes, strides or values do not fit; nothing has changed.
        """
        inputs = self._inputs
        if inputs is None or low is not inputs[0] or mid is not inputs[1] or high is not inputs[2]:
            self._take_inputs(low, mid, high)
        rows_address = last_address = slots_address = 0
        count = self._available
        if rows is not None:
            check_index("rows", rows, low.device)
            rows_address, count = rows.data_ptr(), rows.shape[0]
        sequences = count
        if last is not None:
            check_index("last", last, low.device)
            last_address, sequences = last.data_ptr(), last.shape[0]
        if slots is not None:
            self._check_slots(slots, sequences)
            slots_address = slots.data_ptr()
        if count > self._max_rows or sequences > self._max_sequences:
            if self._renew():
                return self.encode(low, mid, high, rows=rows, last=last, slots=slots, offset=offset)
            raise ValueError(
                f"a call has at most {self._max_rows} rows (max_rows) and {self._max_sequences} "
                f"sequences (max_sequences), got {count} and {sequences}"
            )
        if self._run is None:
            self._renew()
            return self._encode_cuda(rows, last, slots, offset)
        taken = self._run(rows_address, count, last_address, sequences, slots_address, offset)
        if taken < 0:
            self._renew()
            return self.encode(low, mid, high, rows=rows, last=last, slots=slots, offset=offset)
        self.reduce_seconds = taken
        return None

    def _outputs(self) -> dict[str, Tensor | None]:
        return {name: getattr(self, name) for name in ("features", "logits", "action", "params")}

    def _prepare(self) -> None:
        """Check weights, cache and outputs, and pass their addresses to native code."""
        weights, cache = self._weights, self._cache
        check_policy_layout(weights)
        self._check_outputs()
        kept: list[Tensor | None] = []
        if cache is not None:
            reads_reduced = weights.joined_size is None
            encodes = self.features is not None
            size = weights.feature_size if encodes or reads_reduced else SKETCH_SIZE
            check_cache(cache, None, 1, weights.horizon, size, weights.device)
            kept += [cache.state, cache.reference, cache.ring]
        kept += self._outputs().values()
        self._guards = tuple(
            C.TensorGuard([tensor for tensor in tensors if tensor is not None])
            for tensors in (kept, weights.tensors().values())
        )
        self._run = None
        if weights.device.type == "cpu":
            self._native = self._prepare_native()
            self._run = self._native.run

    def _check_outputs(self) -> None:
        weights, most = self._weights, self._max_sequences
        wanted: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "logits": ((most, len(weights.output_weight)), torch.float32),
            "action": ((most,), torch.int32),
            "params": ((most, weights.action_columns), torch.int32),
        }
        if self.features is not None and weights.feature_size is not None:
            wanted["features"] = ((self._max_rows, weights.feature_size), self._dtype)
        for name, (shape, dtype) in wanted.items():
            tensor = getattr(self, name)
            check_memory(f"the encoder's {name}", tensor)
            layout = (tensor.shape, tensor.dtype, tensor.device, tensor.is_contiguous())
            if layout != (shape, dtype, weights.device, True):
                raise ValueError(
                    f"the encoder's {name} must stay contiguous, of shape {shape} and {dtype}, got "
                    f"{tuple(tensor.shape)} of {tensor.dtype}"
                )

    def _prepare_native(self) -> C.PolicyEncoder:
        native = C.PolicyEncoder(native_policy(self._weights), thread_count())
        if self._cache is not None:
            set_cache(native, self._cache)
        native.set_draw(*self._draw)
        native.set_outputs(
            0 if self.features is None else self.features.data_ptr(),
            self.logits.data_ptr(),
            self.action.data_ptr(),
            self.params.data_ptr(),
            self._max_rows,
            self._max_sequences,
        )
        native.set_guards(self._input_guard, *self._guards)
        return native

    def _renew(self) -> bool:
        """Check tensors that have changed since the last call; return whether any had.

        Raises:
            TypeError: a dtype is not allowed.
            ValueError: something no longer fits.
        """
        stale = not all(guard.unchanged() for guard in self._guards)
        if stale:
            self._prepare()
        # encode() has taken its inputs before it calls this.
        assert self._inputs is not None
        assert self._input_guard is not None
        if stale or not self._input_guard.unchanged():
            self._take_inputs(*self._inputs)
            return True
        return False

    def _take_inputs(self, low: Tensor, mid: Tensor | None, high: Tensor | None) -> None:
        check_features(low, mid, high, self._weights)
        if low.dtype != self._dtype:
            raise TypeError(f"low must be {self._dtype}, as the encoder is, got {low.dtype}")
        expected = self._weights.joined_size or self._weights.feature_size
        if mid is None and low.shape[1] != expected:
            raise ValueError(f"low must have {expected} columns, got shape {tuple(low.shape)}")
        guard = C.TensorGuard([part for part in (low, mid, high) if part is not None])
        if self._run is not None:
            set_inputs(self._native, low, mid, high)
            self._native.set_guards(guard, *self._guards)
        self._inputs, self._available, self._input_guard = (low, mid, high), low.shape[0], guard

    def _check_slots(self, slots: Tensor, sequences: int) -> None:
        if self._cache is None:
            raise ValueError("slots needs cache")
        check_index("slots", slots, self._weights.device)
        if slots.shape[0] != sequences:
            raise ValueError(f"slots must name {sequences} slots, got {slots.shape[0]}")

    def _encode_cuda(
        self, rows: Tensor | None, last: Tensor | None, slots: Tensor | None, offset: int
    ) -> None:
        from eaglerl.ops._encode_cuda import encode_cuda

        assert self._inputs is not None
        out = encode_cuda(
            self._weights, *self._inputs, rows, last, self._cache, slots, *self._draw, offset,
            self.features is not None,
        )  # fmt: skip
        for name, result in zip(("features", "logits", "action", "params"), out, strict=True):
            if result is not None:
                setattr(self, name, result)
