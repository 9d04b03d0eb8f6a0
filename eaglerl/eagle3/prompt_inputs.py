"""Conversion and checks of the prompts that a user passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NoReturn, TypeGuard

import numpy as np
import torch

#: Token ids as tokenizers return them: a tokenizer's output, or the ids of one or several prompts.
PromptIds = (
    Mapping[str, Any]
    | torch.Tensor
    | np.ndarray
    | Sequence[int]
    | Sequence[Sequence[int] | torch.Tensor | np.ndarray]
)
#: 1 for tokens that are read, 0 for padding.
AttentionMask = torch.Tensor | np.ndarray | Sequence[int] | Sequence[Sequence[int]]

_LEFT = 'let the tokenizer pad on the left (tokenizer.padding_side = "left")'


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt.

    Attributes:
        row: token ids as they were given.
        token_ids: tokens that the target reads.
        hidden: tokens that it does not read: padding, and tokens that a mask hides in the middle.
        has_holes: whether the mask hides a token behind one that is read.
    """

    row: list[int]
    token_ids: list[int]
    hidden: list[int]
    has_holes: bool

    def refuse_holes(self, reason: str) -> NoReturn:
        """Refuse a mask with holes.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"the mask of a prompt hides tokens in the middle, which is not supported where "
            f"{reason}: leave them out of input_ids"
        )


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts of a call.

    Attributes:
        prompts: one or more.
        device: device of the given ids.
    """

    prompts: list[Prompt]
    device: torch.device

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def token_ids(self) -> list[list[int]]:
        """Tokens that the target reads of each prompt."""
        return [prompt.token_ids for prompt in self.prompts]

    def only(self, name: str) -> Prompt:
        """Return the only prompt, for a method `name` that takes one.

        Raises:
            ValueError: there are several prompts.
        """
        if len(self.prompts) > 1:
            raise ValueError(f"{name} takes one prompt at a time, got {len(self.prompts)}")
        return self.prompts[0]


def all_read(token_ids: torch.Tensor | Sequence[int]) -> dict[str, Any]:
    """Mark every token of a prompt as one to read, even if it is the padding token.

    Args:
        token_ids: (n,) or (1, n).

    Returns:
        `input_ids` for `generate` and `start`.
    """
    if isinstance(token_ids, torch.Tensor):
        return {"input_ids": token_ids, "attention_mask": torch.ones_like(token_ids)}
    return {"input_ids": list(token_ids), "attention_mask": [1] * len(token_ids)}


def read_prompts(
    input_ids: PromptIds | None,
    attention_mask: AttentionMask | None = None,
    *,
    inputs: PromptIds | None = None,
    pad_token_id: int | None = None,
    eos_token_ids: Sequence[int] = (),
) -> Prompts:
    """Convert all accepted forms of `input_ids` to prompts, as transformers' `generate` reads them.

    Without a mask, the padding token counts as padding unless it also ends a text, as in
    transformers.

    Args:
        input_ids: a tokenizer's output with ``input_ids`` and ``attention_mask``; an integer tensor
            or array (n,) or (B, n); a list of ids; or a list of such lists, tensors or arrays,
            whose lengths may differ.
        attention_mask: 1 for tokens to read and 0 for padding, in the shape of the ids.
        inputs: transformers' other name of `input_ids`.
        pad_token_id: the padding token; None if there is none.
        eos_token_ids: tokens that end a text.

    Returns:
        The prompts and their device.

    Raises:
        TypeError: ids are not integers, or an argument has another type.
        ValueError: ids are missing or given twice, a shape is another, the mask has another shape
            or other values, padding is on the right, or a prompt is all padding.
    """
    if inputs is not None:
        if input_ids is not None:
            raise ValueError("inputs is another name of input_ids: give one of the two")
        input_ids = inputs
    if isinstance(input_ids, Mapping):
        input_ids, attention_mask = _read_mapping(input_ids, attention_mask)
    if input_ids is None:
        raise ValueError("input_ids is missing: a prompt needs at least one token")
    rows = _read_rows("input_ids", input_ids)
    if attention_mask is None:
        masks = _inferred_masks(rows, pad_token_id, eos_token_ids)
    else:
        masks = _read_masks(rows, attention_mask)
    prompts = [
        _read_prompt(_name(index, len(rows)), row, mask, inferred=attention_mask is None)
        for index, (row, mask) in enumerate(zip(rows, masks, strict=True))
    ]
    return Prompts(prompts, _device_of(input_ids))


def _name(index: int, count: int) -> str:
    return "input_ids" if count == 1 else f"input_ids[{index}]"


def _device_of(input_ids: object) -> torch.device:
    first = input_ids
    if isinstance(input_ids, list | tuple) and input_ids:
        first = input_ids[0]
    return first.device if isinstance(first, torch.Tensor) else torch.device("cpu")


def _read_mapping(
    given: Mapping[str, Any], attention_mask: AttentionMask | None
) -> tuple[PromptIds | None, AttentionMask | None]:
    unknown = sorted(
        str(name)
        for name, value in given.items()
        if name not in ("input_ids", "attention_mask") and value is not None
    )
    if unknown:
        raise ValueError(
            f"a tokenizer's output must hold input_ids and attention_mask alone, got "
            f"{', '.join(unknown)} as well, which is not supported"
        )
    own = given.get("attention_mask")
    if own is not None and attention_mask is not None:
        raise ValueError("attention_mask was given twice: in the tokenizer's output and beside it")
    return given.get("input_ids"), attention_mask if own is None else own


