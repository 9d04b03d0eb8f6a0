"""Checks and conversion of the numbers and tokens that a call of `generate` passes."""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig

from eaglerl.eagle3.sampling import check_sampling
from eaglerl.eagle3.stopping import read_token_ids

_INTEGERS = {"top_k", "max_length", "max_new_tokens", "min_length", "min_new_tokens"}


def read_explicit(explicit: dict[str, Any], *, own_terms: bool, defaults: GenerationConfig) -> None:
    """Check arguments, convert them to transformers' types, and add the `do_sample` they imply.

    Args:
        explicit: the arguments by name, none of them None; changed in place.
        own_terms: whether `temperature` decides if tokens are drawn.
        defaults: the target's generation config.

    Raises:
        ValueError: a value is out of range.
        TypeError: a value has another type.
    """
    for name in explicit.keys() & {"eos_token_id", "pad_token_id", "bos_token_id"}:
        ids = read_token_ids(explicit[name], name)
        if name != "eos_token_id" and len(ids) != 1:
            raise ValueError(f"{name} must be one token id, got {explicit[name]!r}")
        explicit[name] = ids if name == "eos_token_id" else ids[0]
    for name in explicit.keys() & _INTEGERS:
        explicit[name] = _number(name, explicit[name], int)
    _read_sampling(explicit, own_terms, defaults)
    if explicit.get("max_new_tokens", 1) < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {explicit['max_new_tokens']}")


def _read_sampling(explicit: dict[str, Any], own_terms: bool, defaults: GenerationConfig) -> None:
    """Check temperature, top_p and top_k, and add the `do_sample` that they imply."""
    for name in ("temperature", "top_p"):
        if name in explicit:
            explicit[name] = _number(name, explicit[name], float)
    temperature = explicit.get("temperature")
    check_sampling(
        0.0 if temperature is None else temperature,
        explicit.get("top_p", 1.0),
        explicit.get("top_k", 0),
    )
    if temperature == 0 and explicit.get("do_sample"):
        raise ValueError("temperature=0 decodes greedily, do_sample=True samples: give one of them")
    if temperature == 0 or own_terms:
        explicit["do_sample"] = bool(temperature)
    if not temperature and not explicit.get("do_sample", True):
        for name in ("temperature", "top_p", "top_k"):
            explicit.pop(name, None)
    elif own_terms and defaults.top_k is None:
        explicit.setdefault("top_k", 0)


def _number(name: str, value: Any, kind: type) -> Any:
    try:
        number = kind(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    # NaN differs from itself, too. It passes here, and the check of the range refuses it.
    wrong = (
        number is None or isinstance(value, str | bool) or (number != value and number == number)
    )
    if wrong:
        raise TypeError(f"{name} must be a number of type {kind.__name__}, got {value!r}")
    return number
