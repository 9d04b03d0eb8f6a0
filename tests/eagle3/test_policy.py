"""What the loop asks of a policy, and when."""

import pytest
import torch

from eaglerl.eagle3 import (
    NO_DRAFT,
    ConstantPolicy,
    CycleState,
    SpeculativeDecoder,
    StepResult,
    TreeParams,
    TreePolicy,
    named_policies,
)
from eaglerl.eagle3.batch.fused_slots import FusedSlots
from eaglerl.eagle3.named_policies import NamedPolicies
from eaglerl.eagle3.policy import as_policy
from eaglerl.eagle3.target.make_target import make_target
from eaglerl.policies import AutoPolicy

from .tiny import tiny_head, tiny_model

PROMPT = [3, 14, 15, 9, 2, 6]


class RecordingPolicy:
    """Alternates between two trees and writes down every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []
        self.trees = [TreeParams(12, 2, 4), NO_DRAFT]

    def reset(self) -> None:
        self.calls.append(("reset", None))

    def choose(self, state: CycleState) -> TreeParams:
        copied = CycleState(state.features.clone(), state.context_length, state.last_result)
        self.calls.append(("choose", copied))
        self.trees.reverse()
        return self.trees[0]

    def observe(self, result: StepResult) -> None:
        self.calls.append(("observe", result))


@pytest.fixture(scope="module")
def model():
    return tiny_model(logit_scale=4.0)


@pytest.fixture(scope="module")
def decoder(model) -> SpeculativeDecoder:
    target = make_target(model)
    return SpeculativeDecoder(target, tiny_head(target))


def test_calls_come_in_the_documented_order(decoder):
    policy = RecordingPolicy()
    output = decoder.generate(PROMPT, policy, max_new_tokens=20)
    names = [name for name, _ in policy.calls]
    assert names == ["reset"] + ["choose", "observe"] * output.statistics.num_cycles
    observed = tuple(value for name, value in policy.calls if name == "observe")
    assert observed == output.statistics.cycles


def test_state_is_that_before_the_cycle(decoder, model):
    """Features are the inputs of the three feature layers at the token before the root."""
    policy = RecordingPolicy()
    output = decoder.generate(PROMPT, policy, max_new_tokens=20)
    with torch.no_grad():
        hidden_states = model(output.sequences, output_hidden_states=True).hidden_states
    features = torch.cat([hidden_states[i] for i in decoder.target.feature_layers], dim=-1)[0]
    states = [value for name, value in policy.calls if name == "choose"]
    results = [None, *output.statistics.cycles[:-1]]
    length = len(PROMPT) + 1
    for state, last_result in zip(states, results, strict=True):
        length += 0 if last_result is None else len(last_result.token_ids)
        assert state.context_length == length
        assert state.last_result is last_result
        # Both sum in float32, in another order.
        torch.testing.assert_close(state.features, features[length - 2], rtol=1e-4, atol=1e-4)


def test_policy_is_reset_for_every_prompt(decoder):
    policy = RecordingPolicy()
    decoder.generate([PROMPT, PROMPT[:2]], policy, max_new_tokens=3)
    assert [name for name, _ in policy.calls].count("reset") == 2


def test_choice_is_cut_to_the_tokens_that_are_left(decoder):
    output = decoder.generate(PROMPT, TreeParams(60, 7, 10), max_new_tokens=5)
    left = 4
    for cycle in output.statistics.cycles:
        assert cycle.params == TreeParams(60, 7, 10).limited_to(left - 1)
        left -= len(cycle.token_ids)
    assert left == 0


def test_no_draft_is_plain_decoding(decoder, model):
    output = decoder.generate(PROMPT, NO_DRAFT, max_new_tokens=10)
    assert output.statistics.num_cycles == 9
    assert output.statistics.mean_acceptance_length == 1.0
    prompt = torch.tensor([PROMPT])
    expected = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=10
    )
    assert output.sequences.tolist() == expected.tolist()


def test_constant_policy(decoder):
    params = TreeParams(8, 2, 4)
    assert isinstance(ConstantPolicy(params), TreePolicy)
    assert as_policy(params) == ConstantPolicy(params)
    policy = RecordingPolicy()
    assert as_policy(policy) is policy
    bare = decoder.generate(PROMPT, params, max_new_tokens=10)
    wrapped = decoder.generate(PROMPT, ConstantPolicy(params), max_new_tokens=10)
    assert bare.sequences.tolist() == wrapped.sequences.tolist()


@pytest.mark.parametrize("policy", [(8, 2, 4), object()])
def test_what_is_no_policy(decoder, policy):
    with pytest.raises(TypeError, match="policy must be TreeParams, a DraftPlan or a TreePolicy"):
        decoder.generate(PROMPT, policy)


@pytest.mark.parametrize("name", ["60/7/10", "Auto", ""])
def test_an_unknown_name_is_refused(decoder, name):
    with pytest.raises(ValueError, match='policy must be "auto", a tree, a plan or a policy'):
        decoder.generate(PROMPT, name)


def test_auto_is_the_default_and_one_policy_of_a_decoder(decoder):
    plain = decoder.generate(PROMPT, NO_DRAFT, max_new_tokens=20).sequences.tolist()
    assert decoder.generate(PROMPT, max_new_tokens=20).sequences.tolist() == plain
    assert decoder.generate(PROMPT, "auto", max_new_tokens=20).sequences.tolist() == plain
    assert decoder.default_policy == "auto"
    policy = decoder._named.find("auto")
    assert isinstance(policy, AutoPolicy)
    assert policy is decoder._named.find("auto")
    assert policy.cost.cycles > 0


@pytest.mark.parametrize(("kind", "triton"), [("mps", True), ("cuda", False)])
def test_auto_is_a_constant_tree_on_other_devices_with_a_warning(kind, triton, monkeypatch):
    monkeypatch.setattr(named_policies, "find_spec", lambda name: object() if triton else None)
    named = NamedPolicies(24, kind, TreeParams(6, 2, 4), FusedSlots)
    assert named.check(None) == TreeParams(6, 2, 4)
    with pytest.warns(UserWarning, match=f"on {kind} it is the constant tree 6/2/4"):
        assert named.find("auto") == ConstantPolicy(TreeParams(6, 2, 4))


def test_auto_decides_on_a_cuda_device_with_triton(monkeypatch):
    monkeypatch.setattr(named_policies, "find_spec", lambda name: object())
    named = NamedPolicies(24, "cuda", TreeParams(6, 2, 4), FusedSlots)
    assert isinstance(named.find("auto"), AutoPolicy)
    # Unless it is asked for, it is not used there: nobody has measured it on a GPU.
    assert named.check(None) == TreeParams(6, 2, 4)
