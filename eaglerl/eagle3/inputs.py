"""Reading and checking the prompts that a user passes."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def read_prompts(
    input_ids: torch.Tensor | Sequence[int] | Sequence[Sequence[int]],
    attention_mask: torch.Tensor | None = None,
) -> list[list[int]]:
    """Bring the accepted forms of `input_ids` into a list of prompts.

    Args:
        input_ids: (n,) or (B, n) integer tensor, a list of ids, or a list of such lists or tensors.
        attention_mask: (B, n), zeros mark padding; only with a tensor.

    Returns:
        The token ids of every prompt.

    Raises:
        TypeError: ids that are not integers.
        ValueError: a shape that is neither, a mask of another shape, or no prompt at all.
    """
    if not isinstance(input_ids, torch.Tensor):
        if attention_mask is not None:
            raise ValueError("attention_mask needs input_ids to be a tensor")
        return _read_list(input_ids)
    if input_ids.is_floating_point() or input_ids.dtype == torch.bool:
        if input_ids.numel():
            raise TypeError(f"input_ids must be integers, got {input_ids.dtype}")
        input_ids = input_ids.long()
    if input_ids.dim() == 1:
        input_ids = input_ids[None]
    if input_ids.dim() != 2 or input_ids.shape[0] == 0:
        raise ValueError(f"input_ids must have shape (n,) or (B, n), got {tuple(input_ids.shape)}")
    if attention_mask is None:
        return input_ids.tolist()
    attention_mask = torch.atleast_2d(attention_mask)
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask must have the shape of input_ids {tuple(input_ids.shape)}, "
            f"got {tuple(attention_mask.shape)}"
        )
    return [ids[keep.bool()].tolist() for ids, keep in zip(input_ids, attention_mask, strict=True)]


def _read_list(input_ids: Sequence[int] | Sequence[Sequence[int]]) -> list[list[int]]:
    if not isinstance(input_ids, Sequence):
        raise TypeError(f"input_ids must be a tensor or a list, got {type(input_ids).__name__}")
    if len(input_ids) and not isinstance(input_ids[0], int):
        return [read_prompts(torch.as_tensor(prompt))[0] for prompt in input_ids]
    return read_prompts(torch.tensor(list(input_ids), dtype=torch.int64))


def check_token_ids(prompts: list[list[int]], vocab_size: int, max_positions: int) -> None:
    """Make sure that the target can read every prompt and add at least one token.

    Raises:
        ValueError: an empty prompt, one that fills the context, or an id outside the vocabulary.
    """
    for index, prompt in enumerate(prompts):
        name = "input_ids" if len(prompts) == 1 else f"input_ids[{index}]"
        if not prompt:
            raise ValueError(f"{name} is empty: a prompt needs at least one token")
        if len(prompt) >= max_positions:
            raise ValueError(
                f"{name} has {len(prompt)} tokens, but the target's context holds {max_positions} "
                "and a new token must fit as well"
            )
        wrong = next((token for token in prompt if not 0 <= token < vocab_size), None)
        if wrong is not None:
            raise ValueError(f"{name} holds token id {wrong}; allowed are 0 to {vocab_size - 1}")
