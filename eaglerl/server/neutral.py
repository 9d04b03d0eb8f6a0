"""Values of request fields that ask for nothing.

Clients send fields that they do not use: null, empty, or at their neutral value. Such a field is
treated as absent. Any other field that this server does not support is refused by the schema, by
name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

#: Depth up to which nested values are searched.
_DEEPEST = 8

#: Fields of OpenAI's API, vLLM, llama.cpp and others that change no answer of this server: names of
#: users and caches, and settings that only matter together with others that are refused.
WITHOUT_EFFECT = frozenset(
    {
        "cache_control",
        "cache_prompt",
        "cache_salt",
        "dry_allowed_length",
        "dry_base",
        "dry_penalty_last_n",
        "dry_sequence_breakers",
        "dynatemp_exponent",
        "id_slot",
        "include_reasoning",
        "keep_alive",
        "metadata",
        "min_keep",
        "mirostat_eta",
        "mirostat_tau",
        "parallel_tool_calls",
        "prediction",
        "priority",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "repeat_last_n",
        "request_id",
        "safety_identifier",
        "spaces_between_special_tokens",
        "user",
        "xtc_threshold",
    }
)


#: What this server always does: true asks for nothing.
_ON = frozenset({"add_generation_prompt", "skip_special_tokens"})


def is_empty(value: Any, depth: int = 0) -> bool:
    """Return whether a JSON value is null, false or empty, or holds only such values."""
    if value is None or value is False or value == "":
        return True
    if depth == _DEEPEST:
        return False
    if isinstance(value, list):
        return all(is_empty(item, depth + 1) for item in value)
    if isinstance(value, dict):
        return all(is_empty(item, depth + 1) for item in value.values())
    return False


def _one_of(*values: Any) -> Callable[[Any], bool]:
    """Make a test for equality with one of some values; booleans are not numbers."""

    def test(value: Any) -> bool:
        return any(
            value == each and isinstance(value, bool) == isinstance(each, bool) for each in values
        )

    return test


def _text_format(value: Any) -> bool:
    if not isinstance(value, dict) or value.get("type") != "text":
        return False
    return all(is_empty(item) for name, item in value.items() if name != "type")


def _no_thinking(value: Any) -> bool:
    return isinstance(value, dict) and value.get("type") == "disabled"


#: Neutral values of fields that this server does not support.
NEUTRAL: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(
        (
            "dry_multiplier",
            "dynatemp_range",
            "epsilon_cutoff",
            "eta_cutoff",
            "min_tokens",
            "mirostat",
            "n_keep",
            "n_probs",
            "no_repeat_ngram_size",
            "smoothing_factor",
            "top_a",
            "xtc_probability",
        ),
        _one_of(0),
    ),
    **dict.fromkeys(
        (
            "encoder_repetition_penalty",
            "guidance_scale",
            "length_penalty",
            "num_beams",
            "repeat_penalty",
            "tfs",
            "tfs_z",
            "typical_p",
        ),
        _one_of(1),
    ),
    "best_of": _one_of(1),
    "function_call": _one_of("none", "auto"),
    "modalities": _one_of(["text"]),
    "n_predict": _one_of(-1),
    "reasoning_effort": _one_of("none"),
    "response_format": _text_format,
    "thinking": _no_thinking,
    "tool_choice": _one_of("none", "auto"),
    "verbosity": _one_of("medium"),
}


def asks_for_nothing(name: str, value: Any) -> bool:
    """Return whether an unsupported field may be ignored.

    Args:
        name: name of the field.
        value: its JSON value.
    """
    if name in _ON:
        return value is True
    if name in WITHOUT_EFFECT or is_empty(value):
        return True
    test = NEUTRAL.get(name)
    return test is not None and test(value)
