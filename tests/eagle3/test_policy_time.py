"""The seconds that a cycle's result gives for its policy, for policies that take their time."""

import time

import numpy as np
import pytest
import torch
from torch import nn

from eaglerl.eagle3 import FusedPolicy, SpeculativeDecoder, TreeParams
from eaglerl.eagle3.fused_policy import BoundPolicy
from eaglerl.eagle3.policy import DraftPlan, Selection
from eaglerl.eagle3.stopwatch import TotalTime
from eaglerl.eagle3.target.packed_target import packed_target
from eaglerl.ops import PolicyWeights

from .tiny import tiny_head, tiny_model

PAUSE = 0.002
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def decoder() -> SpeculativeDecoder:
    target = packed_target(tiny_model(vocab_size=12, logit_scale=3.0))
    return SpeculativeDecoder(target, tiny_head(target, draft_vocab_size=12), draft_dtype="float32")


class Slow:
    """Waits wherever it is asked, and counts how often that is until the next cycle's result."""

    def __init__(self, waits: tuple[str, ...]) -> None:
        self.waits = waits
        self.asked = 0
        self.waited: list[int] = []

    def _ask(self, name: str) -> None:
        if name in self.waits:
            time.sleep(PAUSE)
            self.asked += 1

    def reset(self) -> None:
        """Nothing to forget."""

    def choose(self, state) -> DraftPlan:
        self._ask("choose")
        return DraftPlan(TreeParams(7, 2, 2), 3)

    def observe(self, result) -> None:
        self.waited.append(self.asked)
        self.asked = 0
        self._ask("observe")


class SlowStaged(Slow):
    """Goes on to the end and verifies all candidates."""

    def should_continue(self, progress) -> bool:
        self._ask("should_continue")
        return True

    def choose_total_tokens(self, progress) -> int:
        self._ask("rows")
        return min(5, 1 + len(progress.scores))


class SlowSelecting(SlowStaged):
    """Verifies the root's children."""

    def select(self, progress) -> Selection:
        self._ask("select")
        return Selection(np.arange(2), len(progress.lookup.token_ids))


@pytest.mark.parametrize(
    ("kind", "waits"),
    [
        (Slow, ("choose", "observe")),
        (SlowStaged, ("choose", "should_continue", "rows", "observe")),
        (SlowSelecting, ("should_continue", "select")),
    ],
)
def test_all_that_a_policy_is_asked_is_counted(decoder, kind, waits) -> None:
    policy = kind(waits)
    output = decoder.generate([1, 2, 3], policy, max_new_tokens=NEW_TOKENS, eos_token_id=[])
    statistics = output.statistics
    waited = [cycle.policy_seconds / PAUSE for cycle in statistics.cycles]
    # A sleep takes at least its time.
    assert all(found >= count for found, count in zip(waited, policy.waited, strict=True))
    assert sum(policy.waited) >= statistics.num_cycles
    assert statistics.policy_seconds == sum(cycle.policy_seconds for cycle in statistics.cycles)
    between = {"should_continue", "rows", "select"} & set(waits)
    # Time between the passes counts as drafting, too. The last three tokens have smaller trees.
    for cycle in statistics.cycles[:-3]:
        assert (cycle.draft_seconds >= 3 * PAUSE) or not between
    assert statistics.policy_seconds < statistics.decode_seconds


def test_a_fused_policys_call_is_counted(decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = BoundPolicy.encode

    def slow(self, *arguments):
        time.sleep(PAUSE)
        return encode(self, *arguments)

    monkeypatch.setattr(BoundPolicy, "encode", slow)
    torch.manual_seed(0)
    mlp = nn.Sequential(
        nn.Linear(decoder.draft_head.config.hidden_size, 4), nn.Tanh(), nn.Linear(4, 2)
    )
    weights = PolicyWeights.from_modules(mlp, [(5, 1, 2), (4, 1, 2)], mlp_input="features")
    output = decoder.generate(
        [1, 2, 3], FusedPolicy(weights), max_new_tokens=NEW_TOKENS, eos_token_id=[]
    )
    for cycle in output.statistics.cycles:
        assert cycle.policy_seconds >= PAUSE
        assert cycle.verify_seconds >= PAUSE
    # That of the prompt counts as its own time.
    assert output.statistics.policy_seconds < output.statistics.decode_seconds


def test_reducing_the_features_is_not_the_policys_time(
    decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    bind, pause = FusedPolicy.bind, 10 * PAUSE

    def bind_slowly(self, head, reduce):
        def slow(features):
            time.sleep(pause)
            return reduce(features)

        return bind(self, head, slow)

    monkeypatch.setattr(FusedPolicy, "bind", bind_slowly)
    taps = 3 * decoder.draft_head.config.feature_hidden_size
    mlp = nn.Sequential(nn.Linear(taps, 4), nn.Tanh(), nn.Linear(4, 2))
    weights = PolicyWeights.from_modules(mlp, [(5, 1, 2), (4, 1, 2)], mlp_input="taps")
    output = decoder.generate(
        [1, 2, 3], FusedPolicy(weights), max_new_tokens=NEW_TOKENS, eos_token_id=[]
    )
    cycles = output.statistics.cycles
    assert all(cycle.verify_seconds >= pause for cycle in cycles)
    assert sum(cycle.policy_seconds for cycle in cycles) < len(cycles) * pause / 2


def test_time_adds_up_until_it_is_taken() -> None:
    total = TotalTime()
    for _ in range(2):
        with total:
            time.sleep(PAUSE)
    with pytest.raises(KeyError), total:
        raise KeyError
    assert total.seconds >= 2 * PAUSE
    assert total.take() >= 2 * PAUSE
    assert total.seconds == 0
