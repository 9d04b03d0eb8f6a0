"""Packing of several sequences into one batch without padding, and the order of the batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch


class FeatureSequence(NamedTuple):
    """One row of data with the target's features.

    Attributes:
        token_ids: (L,) integer ids of prompt and response.
        prompt_length: number P of prompt tokens.
        features: (L, 3k) the target's low, mid and high features side by side.
        final_hidden: (L, k) the target's hidden state after its final norm.
    """

    token_ids: torch.Tensor
    prompt_length: int
    features: torch.Tensor
    final_hidden: torch.Tensor


@dataclass(frozen=True)
class PackedBatch:
    """Sequences one after another; N tokens, of which R are draft rows.

    Draft rows are t = P - 1 .. L - 3 of each sequence: the first is the last prompt token's, which
    takes the first response token as its input (decoding never starts earlier), the last is the
    one whose step 0 predicts the last token. At step s, row t predicts token t + s + 2; the target
    does so at position t + s + 1. So the teacher rows are positions P .. L - 2, and draft row r at
    step s belongs to teacher row r + s.

    Attributes:
        token_ids: (N + margin,) int64; the margin is filler for steps beyond the end.
        features: (N, 3k).
        positions: (N,) int64 position of every token in its own sequence.
        draft_rows: (R,) int64 rows among the N.
        steps_left: (R,) int64 number of steps whose prediction lies within the sequence.
        teacher_hidden: (R, k) final hidden states at the teacher rows.
        written_ids: (R,) int64 the token that follows each teacher row.
        lengths: tokens L of each sequence.
        draft_counts: draft rows L - 1 - P of each sequence.
    """

    token_ids: torch.Tensor
    features: torch.Tensor
    positions: torch.Tensor
    draft_rows: torch.Tensor
    steps_left: torch.Tensor
    teacher_hidden: torch.Tensor
    written_ids: torch.Tensor
    lengths: list[int]
    draft_counts: list[int]


def draft_row_count(prompt_length: int, length: int) -> int:
    """Return how many draft rows a sequence has; 0 if its response is a single token."""
    return max(0, length - 1 - prompt_length)


def pack(sequences: Sequence[FeatureSequence], margin: int) -> PackedBatch:
    """Pack sequences that have at least one draft row each.

    Args:
        sequences: the sequences, in the order of the batch.
        margin: filler tokens at the end, the number of training-time-test steps.

    Raises:
        ValueError: there are no sequences, or one has no draft row.
    """
    if not sequences:
        raise ValueError("sequences must not be empty")
    draft_rows, teacher_rows, steps_left, lengths, counts = [], [], [], [], []
    offset = 0
    for sequence in sequences:
        prompt, length = sequence.prompt_length, len(sequence.token_ids)
        count = draft_row_count(prompt, length)
        if count < 1:
            raise ValueError(
                f"sequences need a response of two tokens or more, got {length - prompt}"
            )
        first = offset + prompt - 1
        draft_rows.append(torch.arange(first, first + count))
        teacher_rows.append(draft_rows[-1] + 1)
        steps_left.append(torch.arange(count, 0, -1))
        lengths.append(length)
        counts.append(count)
        offset += length
    token_ids = torch.cat([sequence.token_ids.long() for sequence in sequences])
    teacher = torch.cat(teacher_rows)
    final_hidden = torch.cat([sequence.final_hidden for sequence in sequences])
    return PackedBatch(
        token_ids=torch.cat([token_ids, token_ids.new_zeros(margin)]),
        features=torch.cat([sequence.features for sequence in sequences]),
        positions=torch.cat([torch.arange(length) for length in lengths]),
        draft_rows=torch.cat(draft_rows),
        steps_left=torch.cat(steps_left),
        teacher_hidden=final_hidden[teacher],
        written_ids=token_ids[teacher + 1],
        lengths=lengths,
        draft_counts=counts,
    )


def batch_order(draft_rows: Sequence[int], batch_tokens: int, seed: int) -> Iterator[list[int]]:
    """Yield batches of sequence indices endlessly, in an order that ``seed`` determines.

    The epochs' permutations follow one another, so a batch may hold the end of one and the
    beginning of the next.

    Args:
        draft_rows: draft rows of each sequence; sequences without any are left out.
        batch_tokens: a batch is complete as soon as it holds this many draft rows.
        seed: seed of the permutations.

    Raises:
        ValueError: no sequence has a draft row.
    """
    usable = [index for index, rows in enumerate(draft_rows) if rows > 0]
    if not usable:
        raise ValueError("draft_rows must hold a sequence with at least one row to train on")
    generator = torch.Generator().manual_seed(seed)
    batch, filled = [], 0
    while True:
        for place in torch.randperm(len(usable), generator=generator).tolist():
            batch.append(usable[place])
            filled += draft_rows[usable[place]]
            if filled >= batch_tokens:
                yield batch
                batch, filled = [], 0
