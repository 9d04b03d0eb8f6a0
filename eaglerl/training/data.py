"""Self-distilled rows: reading, splitting by prompt, and the draft's vocabulary.

A row is one JSON line ``{"p": [prompt ids], "r": [response ids]}``.
"""

import hashlib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import ConfigDict, Field

from eaglerl.json_file import Items, Schema, TokenId, parse_json, read_lines

HELD_OUT_MODULUS = 10


@dataclass(frozen=True)
class Row:
    """One prompt and the response that the target wrote to it.

    Attributes:
        prompt: token ids of the prompt, the chat template included.
        response: token ids of the response; a stop token at its end is part of it.
    """

    prompt: tuple[int, ...]
    response: tuple[int, ...]

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Prompt and response in one sequence."""
        return self.prompt + self.response

    @property
    def digest(self) -> str:
        """Hash of prompt and response: 16 hexadecimal digits of SHA-256."""
        lengths = np.array([len(self.prompt)], dtype="<i8").tobytes()
        return hashlib.sha256(lengths + _id_bytes(self.token_ids)).hexdigest()[:16]


def is_held_out(prompt_ids: Sequence[int]) -> bool:
    """Tell whether a prompt belongs to the tenth that no draft head is trained on.

    The answer depends on the prompt alone, so a prompt stays on its side when rows are added or
    read in another order.

    Args:
        prompt_ids: token ids of the whole prompt, the chat template included.

    Returns:
        True if SHA-256 of the ids, as little-endian int64, is divisible by ten.
    """
    digest = hashlib.sha256(_id_bytes(prompt_ids)).digest()
    return int.from_bytes(digest, "big") % HELD_OUT_MODULUS == 0


def read_rows(paths: Iterable[str | Path]) -> list[Row]:
    """Read JSONL files; rows that occur twice are kept once.

    The last line of a file may be cut short by a process that was killed while it wrote: it is
    reported with a warning and skipped. A broken line anywhere else is an error.

    Args:
        paths: files, in the order of the rows.

    Returns:
        The distinct rows.

    Raises:
        ValueError: a file is missing, or a complete line is not a row.
    """
    rows: dict[Row, None] = {}
    for path in map(Path, paths):
        if not path.is_file():
            raise ValueError(f"paths must name existing JSONL files, got {str(path)!r}")
        for line in read_lines(path, "rows"):
            try:
                rows[parse_row(line.data, line.where)] = None
            except ValueError as error:
                if line.ended:
                    raise
                warnings.warn(
                    f"{path}: skipped the last line, which is cut short: {error}", stacklevel=2
                )
    return list(rows)


def split_rows(rows: Iterable[Row]) -> tuple[list[Row], list[Row]]:
    """Split rows into those to train on and those held out, by `is_held_out` of the prompt.

    Returns:
        Training rows and held-out rows, each in the given order.
    """
    train: list[Row] = []
    held_out: list[Row] = []
    for row in rows:
        (held_out if is_held_out(row.prompt) else train).append(row)
    return train, held_out


def choose_draft_vocabulary(
    rows: Iterable[Row], draft_vocab_size: int, vocab_size: int, required_ids: Iterable[int] = ()
) -> torch.Tensor:
    """Choose the target ids that the draft can propose: the most frequent ones in responses.

    Args:
        rows: training rows; prompts are not counted, because they are never drafted.
        draft_vocab_size: number Vd of ids to choose.
        vocab_size: the target's vocabulary V.
        required_ids: ids that are chosen however rare they are, such as the stop tokens.

    Returns:
        (Vd,) int64 ids, ascending. Ties in frequency go to the smaller id.

    Raises:
        ValueError: Vd is out of range, or an id is not below V.
    """
    required = sorted(set(required_ids))
    if not max(1, len(required)) <= draft_vocab_size <= vocab_size:
        raise ValueError(
            f"draft_vocab_size must be between {max(1, len(required))} and the target's "
            f"{vocab_size}, got {draft_vocab_size}"
        )
    response_ids = np.fromiter((token for row in rows for token in row.response), dtype=np.int64)
    known_ids = np.append(response_ids, required).astype(np.int64)
    if known_ids.size and not 0 <= known_ids.min() <= known_ids.max() < vocab_size:
        raise ValueError(
            f"rows must hold token ids in 0..{vocab_size - 1}, got {known_ids.min()}.."
            f"{known_ids.max()}: were they written by another model?"
        )
    counts = np.bincount(response_ids, minlength=vocab_size)
    counts[required] = counts.max() + 1
    most_frequent = np.argsort(-counts, kind="stable")[:draft_vocab_size]
    return torch.from_numpy(np.sort(most_frequent))


class _RowSchema(Schema):
    # Other keys are ignored: a tool may keep more than the ids.
    model_config = ConfigDict(extra="ignore")

    p: Annotated[Items[TokenId], Field(min_length=1)]
    r: Annotated[Items[TokenId], Field(min_length=1)]


def parse_row(data: bytes, where: str) -> Row:
    """Read one line.

    Args:
        data: the line.
        where: the line's name in error messages.

    Raises:
        ValueError: it is not a row.
    """
    row = parse_json(data, _RowSchema, where)
    return Row(row.p, row.r)


def _id_bytes(token_ids: Sequence[int]) -> bytes:
    return np.asarray(token_ids, dtype="<i8").tobytes()
