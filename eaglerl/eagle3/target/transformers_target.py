"""A target that runs through transformers' own modules, on any device."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.modeling_outputs import BaseModelOutputWithPast

from eaglerl.eagle3.cache.kv_cache import KVCache
from eaglerl.eagle3.layers.row_batch import RowBatch
from eaglerl.eagle3.target.target_files import decoder_layers, embedding_table
from eaglerl.eagle3.target.target_model import LogitsRows, TargetModel, TargetOutput


class _CacheView(CacheLayerMixin):
    """One layer of a preallocated cache, with the interface of transformers' attention.

    transformers' own DynamicCache appends by concatenation, which copies all rows in every pass:
    47 MB behind 1,024 tokens of SmolLM2-135M, with 46 KB a row. Here a pass writes its own rows,
    and what was not accepted is overwritten by the next pass.

    Attributes:
        rows: (S, R) int64 cache rows that this pass writes, R of each of S slots.
        visible: number of cache rows that any row may attend to.
    """

    def __init__(
        self, keys: torch.Tensor, values: torch.Tensor, slots: slice | torch.Tensor
    ) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self._both = (keys, values)
        self.is_initialized = True
        self.rows = torch.empty(0, 0, dtype=torch.int64, device=keys.device)
        self.visible = 0
        self._slots = slots

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Do nothing: the memory is allocated."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the rows of this pass in place and return the visible part of the cache."""
        visible = []
        for whole, states in zip(self._both, (key_states, value_states), strict=True):
            by_row, states = whole.transpose(1, 2), states.transpose(1, 2)
            if isinstance(self._slots, slice):
                # A view: cache rows, not slots, are looked up.
                first = torch.arange(len(self.rows), device=whole.device)[:, None]
                by_row[self._slots][first, self.rows] = states
            else:
                by_row[self._slots[:, None], self.rows] = states
            visible.append(whole[self._slots, :, : self.visible])
        return visible[0], visible[1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return length and offset of the keys."""
        return self.visible, 0

    def get_seq_length(self) -> int:
        """Return the number of rows before this pass."""
        return self.visible - self.rows.shape[1]

    def get_max_length(self) -> int:
        """Return the number of rows that fit."""
        return self._both[0].shape[2]


def _check_forward(model: PreTrainedModel) -> None:
    """Refuse a model whose forward takes no positions.

    Raises:
        ValueError: it has no argument `position_ids`.
    """
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise ValueError(
            f"model_type {model.config.model_type!r} is not supported as a target: its forward "
            "takes no position_ids"
        )


def _distinct(slots: torch.Tensor) -> torch.Tensor:
    slots = slots.long()
    if len(slots.unique()) != len(slots):
        raise ValueError(
            "slots must be distinct: this target takes the rows of one slot per pass, equally many "
            f"of neighbouring slots, or one row of each of several, got {slots.tolist()}"
        )
    return slots


def cache_argument(module: nn.Module) -> str:
    """Return the argument for the KV cache in a model's forward; transformers 5.24 renamed it."""
    return "cache" if "cache" in inspect.signature(module.forward).parameters else "past_key_values"


def _attention_windows(config: PreTrainedConfig) -> dict[str, int | None]:
    """Return the sliding window of every kind of layer in a model; None for full attention.

    Raises:
        ValueError: a kind of attention that needs another cache than one of all rows.
    """
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = ("full_attention" if window is None else "sliding_attention",)
    windows = {"full_attention": None, "sliding_attention": window}
    unknown = sorted(set(kinds) - set(windows))
    if unknown:
        raise ValueError(
            f"model has layers of type {unknown[0]!r}; supported are {sorted(windows)}"
        )
    return {kind: windows[kind] for kind in sorted(set(kinds))}


def _steady_positions(config: PreTrainedConfig) -> int | None:
    """Return the positions up to which LongRoPE keeps its frequencies; None for other types.

    Beyond them, transformers takes other frequencies for all rows of a pass. The keys of a prompt
    would then depend on how it is split into passes, and a row's logits on the rows beside it.
    """
    given = getattr(config, "rope_parameters", None) or {}
    kinds = [value for value in given.values() if isinstance(value, Mapping)] or [given]
    limits = [
        kind.get("original_max_position_embeddings")
        for kind in kinds
        if kind.get("rope_type") == "longrope"
    ]
    return min(filter(None, limits), default=None)


class TransformersTarget(TargetModel):
    """Any causal language model whose decoder layers transformers exposes as ``model.layers``."""

    def __init__(self, model: PreTrainedModel, feature_layers: Sequence[int] | None = None) -> None:
        super().__init__(model.config, model.generation_config, model.device, feature_layers)
        if self.feature_layers:
            decoder_layers(model)
        _check_forward(model)
        self.model = model
        self.precision = str(model.dtype).removeprefix("torch.")
        self.kv_cache_dtype = model.dtype
        self._windows = _attention_windows(model.config)
        self.has_window = any(window is not None for window in self._windows.values())
        steady = _steady_positions(model.config)
        if steady is not None and steady < self.max_positions:
            warnings.warn(
                f"prompt and output end at {steady} of the target's {self.max_positions} "
                "positions: its rotary embedding of type 'longrope' has other frequencies beyond",
                stacklevel=3,
            )
            self.max_positions = steady
        self._cache_argument = cache_argument(model)
        decoder = model.get_decoder()
        # Per thread, since the model may run elsewhere at the same time: in another target, or in
        # its own `generate`.
        self._captured = threading.local()
        self._decoder = decoder
        self._hooks: list[RemovableHandle] = []
        self.set_feature_layers(self.feature_layers)
        decoder.register_forward_hook(self._capture_last)

    def set_feature_layers(self, layers: Sequence[int]) -> None:
        """Move the hooks to other layers; see `TargetModel.set_feature_layers`."""
        super().set_feature_layers(layers)
        for hook in self._hooks:
            hook.remove()
        self._hooks = [
            self._decoder.layers[layer].register_forward_pre_hook(
                self._capture(index), with_kwargs=True
            )
            for index, layer in enumerate(self.feature_layers)
        ]

    def _capture_last(
        self, module: nn.Module, args: tuple, output: BaseModelOutputWithPast
    ) -> None:
        if (states := self._states()) is not None:
            assert output.last_hidden_state is not None, "a decoder gives its last states"
            states["last"] = output.last_hidden_state.flatten(0, 1)

    def _capture(self, index: int) -> Callable[[nn.Module, tuple, dict[str, Any]], None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            if (states := self._states()) is not None:
                hidden = args[0] if args else kwargs["hidden_states"]
                states[index] = hidden.flatten(0, 1)

        return hook

    def _states(self) -> dict[int | str, torch.Tensor] | None:
        """Return what this thread's pass has captured; None if it runs no pass of this target."""
        return getattr(self._captured, "states", None)

    @property
    def embed_tokens(self) -> torch.Tensor:
        """(vocab_size, hidden_size) embedding table of the model."""
        return embedding_table(self.model)

    @torch.inference_mode()
    def forward(self, rows: RowBatch, cache: KVCache, logits: LogitsRows = "all") -> TargetOutput:
        """Run one pass; see `TargetModel.forward`.

        The rows belong to one slot, in equal number to neighbouring ones, or each to a slot of its
        own.
        """
        device = self.model.device
        visible = int(rows.cache_rows.max()) + 1 if rows.end is None else rows.end
        if rows.slots is None:
            slots: slice | torch.Tensor = slice(rows.slot, rows.slot + rows.slot_count)
            count = rows.slot_count
        else:
            slots = _distinct(rows.slots).to(device)
            count = len(slots)
        # For transformers, rows of one slot are one sequence and those of several slots a batch.
        cache_rows = rows.cache_rows.long().view(count, -1)
        arguments = {
            "input_ids": rows.token_ids.view(count, -1).to(device),
            "position_ids": rows.positions.long().view(count, -1).to(device),
            "attention_mask": self._attention_mask(rows, count, visible),
            self._cache_argument: self._views(cache, slots, cache_rows, visible),
            "use_cache": True,
        }
        wanted = None
        states: dict[int | str, torch.Tensor] = {}
        self._captured.states = states
        try:
            if logits == "none":
                self._decoder(**arguments)
            else:
                # The model's own forward, because some families scale or cap their logits.
                keep = 1 if logits == "last" and count == 1 else 0
                wanted = self.model(**arguments, logits_to_keep=keep).logits.flatten(0, 1)
                wanted = wanted[-1:] if logits == "last" else wanted
        finally:
            self._captured.states = None
        features = [states[index] for index in range(len(self.feature_layers))]
        return TargetOutput(
            logits=wanted,
            features=torch.cat(features, dim=-1) if features else states["last"][:, :0],
            last_hidden_state=states["last"],
        )

    def _views(
        self, cache: KVCache, slots: slice | torch.Tensor, cache_rows: torch.Tensor, visible: int
    ) -> Cache:
        """Wrap the preallocated cache for transformers' attention."""
        views = Cache(layers=[])
        for layer in range(self.num_layers):
            view = _CacheView(cache.keys(layer), cache.values(layer), slots)
            view.rows, view.visible = cache_rows.to(cache.data.device), visible
            views.layers.append(view)
        return views

    def _attention_mask(
        self, rows: RowBatch, slots: int, columns: int
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """Make the additive mask, (S, 1, R, columns), for R rows of each of S slots.

        transformers takes a 4-D mask as it is, so a sliding window has to be part of it. A model
        with several kinds of layers gets one mask per kind.
        """
        visible = rows.visibility(columns).view(slots, -1, columns)
        positions = rows.positions.long().view(slots, -1)
        key_positions = torch.arange(columns, device=positions.device).expand(slots, -1)
        # A committed row lies in the cache row of its position, but siblings of a tree share a
        # position.
        own = rows.cache_rows.long().view(slots, -1)
        key_positions = key_positions.scatter(1, own, positions)
        distance = positions[:, :, None] - key_positions[:, None]
        masks = {}
        for kind, window in self._windows.items():
            may_see = visible if window is None else visible & (distance < window)
            hidden = torch.finfo(self.model.dtype).min
            bias = torch.where(may_see, 0.0, hidden).to(self.model.dtype)[:, None]
            masks[kind] = bias.to(self.model.device)
        return masks if len(masks) > 1 else next(iter(masks.values()))
