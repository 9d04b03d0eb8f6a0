"""The options of a generation, as transformers' `generate` names them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import torch
from transformers import GenerationConfig, StoppingCriteria


class GenerationOptions(TypedDict, total=False):
    """The options of a call of `generate`, besides the prompt.

    An option that is None or missing comes from the target's generation config, else it has
    transformers' default. Other fields of a `GenerationConfig` are options as well.

    A call with `generation_config` or `do_sample` follows transformers' rules: `do_sample` decides
    whether tokens are drawn, and `top_k` is 50 by default. In all other calls `temperature`
    decides, and `top_k` is off unless the target's generation config has one.

    Attributes:
        generation_config: options in one object; options given beside it take precedence. Without
            lengths in it a continuation has 20 tokens, as in transformers.
        max_new_tokens: longest continuation, 256 by default; takes precedence over `max_length`.
            A sequence also ends at the target's context.
        max_length: longest sequence, the prompt included.
        min_new_tokens: number of new tokens before which no end-of-sequence token is generated.
        min_length: the same for the sequence, the prompt included.
        do_sample: whether to draw tokens.
        temperature: 0 decodes greedily; above 0, tokens are drawn as in transformers.
        top_p: nucleus mass in (0, 1]; 1 is off.
        top_k: number of most likely tokens to draw from; 0 is off.
        min_p: least probability of a token to draw, as a fraction of the most likely token's.
        typical_p: mass of locally typical tokens to draw from.
        repetition_penalty: divides the positive logits of tokens that are in the text, and
            multiplies their negative logits.
        no_repeat_ngram_size: size of the n-grams that occur at most once.
        bad_words_ids: token sequences that are never generated.
        suppress_tokens: tokens that are never generated.
        begin_suppress_tokens: tokens that are not generated first.
        sequence_bias: added to the logits of the last tokens of sequences.
        eos_token_id: the token or tokens that end a sequence: integers or a tensor; an empty list
            for none.
        pad_token_id: pads shorter sequences.
        stop_strings: texts that end a sequence.
        max_time: seconds after which a sequence ends.
        logits_processor: a `LogitsProcessorList`, or a list of callables that take (1, L) ids and
            (1, V) float32 scores and return scores. Each is called once per token, in order. With
            several prompts, each prompt after the first gets copies.
        stopping_criteria: a `StoppingCriteriaList`; also copied for several prompts.
        prefix_allowed_tokens_fn: takes the index of a prompt and (L,) ids, and returns the tokens
            that may follow.
    """

    generation_config: GenerationConfig | None
    max_new_tokens: int | None
    max_length: int | None
    min_new_tokens: int | None
    min_length: int | None
    do_sample: bool | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    typical_p: float | None
    repetition_penalty: float | None
    no_repeat_ngram_size: int | None
    bad_words_ids: list[list[int]] | None
    suppress_tokens: list[int] | None
    begin_suppress_tokens: list[int] | None
    sequence_bias: Any
    eos_token_id: int | Sequence[int] | torch.Tensor | None
    pad_token_id: int | None
    stop_strings: str | Sequence[str] | None
    max_time: float | None
    logits_processor: Sequence[Callable[..., torch.Tensor]] | None
    stopping_criteria: Sequence[StoppingCriteria] | None
    prefix_allowed_tokens_fn: Callable[[int, torch.Tensor], list[int]] | None
