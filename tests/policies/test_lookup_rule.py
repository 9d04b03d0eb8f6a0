"""The fixed rules with lookups."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from eaglerl.eagle3.policy import NO_DRAFT, DraftPlan, TreeParams, TreePolicy
from eaglerl.eagle3.tree.prompt_lookup import Lookup
from eaglerl.policies.lookup_rule import NEVER, LookupRule, best_lookup_rule, lookup_alone
from eaglerl.traces.recording import RecordOptions, record
from eaglerl.traces.simulation import simulate
from eaglerl.traces.trace_set import Trace

from ..traces.test_oracle import COST
from ..traces.tiny import made_up_trace, tiny_decoder, tiny_prompts

RULE = LookupRule(TreeParams(3, 1, 1), 2, 3, 4, 6)


def test_the_rule_live_and_on_traces(tmp_path: Path) -> None:
    decoder = tiny_decoder()
    options = RecordOptions(top_ks=(1,), max_depth=1, max_new_tokens=60, slots=4)
    traces = record(decoder, tiny_prompts(4), tmp_path, options=options)
    assert isinstance(RULE, TreePolicy)
    kinds = set()
    for trace in traces:
        expected = simulate(RULE, [trace], COST)[0]
        arguments = {"max_new_tokens": len(trace) + 13, "eos_token_id": []}
        plain = decoder.generate(trace.prompt_ids.tolist(), NO_DRAFT, **arguments)
        output = decoder.generate(trace.prompt_ids.tolist(), RULE, **arguments)
        assert torch.equal(output.sequences, plain.sequences)
        found: dict[tuple[int, int, int], int] = {}
        emitted = 0
        for cycle in output.per_sequence[0].cycles:
            if emitted >= len(trace):
                break
            kind = (cycle.rows, cycle.params.depth, cycle.params.top_k)
            found[kind] = found.get(kind, 0) + 1
            emitted += len(cycle.token_ids)
        assert found == expected.trees
        kinds |= found.keys()
    # Chains alone, merged, and none.
    assert {rows for rows, _, _ in kinds} >= {3, 7}
    assert len(kinds) > 2


def test_plans_by_match_length() -> None:
    class State:
        def __init__(self, match: int) -> None:
            self.match = match

        def lookup(self, max_tokens: int) -> Lookup:
            return Lookup(self.match, (1,) * max_tokens)

    tree = TreeParams(3, 1, 1)
    plans = [RULE.choose(State(match)) for match in (0, 2, 3, 4, 16)]
    merged, alone = DraftPlan(tree, 3), DraftPlan(None, 6)
    assert plans == [DraftPlan(tree, 0), merged, merged, alone, alone]
    assert lookup_alone(5).choose(State(2)) == DraftPlan(None, 5)
    assert lookup_alone(5).choose(State(0)) == DraftPlan(NO_DRAFT, 0)


def planted(seed: int) -> Trace:
    """Seven looked-up tokens are accepted after matches of five or more, else none."""
    draw = np.random.default_rng(seed)
    base = made_up_trace(80, seed=seed)
    match = draw.integers(0, 10, 80).astype(np.uint8)
    accepted = np.where(match >= 5, 7, 0).astype(np.uint8)
    changes = {"lookup_match": match, "lookup_accepted": accepted}
    return Trace(**{name: getattr(base, name) for name in Trace.__dataclass_fields__} | changes)


def test_tuning_finds_planted_thresholds() -> None:
    traces = [planted(seed) for seed in range(6)]
    rule = best_lookup_rule(traces, COST, [NO_DRAFT, TreeParams(3, 1, 1)])
    assert min(rule.merge_from, rule.alone_from) == 5
    used = rule.alone_tokens if rule.alone_from == 5 else rule.merge_tokens
    assert used == 7
    assert rule.alone_from in (5, NEVER) or rule.merge_from == 5
    with pytest.raises(ValueError, match="at least one"):
        best_lookup_rule(traces, COST, [])


def test_rules_of_more_rows_than_were_measured_are_left_out() -> None:
    """A tree of three rows leaves one of four: no looked-up tokens are merged, and three alone."""
    traces = [planted(seed) for seed in range(4)]
    short = replace(
        COST, total_tokens=COST.total_tokens[:2], verify_base=COST.verify_base[:2],
        verify_slope=COST.verify_slope[:2],
    )  # fmt: skip
    assert short.total_tokens[-1] == 4
    rule = best_lookup_rule(traces, short, [TreeParams(3, 1, 1)])
    assert rule.merge_from == NEVER
    assert (rule.alone_from, rule.alone_tokens) == (5, 3)
    simulate(rule, traces, short)
