"""What operators need on a device."""

import sys
from types import SimpleNamespace

import pytest

from eaglerl.ops._operands import need_triton


@pytest.mark.parametrize("version", ["3.6.0", "3.10.0+git1", "4.0"])
def test_a_triton_that_compiles_the_kernels(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__=version))
    need_triton("accept_draft")


def test_an_older_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.5.1"))
    with pytest.raises(RuntimeError, match=r"accept_draft on a device needs Triton 3\.6 or newer"):
        need_triton("accept_draft")


def test_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="accept_draft on a device needs Triton: pip install"):
        need_triton("accept_draft")
