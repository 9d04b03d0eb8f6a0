"""Heads for other engines: each takes the layers that it would, by its own rule, be told to."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.eagle3.head.export_head import ENGINES, export_head

from ..heads import make_config, make_head

KEY = "eagle_aux_hidden_state_layer_ids"
DEFAULT = (2, 5, 7)
LAYERS = 10


def vllm_layers(data: dict) -> list[int]:
    """Both of vLLM's runners: the top level first, which names inputs."""
    return data.get(KEY) or list(DEFAULT)


def sglang_layers(data: dict) -> list[int]:
    """SGLang's Llama: only inside eagle_config, and one more."""
    ids = data.get("eagle_config", {}).get(KEY)
    return list(DEFAULT) if ids is None else [index + 1 for index in ids]


RULES = {"vllm": vllm_layers, "sglang": sglang_layers}


@pytest.mark.parametrize("engine", RULES)
@pytest.mark.parametrize("layers", [None, DEFAULT, (1, 4, 8), (0, 4, 9)])
def test_engines_take_the_heads_layers(
    tmp_path: Path, engine: str, layers: tuple[int, int, int] | None
) -> None:
    head = make_head(make_config(feature_layers=layers, fc_norm=True))
    for count in (LAYERS, None):
        folder = tmp_path / str(count)
        exported = export_head(head, folder, engine, num_target_layers=count)
        data = json.loads((folder / "config.json").read_text())
        assert RULES[engine](data) == list(layers or DEFAULT)
        assert exported.lost == ()
        assert not [key for key in data if key.startswith("eaglerl_")]
        if count == LAYERS and layers in (None, DEFAULT):
            assert KEY not in data
            assert "eagle_config" not in data
        # Read here, a head means the same, whoever it was written for.
        again = Eagle3DraftHead.from_pretrained(
            folder, aux_layer_convention="input" if engine == "vllm" else None
        )
        assert again.config.resolve_feature_layers(LAYERS) == (layers or DEFAULT)
        written = load_file(folder / "model.safetensors")
        assert all(torch.equal(written[key], value) for key, value in head.state_dict().items())


@pytest.mark.parametrize("engine", ENGINES)
def test_what_an_engine_does_not_run_is_left_out_and_said(tmp_path: Path, engine: str) -> None:
    head = make_head(
        make_config(
            fc_norm=True,
            qk_norm=True,
            sliding_window=7,
            norm_before_residual=True,
            norm_feedback=True,
        )
    )
    exported = export_head(head, tmp_path, engine, num_target_layers=LAYERS)
    names = {
        "fc_norm": "fc_norm",
        "qk_norm": "norms of q and k",
        "sliding_window": "window of 7",
        "norm_before_residual": "norm_before_residual",
        "norm_feedback": "norm_output",
    }
    again = Eagle3DraftHead.from_pretrained(tmp_path, norm_output_convention="feedback")
    for field, words in names.items():
        reads = field in ENGINES[engine].reads
        assert any(words in sentence for sentence in exported.lost) != reads
        assert (getattr(again.config, field) == getattr(head.config, field)) == reads
    keys = set(load_file(tmp_path / "model.safetensors"))
    assert any(key.startswith("fc_norm") for key in keys) == ("fc_norm" in ENGINES[engine].reads)
    assert any("q_norm" in key for key in keys) == ("qk_norm" in ENGINES[engine].reads)


def test_hints(tmp_path: Path) -> None:
    head = make_head(make_config(feature_layers=(1, 4, 8)))
    openvino = export_head(head, tmp_path / "openvino", "openvino", num_target_layers=LAYERS)
    assert "hidden_layers_list=[0, 3, 7]" in openvino.hints[0]
    default = make_head(make_config())
    openvino = export_head(default, tmp_path / "openvino", "openvino", num_target_layers=LAYERS)
    assert "hidden_layers_list=[1, 4, 6]" in openvino.hints[0]
    llama_cpp = export_head(head, tmp_path / "llama.cpp", "llama.cpp", num_target_layers=LAYERS)
    assert "eagle3.extract_layers to [1, 4, 8]" in llama_cpp.hints[1]
    windowed = make_head(make_config(sliding_window=9))
    sglang = export_head(windowed, tmp_path / "sglang", "sglang", num_target_layers=LAYERS)
    assert sglang.hints == ("start SGLang with --speculative-draft-window-size 9",)


def test_wrong_arguments_write_nothing(tmp_path: Path) -> None:
    head = make_head(make_config(feature_layers=(1, 4, 8)))
    with pytest.raises(ValueError, match=r"engine must be one of \['eaglerl', 'vllm'.*'trt'"):
        export_head(head, tmp_path / "head", "trt")
    with pytest.raises(ValueError, match=r"feature_layers must be inputs of the target's 8 layers"):
        export_head(head, tmp_path / "head", "vllm", num_target_layers=8)
    assert not (tmp_path / "head").exists()
