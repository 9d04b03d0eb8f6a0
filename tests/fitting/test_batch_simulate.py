"""Decoding traces side by side, and what a policy without lookups may know."""

import numpy as np
import pytest

from eaglerl.fitting.batch_simulate import batch_simulate
from eaglerl.policies.acceptance_policy import AcceptancePolicy
from eaglerl.policies.candidates import trace_candidates
from eaglerl.traces.simulation import simulate
from eaglerl.traces.trace_set import Trace

from ..policies.test_acceptance import D, K, random_model
from ..traces.test_oracle import COST
from ..traces.tiny import made_up_trace, with_repetitive_text


def test_lookups_that_a_policy_does_not_ask_for_are_hidden() -> None:
    base = made_up_trace(12, seed=1, top_ks=(K,), max_depth=D)
    nodes = np.tile(np.array([1, 4, 8], dtype=np.int16), (12, 1, 1))
    changes = {"lookup_path": nodes, "lookup_match": np.full(12, 3, dtype=np.uint8)}
    trace = Trace(**{name: getattr(base, name) for name in Trace.__dataclass_fields__} | changes)
    hidden = trace_candidates([trace], K, D, 0)
    assert not hidden.match_length.any()
    assert (hidden.lookup_nodes == -1).all()
    assert (hidden.success == 0.5).all()
    shown = trace_candidates([trace], K, D, 2)
    assert (shown.match_length == 3).all()
    assert (shown.lookup_nodes == [1, 4, -1]).all()


def test_traces_side_by_side_are_decoded_as_one_by_one() -> None:
    model = random_model(2)
    traces = [
        with_repetitive_text(made_up_trace(20 + 9 * n, seed=n, top_ks=(K,), max_depth=D), seed=n)
        for n in range(4)
    ]
    assert min((trace.lookup_match > 0).sum() for trace in traces) > 5
    walk = batch_simulate(model, traces, COST)
    for index, trace in enumerate(traces):
        outcome = simulate(AcceptancePolicy(model, COST), [trace], COST)[0]
        assert outcome.tokens == walk.tokens[index] == len(trace)
        assert outcome.cycles == walk.cycles[index]
        assert outcome.seconds == pytest.approx(walk.seconds[index], rel=1e-12)
    assert len(set(walk.cycles / walk.tokens)) == 4
