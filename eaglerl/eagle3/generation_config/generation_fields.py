"""The fields of a generation config: those that shape the text, and those not supported.

A feature of transformers' `generate` that is not supported is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    MaxLengthCriteria,
    StoppingCriteria,
    StopStringCriteria,
)

_BEAMS = "there is no beam search"
_DRAFTS = "drafts come from the EAGLE-3 head and from the text, as the policy says"
_CACHES = "the KV cache is the decoder's own"
_METHOD = "only greedy decoding and sampling are supported"

#: Field of a generation config -> the values that have no effect, and why others are refused.
_UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "num_beams": ((None, 1), _BEAMS),
    "num_beam_groups": ((None, 1), _BEAMS),
    "diversity_penalty": ((None, 0), _BEAMS),
    "constraints": ((None,), _BEAMS),
    "force_words_ids": ((None,), _BEAMS),
    "num_return_sequences": ((None, 1), "pass the prompt several times"),
    "penalty_alpha": ((None, 0), _METHOD),
    "dola_layers": ((None,), _METHOD),
    "guidance_scale": ((None, 1), "it takes a second pass of the target for every token"),
    "token_healing": ((None, False), "the prompt is decoded as it is"),
    "prompt_lookup_num_tokens": ((None,), f"{_DRAFTS}: DraftPlan(lookup_tokens=...)"),
    "assistant_early_exit": ((None,), _DRAFTS),
    "assistant_ensemble_weight": ((None,), "the text would not be the target's own"),
    "speculation_type": ((None,), _DRAFTS),
    "use_mtp": ((None, False), _DRAFTS),
    "is_assistant": ((None, False), _DRAFTS),
    # Gemma's files have "hybrid", which transformers ignores.
    "cache_implementation": ((None, "hybrid"), _CACHES),
    "cache_config": ((None,), _CACHES),
}
#: Fields that ask for outputs besides the tokens.
_OUTPUTS = (
    "output_scores", "output_logits", "output_attentions", "output_hidden_states",
    "return_dict_in_generate",
)  # fmt: skip
#: Other argument of transformers' `generate` -> why it is refused.
_ARGUMENTS = {
    "assistant_model": _DRAFTS,
    "assistant_tokenizer": _DRAFTS,
    "cache": _CACHES,
    "past_key_values": _CACHES,
    "custom_generate": _METHOD,
    "negative_prompt_ids": "it takes a second pass of the target for every token",
    "negative_prompt_attention_mask": "it takes a second pass of the target for every token",
    "inputs_embeds": "prompts are token ids",
    "position_ids": "positions follow from the prompt",
    "synced_gpus": "there is one process",
}
_RULES = {
    EosTokenCriteria: "eos_token_id",
    MaxLengthCriteria: "max_length",
    StopStringCriteria: "stop_strings",
}


# Field that makes a logits processor in greedy decoding -> the values that make none.
_SHAPES_TEXT: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (None, 1),
    "encoder_repetition_penalty": (None, 1),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "bad_words_ids": (None,),
    "suppress_tokens": (None,),
    "begin_suppress_tokens": (None,),
    "sequence_bias": (None,),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "exponential_decay_length_penalty": (None,),
    "watermarking_config": (None,),
}


def check_supported(config: GenerationConfig, source: str = "") -> None:
    """Refuse a generation config that asks for something that is not supported.

    Args:
        config: the config.
        source: where it comes from, as the beginning of the message.

    Raises:
        ValueError: a field is not supported; the message names it.
    """
    for name, (neutral, reason) in _UNSUPPORTED.items():
        value = getattr(config, name, None)
        if value not in neutral:
            raise ValueError(f"{source}{name}={value!r} is not supported: {reason}")


def check_arguments(
    generation_config: GenerationConfig | None,
    logits_processor: Sequence[Callable[..., Any]] | None,
    stopping_criteria: Sequence[StoppingCriteria] | None,
    options: dict[str, Any],
) -> None:
    """Check the arguments of a call of `generate`.

    Args:
        generation_config: the user's config.
        logits_processor: the user's processors.
        stopping_criteria: the user's criteria.
        options: the other arguments that are not None.

    Raises:
        ValueError: an argument is not supported.
        TypeError: an argument has a wrong type.
    """
    if generation_config is not None and not isinstance(generation_config, GenerationConfig):
        raise TypeError(
            "generation_config must be a transformers GenerationConfig, got "
            f"{type(generation_config).__name__}"
        )
    _check_list("logits_processor", "a LogitsProcessorList", logits_processor)
    _check_list("stopping_criteria", "a StoppingCriteriaList", stopping_criteria)
    for criterion in stopping_criteria or ():
        if type(criterion) in _RULES:
            raise ValueError(
                f"stopping_criteria holds a {type(criterion).__name__}: pass "
                f"{_RULES[type(criterion)]}=... instead"
            )
    for name in _OUTPUTS:
        if options.get(name) or getattr(generation_config, name, None):
            raise ValueError(
                f"{name}=True is not supported: the output is a GenerateOutput, whose sequences "
                "are the token ids"
            )
    for name, reason in _ARGUMENTS.items():
        # False means that the caller does not ask for it.
        if options.get(name) is not None and options[name] is not False:
            raise ValueError(f"{name} is not supported: {reason}")


def check_known(unknown: Iterable[str]) -> None:
    """Refuse arguments that neither transformers nor the decoder knows.

    Raises:
        TypeError: `unknown` has one; the message names it.
    """
    strange = sorted(set(unknown) - set(_OUTPUTS) - set(_ARGUMENTS))
    if strange:
        raise TypeError(
            f"{strange[0]!r} is no argument of generate() and no field of a GenerationConfig"
        )


def text_options(defaults: GenerationConfig) -> dict[str, Any]:
    """Return the fields of a target's config that change a greedy text, apart from its end."""
    values = {name: getattr(defaults, name, None) for name in _SHAPES_TEXT}
    return {name: value for name, value in values.items() if value not in _SHAPES_TEXT[name]}


def _check_list(name: str, what: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, Sequence) or not all(callable(item) for item in value):
        raise TypeError(f"{name} must be {what} or a list of callables, got {value!r}")
