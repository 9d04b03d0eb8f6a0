"""Policies that serve several generations at once: each decides as for one alone."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from eaglerl.eagle3 import NO_DRAFT, TreeParams
from eaglerl.eagle3.policy import StepResult
from eaglerl.policies.auto_policy import AutoPolicy
from eaglerl.policies.baselines import TierPolicy
from eaglerl.policies.lookup_rule import LookupRule
from eaglerl.policies.online_policy import OnlinePolicy

from ..resps.small_policies import BOTH, policy_for
from ..traces.test_oracle import COST
from ..traces.test_record import tiny_decoder, tiny_prompts

TREE = TreeParams(4, 1, 2)
ARGUMENTS = {"max_new_tokens": 40, "eos_token_id": []}
MAKERS = {
    "lookups": lambda: LookupRule(TREE, 2, 3, 5, 6),
    "tiers": lambda: TierPolicy([TREE, TreeParams(8, 3, 2)], warm_up=1, interval=1),
    "online": lambda: OnlinePolicy(COST, limit=TreeParams(8, 2, 2), lookup_tokens=4),
    "auto": lambda: AutoPolicy(limit=TreeParams(8, 2, 2), lookup_tokens=4),
}


@pytest.fixture(scope="module")
def decoder():
    return tiny_decoder()


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return [list(prompt.token_ids) for prompt in tiny_prompts(4, seed=3)]


@pytest.fixture(scope="module")
def plain(decoder, prompts) -> list[list[int]]:
    return [decoder.generate(p, NO_DRAFT, **ARGUMENTS).sequences[0].tolist() for p in prompts]


@pytest.mark.parametrize("name", MAKERS)
def test_threads_and_interleaved_generations(decoder, prompts, plain, name) -> None:
    policy = MAKERS[name]()

    def decode(prompt: list[int]) -> list[int]:
        return decoder.generate(prompt, policy, **ARGUMENTS).sequences[0].tolist()

    with ThreadPoolExecutor(len(prompts)) as pool:
        assert list(pool.map(decode, prompts)) == plain
    going = [decoder.start(prompt, policy, **ARGUMENTS) for prompt in prompts]
    while any(generation.finish_reason is None for generation in going):
        for generation in going:
            if generation.finish_reason is None:
                generation.advance()
    assert [generation.token_ids for generation in going] == plain


def result(tokens: int, seconds: float = 0.01) -> StepResult:
    return StepResult((1,) * tokens, TREE, tokens - 1, seconds, 0.0, torch.zeros(3), 20)


def test_each_sequence_has_its_own_tier() -> None:
    policy = MAKERS["tiers"]()
    fork = policy.fork()
    for _ in range(5):
        policy.observe(result(1))
        fork.observe(result(5))
    assert policy.choose(None).depth < fork.choose(None).depth


@BOTH
def test_a_trained_policy_decides_for_each_sequence_as_if_alone(
    decoder, prompts, policy_class
) -> None:
    """Asked by the loop itself, at every third cycle."""

    def trees_of(policy, prompt: list[int]) -> list[TreeParams]:
        output = decoder.generate(prompt, policy, **ARGUMENTS)
        return [cycle.params for cycle in output.statistics.cycles]

    policy = policy_for(decoder, policy_class, max_entropy_inference=False)
    alone = [trees_of(policy, prompt) for prompt in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        found = list(pool.map(lambda prompt: trees_of(policy, prompt), prompts))
    assert found == alone
    policy.training_mode = True
    going = decoder.start(prompts[0], policy, **ARGUMENTS)
    going.advance()
    with pytest.raises(ValueError, match="in training mode learns from one generation at a time"):
        decoder.generate(prompts[1], policy, **ARGUMENTS)
