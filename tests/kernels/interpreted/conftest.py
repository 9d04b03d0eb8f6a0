"""Fixtures of the interpreted kernels' tests, collected where Triton interprets."""

import functools
import inspect
import os
from collections.abc import Iterator

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["*"]


@pytest.fixture(autouse=True)
def _language_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton looks through all of its language in every call of a function: a third of the time."""
    from triton.runtime import interpreter

    @functools.cache
    def names(package: object) -> list[str]:
        members = inspect.getmembers(package)
        return [name for name, member in members if interpreter.tl.core.is_builtin(member)]

    def patch_builtins(package: object, builder: object, scope: object) -> None:
        for name in names(package):
            member = getattr(package, name, None)
            if interpreter.tl.core.is_builtin(member):
                interpreter._patch_attr(package, name, member, builder, scope)

    monkeypatch.setattr(interpreter, "_patch_builtin", patch_builtins)


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
