"""What turns the plugin on, and where it stays off."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from eaglerl_vllm.compatibility import SIGNATURES, changed_signatures, unsupported
from eaglerl_vllm.cost_file import CostFile
from eaglerl_vllm.fixed_chains import FixedChains
from eaglerl_vllm.make_policy import make_policy
from eaglerl_vllm.settings import Settings, read_settings

from eaglerl.policies import BatchChainPolicy


@pytest.mark.parametrize(
    ("config", "variable", "expected"),
    [
        ({}, "", None),
        ({}, "0", None),
        (None, "1", Settings()),
        ({}, '{"policy": "fixed", "tokens": 3}', Settings("fixed", 3)),
        ({}, "true", Settings()),
        ({"eaglerl": True}, "", Settings()),
        ({"eaglerl": False}, "1", None),
        ({"eaglerl": {"costs": "a"}}, '{"policy": "fixed"}', Settings(costs="a")),
        ({"other": 1}, "", None),
    ],
)  # fmt: skip
def test_settings_are_read(config: Any, variable: str, expected: Settings | None) -> None:
    assert read_settings(config, {"EAGLERL_VLLM": variable}) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"polcy": "auto"}, r"unknown settings \['polcy'\]; known are"),
        ({"policy": "best"}, "policy must be auto, fixed or module:Class, got 'best'"),
        ({"tokens": -1}, "tokens must be a number of 0 or more, got -1"),
        ({"tokens": True}, "tokens must be a number of 0 or more, got True"),
        (["auto"], "must be true, false or settings"),
    ],
)
def test_wrong_settings_are_named(content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_settings({"eaglerl": content}, {})
    with pytest.raises(ValueError, match=message):
        read_settings({}, {"EAGLERL_VLLM": json.dumps(content)})


def test_a_variable_that_is_no_json_is_named() -> None:
    with pytest.raises(ValueError, match="EAGLERL_VLLM must be 0, 1 or JSON, got 'yes'"):
        read_settings({}, {"EAGLERL_VLLM": "yes"})


def config_of(**changed: Any) -> SimpleNamespace:
    """A configuration that the plugin serves, but for what is changed in any of its parts."""
    parts = {
        "speculative_config": {
            "method": "eagle3", "parallel_drafting": False, "use_heterogeneous_vocab": False,
            "use_local_argmax_reduction": False,
        },
        "parallel_config": {
            "tensor_parallel_size": 1, "pipeline_parallel_size": 1, "data_parallel_size": 1,
        },
        "scheduler_config": {"async_scheduling": False, "max_num_seqs": 8},
        "model_config": {"is_multimodal_model": False},
    }  # fmt: skip
    config = SimpleNamespace(use_v2_model_runner=changed.pop("use_v2_model_runner", False))
    for part, values in parts.items():
        new = {name: changed.pop(name, value) for name, value in values.items()}
        setattr(config, part, SimpleNamespace(**new))
    assert not changed
    return config


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"use_v2_model_runner": True}, "V2 model runner"),
        ({"method": "ngram"}, "method is ngram, not eagle3"),
        ({"async_scheduling": True}, "--no-async-scheduling"),
        ({"tensor_parallel_size": 2}, "tensor-parallel size is 2"),
        ({"data_parallel_size": 4}, "data-parallel size is 4"),
        ({"pipeline_parallel_size": 2}, "pipeline-parallel size is 2"),
        ({"max_num_seqs": 2000}, "max_num_seqs is 2000"),
        ({"is_multimodal_model": True}, "more than text"),
        ({"use_local_argmax_reduction": True}, "use_local_argmax_reduction is set"),
    ],
)
def test_what_is_not_served_is_named(changed: dict[str, Any], said: str) -> None:
    assert unsupported(config_of()) == []
    (reason,) = unsupported(config_of(**changed))
    assert said in reason


def test_without_speculation_there_is_nothing_to_choose() -> None:
    assert unsupported(SimpleNamespace(speculative_config=None)) == [
        "there is no --speculative-config"
    ]


def classes_of(signatures: dict[str, tuple[str, ...]]) -> dict[str, type]:
    """Classes with methods of these signatures."""
    made: dict[str, dict[str, Any]] = {"EagleProposer": {}, "GPUModelRunner": {}}
    for name, parameters in signatures.items():
        owner, method = name.split(".")
        space: dict[str, Any] = {}
        exec(f"def {method}({', '.join(parameters)}): pass", space)
        made[owner][method] = space[method]
    return {name: type(name, (), methods) for name, methods in made.items()}


def test_changed_methods_are_found() -> None:
    assert changed_signatures(classes_of(SIGNATURES)) == []
    other = {**SIGNATURES, "EagleProposer._sample_draft_tokens": ("self", "hidden_states")}
    assert changed_signatures(classes_of(other)) == [
        "EagleProposer._sample_draft_tokens takes self, hidden_states"
    ]
    del other["GPUModelRunner.propose_draft_token_ids"]
    assert len(changed_signatures(classes_of(other))) == 2


class OwnPolicy(FixedChains):
    """A policy of the user's own."""


def test_policies_are_made(tmp_path: Any) -> None:
    assert isinstance(make_policy(Settings(), 4, 5), BatchChainPolicy)
    fixed = make_policy(Settings("fixed"), 4, 5)
    assert isinstance(fixed, FixedChains)
    with pytest.raises(ValueError, match="tokens must be at most num_speculative_tokens=5, got 6"):
        make_policy(Settings("fixed", 6), 4, 5)
    own = make_policy(Settings(f"{__name__}:OwnPolicy", 2), 4, 5)
    assert isinstance(own, OwnPolicy)


def test_costs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start with as many requests and tokens begins with what the last one learned."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("atexit.register", lambda *call: None)
    settings = Settings(costs=str(tmp_path / "costs.json"))
    first = make_policy(settings, 2, 3)
    file = CostFile(first.cost, settings.costs)
    for _ in range(30):
        first.cost._native.observe(3, 10, 0.5, 0, 1, 0.01)
    file.end_step()
    assert not Path(settings.costs).exists()
    now[0] = 31.0
    file.end_step()
    again = make_policy(settings, 2, 3)
    assert again.cost.speed == pytest.approx(first.cost.speed)
    assert make_policy(settings, 4, 3).cost.cycles == 0
    Path(settings.costs).write_text("{}")
    with pytest.raises(ValueError, match="learned costs"):
        make_policy(settings, 2, 3)
