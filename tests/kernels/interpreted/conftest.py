"""Fixtures of the interpreted kernels' tests, collected where Triton interprets."""

import os
from collections.abc import Iterator

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["*"]


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fills outputs and scratch memory with NaN, so that what is read unwritten is seen."""
    from eaglerl.kernels import _launch

    empty = torch.empty

    def poisoned(*arguments: object, **options: object) -> torch.Tensor:
        made = empty(*arguments, **options)
        return made.fill_(float("nan") if made.is_floating_point() else -77)

    _launch._workspaces.clear()
    monkeypatch.setattr(torch, "empty", poisoned)
    yield
    for kept in _launch._workspaces.values():
        assert not kept.tickets.any(), "a launch left its tickets behind"
