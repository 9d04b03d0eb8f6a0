"""Heads for other engines: each takes the layers that it would, by its own rule, be told to."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.eagle3.head.export_engines import ENGINES
from eaglerl.eagle3.head.export_head import export_head, plan_export

from ..heads import make_config, make_head

KEY = "eagle_aux_hidden_state_layer_ids"
DEFAULT = (2, 5, 7)
LAYERS = 10


def input_layers(data: dict) -> list[int]:
    """Both of vLLM's runners, and llama.cpp's converter: the top level first; inputs."""
    return data.get(KEY) or list(DEFAULT)


def sglang_layers(data: dict) -> list[int]:
    """SGLang's Llama: only inside eagle_config, and one more."""
    ids = data.get("eagle_config", {}).get(KEY)
    return list(DEFAULT) if ids is None else [index + 1 for index in ids]


RULES = {"vllm": input_layers, "sglang": sglang_layers, "llama.cpp": input_layers}


@pytest.mark.parametrize("engine", RULES)
@pytest.mark.parametrize("layers", [None, DEFAULT, (1, 4, 8), (0, 4, 9)])
def test_engines_take_the_heads_layers(
    tmp_path: Path, engine: str, layers: tuple[int, int, int] | None
) -> None:
    norm = "norm_before_fc" if engine == "llama.cpp" else "fc_norm"
    head = make_head(make_config(feature_layers=layers, **{norm: True}))
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
            folder, aux_layer_convention=None if engine == "sglang" else "input"
        )
        assert again.config.resolve_feature_layers(LAYERS) == (layers or DEFAULT)
        assert again.config.replace(feature_layers=None) == head.config.replace(feature_layers=None)
        written = load_file(folder / "model.safetensors")
        assert set(written) == set(head.state_dict()) == set(again.state_dict())
        for key, value in head.state_dict().items():
            assert torch.equal(written[key], value)
            assert torch.equal(again.state_dict()[key], value)


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
    exported = export_head(head, tmp_path, engine, num_target_layers=LAYERS, lossy=True)
    names = {
        "fc_norm": "fc_norm",
        "qk_norm": "norms of q and k",
        "sliding_window": "window of 7",
        "norm_before_residual": "norm_before_residual",
        "norm_feedback": "norm_output",
    }
    again = Eagle3DraftHead.from_pretrained(tmp_path, norm_output_convention="feedback")
    assert again.config == exported.head.config
    for field, words in names.items():
        reads = field in ENGINES[engine].reads
        assert any(words in sentence for sentence in exported.lost) != reads
        assert (getattr(again.config, field) == getattr(head.config, field)) == reads
    keys = set(load_file(tmp_path / "model.safetensors"))
    assert any(key.startswith("fc_norm") for key in keys) == ("fc_norm" in ENGINES[engine].reads)
    assert any("q_norm" in key for key in keys) == ("qk_norm" in ENGINES[engine].reads)


@pytest.mark.parametrize("engine", ["openvino", "llama.cpp"])
def test_other_weights_stand_in_for_fc_norm(engine: str) -> None:
    """Where every row has the features' usual scale, they compute the same."""
    config = make_config(fc_norm=True, rms_norm_eps=1e-12)
    head = make_head(config)
    draw = torch.Generator().manual_seed(0)
    assert head.fc_norm is not None
    for norm in head.fc_norm:
        norm.weight.data.uniform_(0.5, 1.5, generator=draw)
    scales = torch.tensor([1.0, 3.0, 20.0], dtype=torch.float64)
    parts = torch.randn(50, 3, config.hidden_size, generator=draw, dtype=torch.float64)
    parts *= scales[:, None] / parts.square().mean(-1, keepdim=True).sqrt()
    plan = plan_export(head, engine, num_target_layers=LAYERS, rms=scales.expand(50, 3))
    features = parts.flatten(1).float()
    torch.testing.assert_close(
        plan.head.reduce(features), head.reduce(features), rtol=1e-4, atol=1e-4
    )
    assert plan.head.config.norm_before_fc == (engine == "llama.cpp")
    assert not plan.head.config.fc_norm
    assert "usual scale" in plan.lost[0]
    # What does not go through fc is the head's own.
    for key in ("midlayer.self_attn.q_proj.weight", "lm_head.weight"):
        assert plan.head.state_dict()[key] is not None
        assert torch.equal(plan.head.state_dict()[key], head.state_dict()[key])


def test_openvino_gets_a_map_for_a_whole_vocabulary(tmp_path: Path) -> None:
    """Without one, optimum-intel takes what lies in memory for it."""
    whole = make_config()
    head = make_head(whole.replace(draft_vocab_size=whole.vocab_size))
    export_head(head, tmp_path / "openvino", "openvino")
    written = load_file(tmp_path / "openvino" / "model.safetensors")
    assert not written["d2t"].any()
    assert len(written["d2t"]) == whole.vocab_size
    assert written["t2d"].all()
    again = Eagle3DraftHead.from_pretrained(tmp_path / "openvino")
    assert again.config == head.config
    export_head(head, tmp_path / "vllm", "vllm")
    assert "d2t" not in load_file(tmp_path / "vllm" / "model.safetensors")


def test_hints(tmp_path: Path) -> None:
    head = make_head(make_config(feature_layers=(1, 4, 8)))
    openvino = export_head(head, tmp_path / "openvino", "openvino", num_target_layers=LAYERS)
    assert "hidden_layers_list=[0, 3, 7]" in openvino.hints[1]
    default = make_head(make_config())
    openvino = export_head(default, tmp_path / "openvino", "openvino", num_target_layers=LAYERS)
    assert "hidden_layers_list=[1, 4, 6]" in openvino.hints[1]
    openvino = export_head(default, tmp_path / "openvino", "openvino")
    assert "the outputs of its layers" in openvino.hints[1]
    llama_cpp = export_head(head, tmp_path / "llama.cpp", "llama.cpp", num_target_layers=LAYERS)
    assert "convert_hf_to_gguf.py" in llama_cpp.hints[0]
    windowed = make_head(make_config(sliding_window=9))
    sglang = export_head(windowed, tmp_path / "sglang", "sglang", num_target_layers=LAYERS)
    assert sglang.hints == ("start SGLang with --speculative-draft-window-size 9",)


def test_refused_heads_write_nothing(tmp_path: Path) -> None:
    head = make_head(make_config(feature_layers=(1, 4, 8)))
    with pytest.raises(ValueError, match=r"engine must be one of \['eaglerl', 'vllm'.*'trt'"):
        export_head(head, tmp_path / "head", "trt")
    with pytest.raises(ValueError, match=r"feature_layers must be inputs of the target's 8 layers"):
        export_head(head, tmp_path / "head", "vllm", num_target_layers=8)
    normed = make_head(make_config(fc_norm=True))
    with pytest.raises(ValueError, match=r"OpenVINO .* does not run the three norms .*lossy=True"):
        export_head(normed, tmp_path / "head", "openvino")
    width = make_config().hidden_size
    wide = make_head(make_config(target_hidden_size=2 * width))
    with pytest.raises(ValueError, match=rf"hidden_size is {width}, the target's {2 * width}"):
        export_head(wide, tmp_path / "head", "openvino")
    assert not (tmp_path / "head").exists()
