"""The schema of a target's generation config."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch
from pydantic import AfterValidator, ConfigDict, Field, JsonValue
from transformers import GenerationConfig

from eaglerl.json_file import Count, Schema, check_json, shortly

_Flag = bool | None
_Number = float | None
_Ids = list[Count] | None
_Penalty = Annotated[float, Field(gt=0)] | None


def _check_ids(value: JsonValue) -> JsonValue:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for item in ids:
        if type(item) is not int or item < 0:
            raise ValueError(f"must be a token id or a list of them, got {shortly(value)}")
    return value


_OneOrMore = Annotated[JsonValue, AfterValidator(_check_ids)]
_TOKENS = ("eos_token_id", "pad_token_id", "bos_token_id")


class GenerationConfigSchema(Schema):
    """The fields of generation_config.json that decoding reads; others are ignored.

    Only the types of the sampling fields are checked, since greedy decoding does not use them.
    """

    model_config = ConfigDict(extra="ignore")

    eos_token_id: _OneOrMore = None
    bos_token_id: _OneOrMore = None
    # Older files have -1 for no padding token.
    pad_token_id: Annotated[int, Field(ge=-1)] | None = None

    max_length: Count | None = None
    max_new_tokens: Annotated[Count, Field(ge=1)] | None = None
    min_length: Count | None = None
    min_new_tokens: Count | None = None
    max_time: _Number = None
    stop_strings: str | list[str] | None = None

    do_sample: _Flag = None
    temperature: _Number = None
    top_k: int | None = None
    top_p: _Number = None
    min_p: _Number = None
    top_h: _Number = None
    typical_p: _Number = None
    epsilon_cutoff: _Number = None
    eta_cutoff: _Number = None

    repetition_penalty: _Penalty = None
    encoder_repetition_penalty: _Penalty = None
    no_repeat_ngram_size: Count | None = None
    encoder_no_repeat_ngram_size: Count | None = None
    bad_words_ids: list[list[Count]] | None = None
    suppress_tokens: _Ids = None
    begin_suppress_tokens: _Ids = None
    forced_bos_token_id: Count | None = None
    forced_eos_token_id: _OneOrMore = None
    exponential_decay_length_penalty: tuple[int, float] | None = None
    remove_invalid_values: _Flag = None
    renormalize_logits: _Flag = None


def check_fields(config: GenerationConfig, where: str) -> None:
    """Check the fields of a generation config, except for its special tokens.

    These may be tensors, and `read_token_ids` checks them.

    Args:
        config: the config.
        where: what it is, for the message.

    Raises:
        ValueError: a field has a value that is not allowed; the message names it.
    """
    values: dict[str, Any] = {}
    for name in GenerationConfigSchema.model_fields.keys() - set(_TOKENS):
        value = getattr(config, name, None)
        if isinstance(value, torch.Tensor | np.ndarray | np.generic):
            value = value.tolist()
        values[name] = value
    check_json(values, GenerationConfigSchema, where)
