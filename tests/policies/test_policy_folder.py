"""Folders of trained policies: what is one, and what was one in an earlier release."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eaglerl.policies.policy_folder import NoPolicyError, find_policy
from eaglerl.server import find_policies

from ..traces.tiny import tiny_decoder


def write_weights(path: Path, kind: str | None) -> Path:
    metadata = None if kind is None else {"format": kind, "version": "1"}
    path.parent.mkdir(exist_ok=True)
    save_file({"stop_weights": torch.zeros(5, 66)}, path, metadata=metadata)
    return path


def test_an_acceptance_policy_is_refused_with_what_replaces_it(tmp_path: Path) -> None:
    file = write_weights(tmp_path / "old" / "model.safetensors", "eaglerl-acceptance")
    for path in (file, file.parent):
        with pytest.raises(ValueError, match=r'no longer has: policy="auto".*replaces it') as told:
            find_policy(path)
        assert not isinstance(told.value, NoPolicyError)
    with pytest.warns(UserWarning, match=r"old is left out: .*replaces it"):
        assert find_policies(tmp_path, tiny_decoder()) == []


def test_other_weights_are_no_policy(tmp_path: Path) -> None:
    file = write_weights(tmp_path / "head" / "model.safetensors", None)
    for path in (file, file.parent, tmp_path / "nowhere"):
        with pytest.raises(NoPolicyError, match=r"must be a folder with policy\.json, got"):
            find_policy(path)
    assert find_policies(tmp_path, tiny_decoder()) == []
