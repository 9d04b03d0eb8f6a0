"""Files of acceptance models."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from eaglerl.eagle3.policy import TreeParams
from eaglerl.policies.acceptance_file import load_acceptance, save_acceptance

from .test_acceptance import random_candidates, random_model


def test_file_round_trip(tmp_path: Path) -> None:
    model = replace(random_model(), constant=TreeParams(4, 1, 2), gain=0.03)
    path = tmp_path / "policy.safetensors"
    save_acceptance(model, path, target_id="a", head_id="b")
    loaded = load_acceptance(path, target_id="a", head_id="b")
    candidates = random_candidates(6)
    one, two = model.survival(candidates), loaded.survival(candidates)
    np.testing.assert_array_equal(one.pool, two.pool)
    np.testing.assert_array_equal(one.lookup, two.lookup)
    np.testing.assert_array_equal(model.stop_weights, loaded.stop_weights)
    assert (loaded.rate, loaded.constant, loaded.gain) == (model.rate, model.constant, 0.03)
    with pytest.raises(ValueError, match=r"head_id of the policy .* is b, this one is c"):
        load_acceptance(path, head_id="c")
    with pytest.raises(ValueError, match=r"target_id of the policy .* is a, this one is c"):
        load_acceptance(path, target_id="c")


def test_broken_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "policy.safetensors"
    with pytest.raises(ValueError, match="cannot be read"):
        load_acceptance(path)
    torch.save({"a": 1}, path)
    with pytest.raises(ValueError, match="cannot be read"):
        load_acceptance(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="is not an acceptance policy"):
        load_acceptance(path)
    save_acceptance(random_model(), path, target_id="a", head_id="b")
    tensors = load_file(path)
    metadata = {"format": "eaglerl-acceptance", "version": "1", "settings": "{"}
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(
        ValueError, match=r"the entry 'settings' of the policy .* is not valid JSON"
    ):
        load_acceptance(path)
    settings = (
        '{"top_k": 2, "max_depth": %s, "max_rows": 8, "chain_length": 4, "rate": 0.9, '
        '"constant": null, "gain": 0.0}'
    )
    for text, change, message in (
        (settings % '"2"', {}, "'max_depth' of the entry .* must be an integer, got '2'"),
        (settings % "3", {}, "'stop_weights' of .* must be torch.float32"),
        (settings.replace("null", "[2, 1]") % "2", {}, r"lacks 'constant\[2\]'"),
        (
            settings.replace("null", "[9, 0, 1]") % "2",
            {},
            "'constant' of .*: total_tokens=9 asks for 8",
        ),
        (settings.replace("0.0", "-1") % "2", {}, "'gain' of .* must be above -1.0, got -1"),
        (settings.replace('"max_rows": 8', '"max_rows": 600000000') % "2", {}, "at most 4096"),
        (settings.replace('"top_k": 2', '"top_k": 200') % "100", {}, "at most 1,048,576"),
        (settings % "2", {"pool.bias.1": torch.full((24,), torch.nan)}, "'pool.bias.1' .* finite"),
        (settings % "2", {"pool.bias.1": torch.zeros(3)}, "layers must fit each other"),
        (settings % "2", {"pool.weight.0": torch.zeros(9, 5)}, "takes 9 inputs, must take 14"),
        (settings % "2", {"chain.bias.2": torch.zeros(1).half()}, "must be a float32 tensor"),
    ):
        save_file(tensors | change, path, metadata=metadata | {"settings": text})
        with pytest.raises(ValueError, match=message):
            load_acceptance(path)
