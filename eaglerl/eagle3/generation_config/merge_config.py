"""A call's fields merged with a target's generation config, by transformers' own preparations."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedConfig
from transformers.generation import GenerationMixin

from eaglerl.eagle3.generation_config.generation_fields import check_known, check_supported
from eaglerl.eagle3.generation_config.generation_schema import check_fields
from eaglerl.eagle3.stopping import read_token_ids

_PRIVATE = ("_prepare_generation_config", "_prepare_special_tokens", "_get_logits_processor")


class PreparingModel(GenerationMixin):
    """What transformers' preparations ask of a model: its two configs."""

    def __init__(self, config: PreTrainedConfig, generation_config: GenerationConfig) -> None:
        missing = [name for name in _PRIVATE if not hasattr(GenerationMixin, name)]
        if missing:
            raise RuntimeError(
                f"this version of transformers has no GenerationMixin.{missing[0]}, which makes "
                "the logits processors; install the version that pyproject.toml names"
            )
        self.config = config
        self.generation_config = generation_config


def merge_config(
    model: PreparingModel,
    generation_config: GenerationConfig | None,
    explicit: dict[str, Any],
    device: torch.device,
) -> GenerationConfig:
    """Merge a call's fields with a target's generation config, and prepare its special tokens.

    Raises:
        TypeError: a field that transformers does not know.
        ValueError: a field that is not supported, or out of its range.
    """
    merged, unknown = model._prepare_generation_config(generation_config, **explicit)
    check_known(unknown)
    check_supported(merged)
    check_fields(merged, "generate's arguments, with the target's generation config,")
    # Processors take no empty tensor of end tokens.
    merged.eos_token_id = read_token_ids(merged.eos_token_id, "eos_token_id") or None
    # On the CPU first: transformers reads the values, for which the host would wait for a device.
    model._prepare_special_tokens(merged, device=torch.device("cpu"))
    if merged._eos_token_tensor is not None:
        merged._eos_token_tensor = merged._eos_token_tensor.to(device)
    if "max_length" not in explicit and (
        getattr(generation_config, "max_length", None) is None
        and model.generation_config.max_length is None
    ):
        # It is transformers' default, which no one asked for.
        merged.max_length = None
    return merged
