"""The merge of a call's options with a target's generation config, by transformers' own code."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedConfig
from transformers.generation import GenerationMixin

from eaglerl.eagle3.generation_config.generation_fields import check_known, check_supported
from eaglerl.eagle3.generation_config.generation_schema import check_fields
from eaglerl.eagle3.stopping import read_token_ids

if TYPE_CHECKING:
    from transformers._typing import GenerativePreTrainedModel

_PRIVATE = ("_prepare_generation_config", "_prepare_special_tokens", "_get_logits_processor")


class PreparingModel(GenerationMixin):
    """A stand-in for a model: the two configs that transformers' preparations read."""

    def __init__(self, config: PreTrainedConfig, generation_config: GenerationConfig) -> None:
        missing = [name for name in _PRIVATE if not hasattr(GenerationMixin, name)]
        if missing:
            raise RuntimeError(
                f"this version of transformers has no GenerationMixin.{missing[0]}, which makes "
                "the logits processors; install the version that pyproject.toml names"
            )
        self.config = config
        self.generation_config = generation_config

    @property
    def as_model(self) -> GenerativePreTrainedModel:
        """This object, as the preparations annotate the model that they belong to.

        They declare a whole model but read its two configs only.
        """
        return cast("GenerativePreTrainedModel", self)

    def logits_processors(
        self,
        config: GenerationConfig,
        shown_ids: torch.Tensor,
        *,
        prefix_allowed_tokens_fn: Callable[[int, torch.Tensor], list[int]] | None,
        logits_processor: LogitsProcessorList,
        attention_mask: torch.Tensor | None,
        device: torch.device,
    ) -> LogitsProcessorList:
        """Make the processors of one sequence.

        Args:
            config: The merged config.
            shown_ids: (1, L) int64 prompt, padding included.
            prefix_allowed_tokens_fn: The user's.
            logits_processor: The user's.
            attention_mask: (1, L), 0 for padding; None without padding.
            device: Where the logits are.
        """
        return GenerationMixin._get_logits_processor(
            self.as_model,
            generation_config=config,
            input_ids_seq_length=shown_ids.shape[1],
            # transformers annotates ids with the class of its legacy constructor.
            encoder_input_ids=cast("torch.LongTensor", shown_ids),
            prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
            logits_processor=logits_processor,
            # It takes what torch takes as a device.
            device=cast("str", device),
            model_kwargs={"attention_mask": attention_mask},
        )


def merge_config(
    model: PreparingModel,
    generation_config: GenerationConfig | None,
    explicit: dict[str, Any],
    device: torch.device,
) -> GenerationConfig:
    """Merge a call's fields with a target's generation config, and prepare its special tokens.

    Raises:
        TypeError: transformers does not know a field.
        ValueError: a field is not supported or out of range.
    """
    merged, unknown = GenerationMixin._prepare_generation_config(
        model.as_model, generation_config, **explicit
    )
    check_known(unknown)
    check_supported(merged)
    check_fields(merged, "generate's arguments, with the target's generation config,")
    # Processors do not accept an empty tensor of end-of-sequence tokens.
    merged.eos_token_id = read_token_ids(merged.eos_token_id, "eos_token_id") or None
    # On the CPU first: transformers reads the values, which would synchronise with a device.
    GenerationMixin._prepare_special_tokens(model.as_model, merged, device=torch.device("cpu"))
    if merged._eos_token_tensor is not None:
        merged._eos_token_tensor = merged._eos_token_tensor.to(device)
    if "max_length" not in explicit and (
        getattr(generation_config, "max_length", None) is None
        and model.generation_config.max_length is None
    ):
        # transformers' default of 20, which neither the call nor the target asks for.
        merged.max_length = None
    return merged
