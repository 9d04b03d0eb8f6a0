"""The options of a generation, as transformers' `generate` names them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import torch
from transformers import GenerationConfig, StoppingCriteria


class GenerationOptions(TypedDict, total=False):
    """What a call of `generate` may ask for besides the prompt.

    None means that a call does not say it; then the target's generation config counts, or
    transformers' default. Other fields of a `GenerationConfig` are options as well.

    With `generation_config` or `do_sample` a call is in transformers' terms: `do_sample` decides
    whether tokens are drawn, and `top_k` is 50 where nothing says otherwise. In all other calls
    `temperature` decides, and `top_k` is off unless the target's generation config has one.

    Attributes:
        generation_config: options in one object; those beside it win over it. Without lengths in it
            a continuation has 20 tokens, as in transformers.
        max_new_tokens: longest continuation; 256 where nothing says so. It wins over `max_length`.
            A sequence also ends at the target's context.
        max_length: longest sequence, the prompt included.
        min_new_tokens: tokens before which no end-of-sequence token may come.
        min_length: the same, the prompt included.
        do_sample: draw tokens.
        temperature: 0 decodes greedily; above, tokens are drawn as transformers draws them.
        top_p: nucleus mass in (0, 1]; 1 is off.
        top_k: number of most likely tokens to draw from; 0 is off.
        min_p: least probability of a token to draw, as a part of the likeliest one's.
        typical_p: mass of locally typical tokens to draw from.
        repetition_penalty: divides the positive logits of tokens that the text has, and multiplies
            the negative ones.
        no_repeat_ngram_size: n-grams of this size come once.
        bad_words_ids: token sequences that may not come.
        suppress_tokens: tokens that may not come.
        begin_suppress_tokens: tokens that may not come first.
        sequence_bias: added to the logits of the last tokens of sequences.
        eos_token_id: token or tokens that end a sequence, in any form: integers, a tensor. An empty
            list is none.
        pad_token_id: fills up shorter sequences.
        stop_strings: texts that end a sequence.
        max_time: seconds after which a sequence ends.
        logits_processor: a `LogitsProcessorList`, or a list of callables that take (1, L) ids and
            (1, V) float32 scores and give scores. Each is called once for every token, in order.
            Of several prompts each one after the first has copies of them.
        stopping_criteria: a `StoppingCriteriaList`; treated likewise.
        prefix_allowed_tokens_fn: takes the number of a prompt and (L,) ids, and gives the tokens
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
