"""Ids change with what they stand for, and with nothing else."""

import copy
import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from eaglerl.actions import ActionSpace
from eaglerl.eagle3 import Eagle3DraftHead
from eaglerl.eagle3.target.target_model import TargetModel
from eaglerl.fingerprints import head_id, is_same_model, prompt_id, target_id
from eaglerl.resps.policies import OptimizedSB3DiscretePPOOnlineTreePolicy, load_resps_policy
from eaglerl.resps.policies.policy_file import read_card
from eaglerl.traces.recording import RecordOptions, record

from .traces.tiny import tiny_decoder, tiny_prompts


def test_equal_models_have_equal_ids() -> None:
    one, same, other = tiny_decoder(), tiny_decoder("int8"), tiny_decoder(seed=1)
    assert head_id(one.draft_head) == head_id(same.draft_head) != head_id(other.draft_head)
    assert target_id(one.target) == target_id(same.target) != target_id(other.target)


def test_one_weight_makes_another_head() -> None:
    head = tiny_decoder().draft_head
    before = head_id(head)
    with torch.no_grad():
        head.norm.weight[3] += 1e-3
    assert head_id(head) != before


def test_prompts() -> None:
    assert prompt_id([1, 2]) == prompt_id((1, 2)) != prompt_id([2, 1])
    assert len(prompt_id([1])) == 16


def at_precision(dtype: torch.dtype, seed: int = 0) -> SimpleNamespace:
    """A decoder whose target and head went through another precision, as a checkpoint's would."""
    decoder = tiny_decoder(seed=seed)
    target = with_table(decoder.target, decoder.target.embed_tokens.to(dtype))
    return SimpleNamespace(target=target, draft_head=decoder.draft_head.to(dtype))


def with_table(target: TargetModel, table: torch.Tensor) -> SimpleNamespace:
    """What an id is made of, of a target with another embedding table."""
    names = (
        "config", "num_layers", "hidden_size", "vocab_size", "feature_layers", "generation_config",
        "weights",
    )  # fmt: skip
    return SimpleNamespace(embedding=table, **{name: getattr(target, name) for name in names})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_another_precision_has_the_same_fingerprint(dtype: torch.dtype) -> None:
    one, other = tiny_decoder(), at_precision(dtype)
    for of in (lambda d: target_id(d.target), lambda d: head_id(d.draft_head)):
        assert of(one) != of(other)
        assert of(one).fingerprint == of(other).fingerprint
        with pytest.warns(UserWarning, match=rf"the policy was made .*precision.*{of(one)}"):
            assert is_same_model(of(one), of(other), "target_id", "the policy")
        stranger = of(at_precision(dtype, seed=1))
        assert not is_same_model(of(one), stranger, "target_id", "the policy")
        # Files from before fingerprints were have the id alone.
        assert not is_same_model(str(of(one)), of(other), "target_id", "the policy")
        assert is_same_model(str(of(one)), of(one), "target_id", "the policy")
        kept = pickle.loads(pickle.dumps(copy.deepcopy(of(one))))
        assert (kept, kept.fingerprint) == (of(one), of(one).fingerprint)


def test_a_quantised_target_is_the_same_and_a_trained_head_is_not() -> None:
    decoder, small = tiny_decoder(), tiny_decoder()
    table = small.target.embed_tokens
    # Round to 15 steps between the extremes of each row, as 4-bit formats do of each block.
    low, high = table.amin(-1, keepdim=True), table.amax(-1, keepdim=True)
    step = (high - low) / 15
    quantised = with_table(small.target, torch.round((table - low) / step) * step + low)
    one, other = target_id(decoder.target), target_id(quantised)
    with pytest.warns(UserWarning, match="another precision"):
        assert is_same_model(one, other, "target_id", "it")
    with torch.no_grad():
        small.draft_head.fc.weight[0, 0] *= -1
    assert not is_same_model(
        head_id(decoder.draft_head), head_id(small.draft_head), "head_id", "it"
    )


def test_policies_of_another_precision_are_warned_about(tmp_path: Path) -> None:
    decoder, other = tiny_decoder(), at_precision(torch.bfloat16)
    stranger = at_precision(torch.bfloat16, seed=1)
    width = decoder.draft_head.config.hidden_size
    OptimizedSB3DiscretePPOOnlineTreePolicy(
        hidden_size=width, actions=ActionSpace.cpu(), head=decoder.draft_head
    ).save(tmp_path / "ppo")
    load_resps_policy(tmp_path / "ppo", head=tiny_decoder().draft_head)
    with pytest.warns(UserWarning, match="the policy was made for this model at another precision"):
        load_resps_policy(tmp_path / "ppo", head=other.draft_head)
    with pytest.raises(ValueError, match="head_id of the policy is"):
        load_resps_policy(tmp_path / "ppo", head=stranger.draft_head)


def test_traces_pass_it_on(tmp_path: Path) -> None:
    decoder = tiny_decoder()
    traces = record(decoder, tiny_prompts(2), tmp_path, options=RecordOptions(max_new_tokens=8))
    assert traces.target_id.fingerprint == target_id(decoder.target).fingerprint
    assert traces.head_id.fingerprint == head_id(decoder.draft_head).fingerprint
    # A folder from before there were any goes on.
    index = json.loads((tmp_path / "index.json").read_text())
    del index["target_fingerprint"], index["head_fingerprint"]
    (tmp_path / "index.json").write_text(json.dumps(index))
    more = record(decoder, tiny_prompts(4), tmp_path, options=RecordOptions(max_new_tokens=8))
    assert more.head_id.fingerprint == head_id(decoder.draft_head).fingerprint


def test_what_ships_knows_its_fingerprints() -> None:
    models = Path(__file__).parents[1] / "models"
    head = head_id(Eagle3DraftHead.from_pretrained(models / "eagle3-smollm2-135m-instruct"))
    for card in models.glob("*/policy.json"):
        known = read_card(card.parent)["head_id"]
        assert (known, known.fingerprint) == (head, head.fingerprint)
