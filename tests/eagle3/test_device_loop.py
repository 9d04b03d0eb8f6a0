"""The loop on a device: the same text, and one synchronisation per cycle."""

import functools

import pytest
import torch
from torch import nn

from eaglerl.eagle3 import (
    NO_DRAFT,
    ConstantPolicy,
    DraftPlan,
    FusedPolicy,
    SpeculativeDecoder,
    TreeParams,
)
from eaglerl.eagle3.device_acceptance import accepted_rows
from eaglerl.eagle3.sampling import GreedyVerifier
from eaglerl.eagle3.target.make_target import make_target
from eaglerl.eagle3.tree.device_tree import DeviceTree
from eaglerl.ops import PolicyWeights, accept_path_ref, tree_structure

from .emulated_device import DEVICE, EmulatedDevice, EmulatedTensor
from .tiny import tiny_head, tiny_model

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
# Few tokens, so that a random head is right often enough.
MODEL = {"vocab_size": 12, "logit_scale": 4.0, "seed": 4}
HEAD = {"draft_vocab_size": 10, "fc_norm": True, "seed": 5}
TREES = [(12, 2, 4), (1, 0, 1), (6, 1, 3), (5, 3, 1), (20, 2, 5)]
NEW_TOKENS = 20


class Alternating:
    """A policy that takes the trees in turn, so that every cycle has another one."""

    def __init__(self) -> None:
        self.count = 0

    def reset(self) -> None:
        self.count = 0

    def choose(self, state) -> TreeParams:
        self.count += 1
        return TreeParams(*TREES[self.count % len(TREES)])

    def observe(self, result) -> None:
        """Nothing to learn."""


def mlp_policy(width: int, mlp_input: str = "features", seed: int = 0) -> PolicyWeights:
    """A random policy whose choices differ from row to row."""
    torch.manual_seed(seed)
    mlp = nn.Sequential(nn.Linear(width, 16), nn.Tanh(), nn.Linear(16, len(TREES)))
    with torch.no_grad():
        mlp[2].weight.mul_(8)
    return PolicyWeights.from_modules(mlp, TREES, mlp_input=mlp_input)


def emulated_decoder(
    mode: EmulatedDevice,
    shape: dict[str, object] = MODEL,
    head_changes: dict[str, object] | None = None,
    **options,
) -> SpeculativeDecoder:
    model = mode.move(tiny_model(**shape))
    target = make_target(model, backend="transformers")
    on_host = make_target(tiny_model(**shape), backend="transformers")
    head = tiny_head(on_host, **HEAD, **(head_changes or {}))
    embed_tokens = head.embed_tokens
    mode.move(head)
    head.embed_tokens = EmulatedTensor(embed_tokens)
    return SpeculativeDecoder(target, head, **options)


def policies() -> dict[str, object]:
    return {
        "constant": ConstantPolicy(TreeParams(12, 2, 4)),
        "plain": ConstantPolicy(NO_DRAFT),
        "alternating": Alternating(),
        "features": FusedPolicy(mlp_policy(32), action_cache_steps=3),
        "features, every cycle": FusedPolicy(mlp_policy(32), action_cache_steps=1),
        "taps": FusedPolicy(mlp_policy(96, "taps"), action_cache_steps=2),
        "adaptive": FusedPolicy(mlp_policy(32), cache_mode="adaptive", threshold=0.5),
        "drawn": FusedPolicy(mlp_policy(32), temperature=1.5, action_cache_steps=1),
    }


@functools.cache
def expected_sequence() -> list[int]:
    prompt = torch.tensor([PROMPT])
    return (
        tiny_model(**MODEL)
        .generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=0,
        )[0]
        .tolist()
    )


@pytest.mark.parametrize("name", policies())
def test_same_text_and_one_wait_a_cycle(name: str) -> None:
    policy = policies()[name]
    with EmulatedDevice() as mode:
        decoder = emulated_decoder(mode)
        if isinstance(policy, FusedPolicy):
            # Binding reads the weights on the device, once.
            policy.bind(decoder.draft_head, decoder.draft_runner.reduce)
        mode.waits.clear()
        output = decoder.generate(PROMPT, policy, max_new_tokens=NEW_TOKENS)
        waits = mode.waits.copy()
    assert output.sequences[0].tolist() == expected_sequence()
    assert all(cycle.policy_seconds > 0 for cycle in output.statistics.cycles)
    assert name == "plain" or sum(cycle.accepted for cycle in output.statistics.cycles) >= 3
    # After the prompt the host reads the first token and the policy's first decision.
    before = 2 if isinstance(policy, FusedPolicy) else 1
    assert waits.total() == output.statistics.num_cycles + before, waits
    if isinstance(policy, FusedPolicy):
        assert policy.cache.device == DEVICE
        chosen = {cycle.params for cycle in output.statistics.cycles}
        assert len(chosen) > 1


