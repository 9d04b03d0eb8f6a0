"""Counts, metrics and the log of steps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import prometheus_client
import pytest
from eaglerl_vllm.adaptive_proposer import Planned
from eaglerl_vllm.metrics import Collector, share_folder
from eaglerl_vllm.requests import KnownRequests, update_text
from eaglerl_vllm.statistics import Statistics
from eaglerl_vllm.step_log import StepLog

from eaglerl.eagle3.tree.prompt_lookup import Lookup


def planned(source: str, chain: list[int], drafted: list[int], looked_up: tuple = ()) -> Planned:
    lookup = Lookup(4, looked_up) if looked_up else Lookup(0, ())
    return Planned(0, 0, 30, 12, 5, lookup, drafted, [-0.5] * len(drafted), chain, source)


def test_metrics_are_those_of_all_processes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EAGLERL_VLLM_STATISTICS", str(tmp_path))
    share_folder()
    registry = prometheus_client.CollectorRegistry()
    registry.register(Collector())
    assert prometheus_client.generate_latest(registry) == b""
    first, second = Statistics(), Statistics()
    # Right up to its second token, and the lookup up to its third: 2 of 3 rows were worth it.
    first.observe(planned("head", [1, 2, 9], [1, 2, 9], (1, 2, 3)), [1, 2, 3, 4], 0.25)
    second.observe(planned("lookup", [5, 6], [], (5, 6, 7)), [8], 0.25)
    second.observe(planned("none", [], [4]), [5], 0.25)
    first.end_step(120.0)
    second.end_step(0.0)
    text = prometheus_client.generate_latest(registry).decode()
    for line in (
        "eaglerl:steps_total 2.0",
        'eaglerl:chains_total{source="head"} 1.0',
        'eaglerl:chains_total{source="none"} 1.0',
        'eaglerl:drafted_total{source="lookup"} 2.0',
        'eaglerl:accepted_total{source="head"} 2.0',
        'eaglerl:accepted_total{source="lookup"} 0.0',
        'eaglerl:chain_length_bucket{le="2.0"} 2.0',
        'eaglerl:chain_length_bucket{le="+Inf"} 3.0',
        "eaglerl:chain_length_sum 5.0",
        "eaglerl:tokens_per_second 120.0",
        # 3 * 0.75 - (2 - 3 * 0.25), and 0 - (0 - 2 * 0.25).
        "eaglerl:regret_tokens 1.5",
    ):
        assert line in text.splitlines()


def test_the_log_says_what_was_drafted_and_what_came(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    log = StepLog(str(path))
    log.add("a", planned("head", [1, 2], [1, 2, 9], (1, 2, 3)), [1, 2, 3], 2, 6, 0.02, 0.01)
    for _ in range(3):
        log.add("b", planned("none", [], []), [4], 2, 2, 0.0, 0.0)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 4
    assert lines[0] == {
        "request": "a", "position": 12, "context": 30, "batch": 2, "logprobs": [-0.5] * 3,
        "accepted": 2, "verified": 3, "source": "head",
        "lookup": {"match": 4, "tokens": 3, "accepted": 3},
        "verify_seconds": 0.02, "draft_seconds": 0.01, "rows": 6,
    }  # fmt: skip
    assert not {"lookup", "verify_seconds"} & lines[1].keys()


def test_texts_are_looked_up_as_they_grow() -> None:
    requests = KnownRequests(2)
    first, second = requests.join("a"), requests.join("b")
    assert first is not None
    assert second is not None
    assert {first.slot, second.slot} == {0, 1}
    assert requests.join("c") is None
    capacity = np.zeros(20, np.int32)
    capacity[:6] = [1, 2, 3, 4, 1, 2]
    update_text(first, capacity, 5, [2])
    assert first.text.propose(3).token_ids == (3, 4, 1)
    capacity[6:9] = [3, 9, 9]
    update_text(first, capacity, 8, [9, 7])
    assert first.text.token_ids == (1, 2, 3, 4, 1, 2, 3, 9, 9, 7)
    # The engine has taken tokens back.
    update_text(first, capacity, 3, [])
    assert first.text.token_ids == (1, 2, 3)
    assert requests.leave_all_but(["b", "x"]) == ["a"]
    again = requests.join("c")
    assert again is not None
    assert again.slot == first.slot
