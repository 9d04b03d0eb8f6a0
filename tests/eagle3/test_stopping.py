"""Rules that end a sequence: ids in any form, each token judged once."""

import numpy as np
import pytest
import torch

from eaglerl.eagle3.stopping import StoppingRules, read_token_ids


@pytest.mark.parametrize(
    "value",
    [
        [2, 7],
        (2, 7),
        torch.tensor([2, 7]),
        torch.tensor([2, 7], dtype=torch.int32),
        list(torch.tensor([2, 7])),
        np.array([2, 7]),
        [np.int64(2), torch.tensor(7)],
        range(2, 8, 5),
    ],
)
def test_forms_of_several_ids(value):
    assert read_token_ids(value, "eos_token_id") == [2, 7]
    rules = StoppingRules(eos_token_ids=value, max_new_tokens=99, room=99)
    assert rules.accept([1], 1, [5, 7, 9]) == 2
    assert rules.finish_reason == "stop"


@pytest.mark.parametrize("value", [7, np.int64(7), torch.tensor(7), torch.tensor([7]), np.array(7)])
def test_forms_of_one_id(value):
    assert read_token_ids(value, "eos_token_id") == [7]


def test_no_id():
    assert read_token_ids(None, "eos_token_id") == []
    assert read_token_ids([], "eos_token_id") == []


@pytest.mark.parametrize(
    "value",
    ["</s>", ["</s>"], b"2", 2.0, [2.0], torch.tensor([2.0]), True, [True], -1, [2, -1], [[2]],
     torch.tensor([[2]]), {"a": 1}, [None]],
    ids=str,
)  # fmt: skip
def test_what_is_no_id_is_refused(value):
    with pytest.raises(ValueError, match="eos_token_id must be token ids"):
        read_token_ids(value, "eos_token_id")
    with pytest.raises(ValueError, match="eos_token_id must be token ids"):
        StoppingRules(eos_token_ids=value, max_new_tokens=9, room=9)


def test_tokens_that_were_checked_are_not_checked_again():
    calls = []

    def criterion(input_ids, scores, **_):
        calls.append(input_ids[0].tolist())
        return torch.tensor([len(calls) == 5])

    rules = StoppingRules(eos_token_ids=[], max_new_tokens=9, room=9, criteria=[criterion])
    text = [1, 2]
    assert rules.accept(text, 2, [3]) == 1
    # A walk down a tree checks the tokens on its way, but not its last one.
    assert not rules.ends([1, 2, 3, 4], 2)
    assert not rules.ends([1, 2, 3, 4, 5], 2)
    assert rules.accept([1, 2, 3], 2, [4, 5, 6]) == 3
    assert rules.ends([1, 2, 3, 4, 5, 6, 7], 2)
    assert rules.accept([1, 2, 3, 4, 5, 6], 2, [7]) == 1
    assert rules.finish_reason == "criteria"
    assert calls == [[*range(1, length)] for length in range(4, 9)]