@pytest.mark.parametrize("inference", [False, True])
def test_a_wait_is_counted(inference: bool) -> None:
    """Every way of reading a value from a device is counted."""
    asks = {
        "item": lambda t: t[0].item(),
        "int": lambda t: int(t[0]),
        "cpu": lambda t: t.cpu(),
        "numpy": lambda t: t.cpu().numpy(),
        "nonzero": lambda t: t.nonzero(),
        "boolean mask": lambda t: t[t > 1],
        "boolean assignment": lambda t: t.__setitem__(t > 1, 0),
        "branch": lambda t: bool(t[0] > 0),
        "index by a scalar": lambda t: t[t[0]],
        "copy to the host": lambda t: torch.zeros(3, dtype=torch.int64).copy_(t),
    }
    for name, ask in asks.items():
        with EmulatedDevice() as mode, torch.inference_mode(inference):
            ask(EmulatedTensor(torch.tensor([0, 1, 2])))
        assert mode.waits.total() == 1, name


def test_mixing_devices_raises() -> None:
    with EmulatedDevice(), pytest.raises(RuntimeError, match="two devices"):
        EmulatedTensor(torch.ones(3)) + torch.ones(3)


@pytest.mark.parametrize("name", ["features", "taps", "adaptive"])
def test_decisions_are_those_of_the_host(name: str) -> None:
    """Host and device decide from the same features by other routes."""
    host_policy, device_policy = policies()[name], policies()[name]
    target = make_target(tiny_model(**MODEL), backend="transformers")
    head = tiny_head(target, **HEAD)
    host = SpeculativeDecoder(target, head, draft_dtype="float32")
    on_host = host.generate(PROMPT, host_policy, max_new_tokens=NEW_TOKENS)
    with EmulatedDevice() as mode:
        decoder = emulated_decoder(mode)
        on_device = decoder.generate(PROMPT, device_policy, max_new_tokens=NEW_TOKENS)
        stats = device_policy.cache.stats()
    assert [cycle.params for cycle in on_host.statistics.cycles] == [
        cycle.params for cycle in on_device.statistics.cycles
    ]
    assert stats == host_policy.cache.stats()
    assert stats.hits > 0
    assert stats.misses > 1


def test_accepted_rows_equal_the_walk() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = set()
    for _ in range(300):
        total = int(torch.randint(1, 40, (1,), generator=generator))
        parents = torch.tensor(
            [0, *(int(torch.randint(row, (1,), generator=generator)) for row in range(1, total))]
        )
        # Tokens are distinct among siblings, as a tree's are; few enough that paths match.
        seen: dict[int, int] = {}
        tokens = torch.zeros(total, dtype=torch.int64)
        for row in range(1, total):
            tokens[row] = seen.get(int(parents[row]), 0)
            seen[int(parents[row])] = int(tokens[row]) + 1
        choices = torch.randint(3, (total,), generator=generator)
        levels, mask = tree_structure(parents.int())
        ancestors = ((mask >> torch.arange(total)) & 1).bool()
        longest = int(levels.max()) + 1
        enabled = torch.ones(total, dtype=torch.bool)
        tree = DeviceTree(
            tokens, parents, levels.long(), ancestors, torch.zeros(total), enabled, longest
        )
        rows, count = accepted_rows(tree, choices)
        expected = accept_path_ref(parents.int(), tokens, choices)
        assert rows[: int(count)].tolist() == expected.tolist()
        logits = torch.nn.functional.one_hot(choices, max(3, total))
        walked, bonus = GreedyVerifier().accept(logits, tree.on_host())
        assert (walked, bonus) == (expected.tolist(), int(choices[expected[-1]]))
        lengths.add(len(expected))
    assert len(lengths) >= 4


def test_sampling_waits_once_a_cycle_and_is_reproducible() -> None:
    sequences = []
    for _ in range(2):
        with EmulatedDevice() as mode:
            decoder = emulated_decoder(mode)
            torch.manual_seed(5)
            mode.waits.clear()
            output = decoder.generate(
                PROMPT, TreeParams(12, 2, 4), max_new_tokens=NEW_TOKENS, temperature=0.8, top_p=0.9
            )
            assert mode.waits.total() == output.statistics.num_cycles + 1, mode.waits
        sequences.append(output.sequences.tolist())
    assert sequences[0] == sequences[1]


@pytest.mark.parametrize("plan", [NO_DRAFT, TreeParams(*TREES[0]), "lookup", "fused"], ids=str)
def test_processors_that_read_the_text(plan) -> None:
    """The host accepts for a device, and one warning says that the device waits."""
    policy = {
        "lookup": DraftPlan(TreeParams(*TREES[0]), lookup_tokens=3),
        "fused": FusedPolicy(mlp_policy(32), action_cache_steps=1),
    }.get(str(plan), plan)
    options = {"max_new_tokens": NEW_TOKENS, "no_repeat_ngram_size": 3, "repetition_penalty": 1.2}
    model = tiny_model(**MODEL)
    ids = torch.tensor([PROMPT])
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options)
    assert expected[0].tolist() != expected_sequence()
    with EmulatedDevice() as mode:
        decoder = emulated_decoder(mode)
        with pytest.warns(UserWarning, match="processors that read the text run on the host"):
            output = decoder.generate(PROMPT, policy, **options)
    assert output.sequences.tolist() == expected.tolist()
    accepted = sum(cycle.accepted for cycle in output.statistics.cycles)
    assert (accepted > 0) == (plan is not NO_DRAFT)
