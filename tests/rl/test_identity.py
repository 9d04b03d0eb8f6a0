"""Ids change with what they stand for, and with nothing else."""

import torch

from eaglerl.rl.identity import head_id, prompt_id, target_id

from .worlds import tiny_decoder


def test_equal_models_have_equal_ids() -> None:
    one, same, other = tiny_decoder(), tiny_decoder("int8"), tiny_decoder(seed=1)
    assert head_id(one.head) == head_id(same.head) != head_id(other.head)
    assert target_id(one.target) == target_id(same.target) != target_id(other.target)


def test_one_weight_makes_another_head() -> None:
    head = tiny_decoder().head
    before = head_id(head)
    with torch.no_grad():
        head.norm.weight[3] += 1e-3
    assert head_id(head) != before


def test_prompts() -> None:
    assert prompt_id([1, 2]) == prompt_id((1, 2)) != prompt_id([2, 1])
    assert len(prompt_id([1])) == 16
