"""A target decoding one token for every sequence of a batch at each step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from eaglerl.eagle3.cache.kv_cache import KVCache
from eaglerl.eagle3.layers.row_batch import RowBatch
from eaglerl.eagle3.target.packed_target import (
    NotPackedError,
    PackedDtype,
    packed_target,
    why_not_packed,
)
from eaglerl.eagle3.target.target_files import load_transformers_model
from eaglerl.eagle3.target.target_model import TargetModel
from eaglerl.eagle3.target.transformers_target import TransformersTarget

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class SlotEngine:
    """The target decoding one token for every slot at each step."""

    def __init__(
        self, target: TargetModel, prefix: Sequence[int], slots: int, capacity: int
    ) -> None:
        """Set up.

        Args:
            target: the target.
            prefix: tokens that every sequence begins with; may be empty.
            slots: sequences side by side.
            capacity: tokens of the longest one.
        """
        self._target = target
        self._cache: KVCache = target.new_cache(capacity, slots)
        if prefix:
            target.forward(RowBatch.causal(prefix, 0), self._cache, "none")
        # Every sequence begins with the same text, so its rows are computed once.
        self._prefix = self._cache.data[0, :, :, :, : len(prefix)].clone()

    def restart(self, slot: int) -> None:
        """Begin a new sequence with the prefix in its cache."""
        self._cache.data[slot, :, :, :, : self._prefix.shape[3]] = self._prefix

    def step(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return (slots, V) logits after one token (slots,) of each slot at positions (slots,)."""
        rows = RowBatch.one_per_slot(token_ids, positions)
        logits = self._target.forward(rows, self._cache).logits
        assert logits is not None  # only a pass that keeps no logits gives none
        return logits


def slot_dtype(dtype: str) -> PackedDtype:
    """Return what "auto" stands for on this machine, and other dtypes as they are.

    Raises:
        ValueError: an unknown dtype.
    """
    if dtype == "auto":
        return "bfloat16" if torch.cpu.get_capabilities().get("avx512_bf16", False) else "float32"
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f'dtype must be "auto", "float32" or "bfloat16", got {dtype!r}')
    return cast("PackedDtype", dtype)


def load_slot_target(path: str | Path, dtype: str) -> TargetModel:
    """Load a target that decodes many sequences side by side, without features.

    Args:
        path: its folder.
        dtype: of its products: "float32", "bfloat16", or "auto": bfloat16 if the CPU has
            instructions for it and the target runs on packed weights.

    Raises:
        ValueError: an unknown dtype, or a model that is refused; see `load_transformers_model`.
    """
    wanted = slot_dtype(dtype)
    model = load_transformers_model(path, torch.float32)
    reason = why_not_packed(model)
    if reason is None:
        try:
            return packed_target(model, (), dtype=wanted)
        except NotPackedError as error:
            reason = error.reason
    warnings.warn(
        f"the target runs through transformers' modules, which is slower: {reason}", stacklevel=3
    )
    if dtype == "bfloat16":
        # transformers wraps `to` in a way that hides that it is bound.
        convert = cast("Callable[[torch.dtype], PreTrainedModel]", model.to)
        model = convert(torch.bfloat16)
    return TransformersTarget(model, ())
