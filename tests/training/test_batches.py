"""Packing and the order of the batches."""

from itertools import islice

import pytest
import torch

from eaglerl.training.batches import batch_order, draft_row_count, pack

from .tiny import tiny_sequence


def test_rows_and_teacher_rows_are_those_of_the_definition():
    sequences = [tiny_sequence(4, 5, seed=0), tiny_sequence(2, 2, seed=1)]
    batch = pack(sequences, margin=3)
    assert batch.lengths == [9, 4]
    # Rows P - 1 .. L - 3, the second sequence beginning at 9.
    assert batch.draft_rows.tolist() == [3, 4, 5, 6, 10]
    assert batch.draft_counts == [4, 1]
    assert batch.steps_left.tolist() == [4, 3, 2, 1, 1]
    for place, (index, row) in enumerate(((0, 3), (0, 4), (0, 5), (0, 6), (1, 1))):
        sequence = sequences[index]
        torch.testing.assert_close(batch.teacher_hidden[place], sequence.final_hidden[row + 1])
        assert batch.written_ids[place] == sequence.token_ids[row + 2]
    assert len(batch.token_ids) == 13 + 3
    assert batch.positions.tolist() == [*range(9), *range(4)]


def test_every_predicted_token_is_of_the_response():
    for prompt, response in ((1, 2), (5, 9), (3, 3)):
        batch = pack([tiny_sequence(prompt, response, seed=0)], margin=4)
        for row, left in zip(batch.draft_rows.tolist(), batch.steps_left.tolist(), strict=True):
            predicted = [row + step + 2 for step in range(left)]
            assert prompt < min(predicted)
            assert max(predicted) == prompt + response - 1


def test_a_sequence_without_a_row_is_an_error():
    assert draft_row_count(3, 4) == 0
    with pytest.raises(ValueError, match="two tokens or more"):
        pack([tiny_sequence(3, 1, seed=0)], margin=1)
    with pytest.raises(ValueError, match="must not be empty"):
        pack([], margin=1)


def test_every_epoch_reads_every_sequence_once():
    draft_rows = [3, 0, 5, 1, 4, 7]
    taken = []
    for batch in batch_order(draft_rows, batch_tokens=6, seed=1):
        assert sum(draft_rows[index] for index in batch[:-1]) < 6
        assert sum(draft_rows[index] for index in batch) >= 6
        taken += batch
        if len(taken) >= 15:
            break
    epochs = [taken[start : start + 5] for start in (0, 5, 10)]
    assert all(sorted(epoch) == [0, 2, 3, 4, 5] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_the_order_follows_from_the_seed():
    first, again, other = (list(islice(batch_order([2] * 50, 7, seed), 30)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_no_rows_at_all_is_an_error():
    with pytest.raises(ValueError, match="at least one row"):
        next(batch_order([0, 0], 4, 0))
