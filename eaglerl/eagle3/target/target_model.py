"""The interface of a target, the language model that is accelerated."""

from __future__ import annotations

import importlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import PreTrainedConfig

from eaglerl.eagle3.cache.kv_cache import KVCache
from eaglerl.eagle3.fair_lock import FairLock
from eaglerl.eagle3.generation_config.generation_settings import check_generation_config
from eaglerl.eagle3.head.feature_layers import eagle_feature_layers
from eaglerl.eagle3.layers.embedding import EmbeddingSource
from eaglerl.eagle3.layers.row_batch import RowBatch
from eaglerl.eagle3.target.target_files import check_target_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LogitsRows = Literal["all", "last", "none"]


@dataclass(frozen=True, slots=True)
class TargetOutput:
    """The result of one pass of the target.

    Attributes:
        logits: (M, vocab_size), (1, vocab_size) or None, as asked for.
        features: (M, 3 * hidden_size) hidden states, low, mid and high concatenated; (M, 0) of a
            target without feature layers. May be a view of a buffer that the next pass over the
            same cache overwrites.
        last_hidden_state: (M, hidden_size) output of the final norm; may be a view like `features`.
    """

    logits: torch.Tensor | None
    features: torch.Tensor
    last_hidden_state: torch.Tensor


def default_feature_layers(num_layers: int) -> tuple[int, ...]:
    """Return EAGLE-3's default feature layers: the third, the middle and the third from last.

    Args:
        num_layers: decoder layers of the target.

    Returns:
        Indices into transformers' ``hidden_states``, that is: layers whose *input* is taken.

    Raises:
        ValueError: the model is so shallow that the three collide.
    """
    return checked_feature_layers(eagle_feature_layers(num_layers), num_layers)


def checked_feature_layers(layers: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """Check three feature layers, or none.

    Raises:
        ValueError: neither three nor none, not distinct, or outside the model.
    """
    if not len(layers):
        return ()
    if len(layers) != 3:
        raise ValueError(f"feature_layers must name three layers, got {list(layers)}")
    low, mid, high = (int(layer) for layer in layers)
    if len({low, mid, high}) != 3:
        raise ValueError(
            f"feature_layers must be three distinct layers, got {[low, mid, high]} "
            f"for a target of {num_layers} layers; name them explicitly"
        )
    for layer in (low, mid, high):
        if not 0 <= layer < num_layers:
            raise ValueError(
                f"feature_layers must lie in [0, {num_layers}) (inputs of the decoder layers), "
                f"got {layer}"
            )
    return low, mid, high


def head_dim_of(config: PreTrainedConfig) -> int:
    """Return the width of an attention head, which not every config states."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


class TargetModel(ABC):
    """Interface of a target. `load_target` and `make_target` choose the fastest implementation.

    Several threads may run passes at once, each over a cache of its own.

    Attributes:
        turns: the lock that sequences hold during their passes, so that each pass has all cores
            and its time is its own.
        has_window: whether a layer has a sliding window.
        mixes_slots: whether a pass may hold trees of several slots.
        precision: of the products: "native", "int8" or a dtype such as "float32".
        weights: what the weights were converted to while loading, see `load_target`.
        kv_cache_dtype: of the caches that `new_cache` makes.
    """

    precision: str = "float32"
    weights: str = "stored"
    mixes_slots: bool = False
    kv_cache_dtype: torch.dtype = torch.float32

    #: Rows of one pass over a long prompt: bounds the buffers, and how long other sequences wait.
    chunk_size: int = 512

    def __init__(
        self,
        config: PreTrainedConfig,
        generation_config: Any,
        device: torch.device,
        feature_layers: Sequence[int] | None,
    ) -> None:
        check_target_config(config)
        self.config = config
        self.generation_config = generation_config
        self.turns = FairLock()
        self.has_window = False
        check_generation_config(config, generation_config, device)
        self.hidden_size: int = config.hidden_size
        self.vocab_size: int = config.vocab_size
        self.num_layers: int = config.num_hidden_layers
        self.max_positions: int = config.max_position_embeddings
        self.head_dim: int = head_dim_of(config)
        self.num_kv_heads: int = getattr(config, "num_key_value_heads", config.num_attention_heads)
        self.feature_layers = (
            default_feature_layers(self.num_layers)
            if feature_layers is None
            else checked_feature_layers(feature_layers, self.num_layers)
        )

    def set_feature_layers(self, layers: Sequence[int]) -> None:
        """Take the features from other layers from the next pass on; not during a pass.

        Raises:
            ValueError: not three distinct layers of the model.
        """
        self.feature_layers = checked_feature_layers(layers, self.num_layers)

    @property
    @abstractmethod
    def embed_tokens(self) -> torch.Tensor:
        """(vocab_size, hidden_size) embedding table."""

    @property
    def embedding(self) -> torch.Tensor | EmbeddingSource:
        """The embedding table in the form in which the target has it, for heads that share it."""
        return self.embed_tokens

    @property
    def device(self) -> torch.device:
        """Where the target runs."""
        return self.embed_tokens.device

    def new_cache(self, capacity: int, slots: int = 1) -> KVCache:
        """Make an empty cache of `kv_cache_dtype`, where the target runs."""
        return KVCache(
            self.num_layers,
            self.num_kv_heads,
            self.head_dim,
            capacity,
            slots=slots,
            dtype=self.kv_cache_dtype,
            device=self.device,
        )

    @abstractmethod
    def forward(self, rows: RowBatch, cache: KVCache, logits: LogitsRows = "all") -> TargetOutput:
        """Run one pass over `rows`: write their keys and values to `cache`, commit nothing.

        Args:
            rows: what to compute.
            cache: cache of this model, with room for the rows.
            logits: rows whose logits are wanted.
        """

    @staticmethod
    def from_pretrained(path: str | Path, **options: Any) -> TargetModel:
        """Load a target: the old name of `load_target`."""
        return _deprecated("from_pretrained", "load_target")(path, **options)

    @staticmethod
    def from_model(model: PreTrainedModel, **options: Any) -> TargetModel:
        """Wrap a loaded model: the old name of `make_target`."""
        return _deprecated("from_model", "make_target")(model, **options)


def _deprecated(old: str, new: str) -> Callable[..., TargetModel]:
    warnings.warn(
        f"TargetModel.{old} is deprecated and goes with the next release: "
        f"call {new} from eaglerl.eagle3",
        DeprecationWarning,
        stacklevel=3,
    )
    # By name, so that the interface does not import its implementations.
    return getattr(importlib.import_module("eaglerl.eagle3.target.make_target"), new)
