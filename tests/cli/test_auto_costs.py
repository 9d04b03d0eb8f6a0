"""The learned costs that commands keep: they are resumed, or ignored with a warning."""

import json
import os
import warnings
from contextlib import suppress
from pathlib import Path

import pytest

from eaglerl.cli.shared.auto_policy import (
    keeping_auto_policy,
    keeping_batch_policy,
    learned_cost_path,
)
from eaglerl.cost import OnlineCost
from eaglerl.eagle3 import SpeculativeDecoder

from ..traces.test_record import tiny_decoder


@pytest.fixture(scope="module")
def decoder() -> SpeculativeDecoder:
    return tiny_decoder()


def learn(decoder: SpeculativeDecoder) -> int:
    """Decode a little as a command does, and return the number of cycles learned from."""
    with keeping_auto_policy(decoder) as policy:
        decoder.generate([1, 2, 3], policy, max_new_tokens=12, eos_token_id=[])
    return policy.cost.cycles


def test_costs_are_resumed(decoder: SpeculativeDecoder) -> None:
    learn(decoder)
    path = learned_cost_path(decoder)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"cycles": 10_000}))
    assert learn(decoder) > 10_000


def test_what_learns_nothing_writes_nothing(decoder: SpeculativeDecoder, cache: Path) -> None:
    with keeping_auto_policy(decoder):
        pass
    assert not (cache / "costs").exists()


def test_an_interrupted_text_is_learned_from(decoder: SpeculativeDecoder) -> None:
    with suppress(KeyboardInterrupt), keeping_auto_policy(decoder) as policy:
        decoder.generate([1, 2, 3], policy, max_new_tokens=12, eos_token_id=[])
        raise KeyboardInterrupt
    assert OnlineCost.from_json(learned_cost_path(decoder)).cycles == policy.cost.cycles


def test_of_two_at_once_one_is_remembered(decoder: SpeculativeDecoder) -> None:
    with keeping_auto_policy(decoder) as policy:
        decoder.generate([1, 2, 3], policy, max_new_tokens=12, eos_token_id=[])
        learn(decoder)
    path = learned_cost_path(decoder)
    assert OnlineCost.from_json(path).cycles == policy.cost.cycles
    # Neither temporary files nor locks are left.
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("damage", ["", "{}", "\0" * 300, "cut", "spread"])
def test_damaged_costs_are_told_and_replaced(decoder: SpeculativeDecoder, damage: str) -> None:
    learn(decoder)
    path = learned_cost_path(decoder)
    whole = path.read_text()
    if damage == "cut":
        damage = whole[: len(whole) // 2]
    elif damage == "spread":
        damage = json.dumps(json.loads(whole) | {"spread": [-1.0] * 20})
    path.write_text(damage)
    with pytest.warns(UserWarning, match=r"learned-.*it is ignored"):
        cycles = learn(decoder)
    assert OnlineCost.from_json(path).cycles == cycles


def test_costs_of_other_trees_are_told_and_replaced(decoder: SpeculativeDecoder) -> None:
    path = learned_cost_path(decoder)
    path.parent.mkdir()
    OnlineCost((2,)).to_json(path)
    with pytest.warns(UserWarning, match=r"are ignored: top_k must be one of \[2\], got 4"):
        cycles = learn(decoder)
    assert OnlineCost.from_json(path).cycles == cycles


def test_a_folder_that_cannot_be_written_is_told_and_costs_no_text(
    decoder: SpeculativeDecoder, cache: Path
) -> None:
    # Root may write to a folder without permissions, but not below a file.
    (cache / "costs").write_text("")
    with (
        pytest.warns(UserWarning, match="Not a directory; it is ignored"),
        pytest.warns(UserWarning, match="learned costs cannot be kept: .*costs"),
    ):
        assert learn(decoder) > 0


def test_nothing_is_told_without_a_reason(decoder: SpeculativeDecoder) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learn(decoder)
        learn(decoder)


def learn_together(decoder: SpeculativeDecoder, slots: int = 2) -> int:
    """The same with a batch, whose policy is made anew for every text."""
    with keeping_batch_policy(decoder, slots) as new_policy:
        for _ in range(2):
            with decoder.start_batch(slots=slots, max_length=100, policy=new_policy()) as batch:
                batch.start([1, 2, 3], max_new_tokens=12, eos_token_id=[])
                while batch.sequences:
                    batch.step()
    return new_policy().cost.cycles


def test_costs_of_batches_are_kept_apart(decoder: SpeculativeDecoder, cache: Path) -> None:
    with keeping_batch_policy(decoder, 2):
        pass
    assert not (cache / "costs").exists()
    first = learn_together(decoder)
    assert first > 0
    assert learn_together(decoder) > first
    learn_together(decoder, slots=3)
    learn(decoder)
    assert len(os.listdir(cache / "costs")) == 3


def test_damaged_costs_of_a_batch_are_told_and_replaced(decoder: SpeculativeDecoder) -> None:
    first = learn_together(decoder)
    path = learned_cost_path(decoder)
    path.with_name(f"batch-of-2-{path.name}").write_text("{}")
    with pytest.warns(UserWarning, match=r"batch-of-2-learned-.*it is ignored"):
        assert learn_together(decoder) <= first + 2