def _read_rows(name: str, ids: object) -> list[list[int]]:
    if isinstance(ids, torch.Tensor | np.ndarray):
        return _read_array(name, ids)
    if isinstance(ids, str | bytes):
        raise TypeError(
            f"{name} must be token ids, got text: give tokenizer(text), or its input_ids"
        )
    if not isinstance(ids, Sequence):
        raise TypeError(
            f"{name} must be a tensor, an array, a list or a tokenizer's output, got "
            f"{type(ids).__name__}"
        )
    if ids and (isinstance(ids[0], Sequence) or _has_axes(ids[0])):
        rows = []
        for index, row in enumerate(ids):
            (found, *more) = _read_rows(f"{name}[{index}]", row)
            if more:
                raise ValueError(f"{name}[{index}] must be one prompt, got {1 + len(more)}")
            rows.append(found)
        return rows
    return [[_integer(name, value) for value in ids]]


def _has_axes(value: object) -> TypeGuard[torch.Tensor | np.ndarray]:
    return isinstance(value, torch.Tensor | np.ndarray) and value.ndim > 0


def _read_array(name: str, ids: torch.Tensor | np.ndarray) -> list[list[int]]:
    if isinstance(ids, torch.Tensor):
        integers = not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
    else:
        integers = ids.dtype.kind in "iu"
    # An empty tensor is float32 by default.
    if not integers and np.prod(ids.shape) > 0:
        raise TypeError(f"{name} must be integers, got {ids.dtype}")
    if ids.ndim == 1:
        ids = ids[None]
    if ids.ndim != 2 or ids.shape[0] == 0:
        raise ValueError(f"{name} must have shape (n,) or (B, n), got {tuple(ids.shape)}")
    return ids.tolist()


def _integer(name: str, value: object) -> int:
    if isinstance(value, torch.Tensor) and value.ndim == 0 and value.dtype != torch.bool:
        value = value.item()
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be integers, got {value!r}")
    return int(value)


def _inferred_masks(
    rows: list[list[int]], pad_token_id: int | None, eos_token_ids: Sequence[int]
) -> list[list[bool]]:
    if pad_token_id is None or pad_token_id in eos_token_ids:
        return [[True] * len(row) for row in rows]
    return [[token != pad_token_id for token in row] for row in rows]


def _read_masks(rows: list[list[int]], attention_mask: AttentionMask) -> list[list[bool]]:
    masks: list[Any]
    if isinstance(attention_mask, torch.Tensor | np.ndarray):
        if attention_mask.ndim < 2:
            attention_mask = attention_mask.reshape(1, -1)
        masks = attention_mask.tolist()
    elif isinstance(attention_mask, Sequence) and not isinstance(attention_mask, str | bytes):
        masks = [row.tolist() if _has_axes(row) else row for row in attention_mask]
        if not masks or not isinstance(masks[0], Sequence):
            masks = [masks]
    else:
        raise TypeError(
            "attention_mask must be a tensor, an array or a list, got "
            f"{type(attention_mask).__name__}"
        )
    lengths = [len(row) if isinstance(row, Sequence) else -1 for row in masks]
    if lengths != [len(row) for row in rows]:
        shape = getattr(attention_mask, "shape", None)
        found = f"rows of {lengths}" if shape is None else tuple(shape)
        wanted = [len(row) for row in rows]
        expected = f"rows of {wanted}" if len(set(wanted)) > 1 else (len(rows), wanted[0])
        raise ValueError(
            f"attention_mask must have the shape of input_ids, {expected}, got {found}"
        )
    for row in masks:
        wrong = next((value for value in row if value not in (0, 1)), None)
        if wrong is not None:
            raise ValueError(
                f"attention_mask must be 1 for tokens and 0 for padding, got {wrong!r}"
            )
    return [[bool(value) for value in row] for row in masks]


def _read_prompt(name: str, row: list[int], mask: list[bool], *, inferred: bool) -> Prompt:
    if all(mask):
        return Prompt(row, list(row), [], has_holes=False)
    source = "without attention_mask the padding token is padding" if inferred else "attention_mask"
    if not any(mask):
        raise ValueError(f"{name} is all padding ({source}): a prompt needs at least one token")
    if not mask[-1]:
        raise ValueError(
            f"{name} ends with padding ({source}), which no text can follow: {_LEFT}"
            + (", or give attention_mask if the token is meant" if inferred else "")
        )
    return Prompt(
        row,
        [token for token, seen in zip(row, mask, strict=True) if seen],
        [token for token, seen in zip(row, mask, strict=True) if not seen],
        has_holes=not all(mask[mask.index(True) :]),
    )


def check_token_ids(prompts: list[list[int]], vocab_size: int, max_positions: int) -> None:
    """Check that the target can read every prompt and has room for at least one token.

    Raises:
        ValueError: a prompt is empty or fills the context, or an id is outside the vocabulary.
    """
    for index, prompt in enumerate(prompts):
        name = _name(index, len(prompts))
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
