#!/usr/bin/env bash
# speculators 0.9.0: its EAGLE-3 converter drops fc_norm's weights and resets RoPE's base.
#
# A head with `fc_norm: true` and three norm weights, whose config gives RoPE as transformers 5 writes
# it (rope_parameters), is converted. Expected: the converted head has the norms and the base.
#
# Seen: config.json still says `fc_norm: true`, model.safetensors has no fc_norm tensor, and
# rope_theta is 10,000 instead of 500,000.
#   fc_norm in the config: True
#   fc_norm tensors: [], of 3
#   rope_theta: 10000.0, of 500000.0
#
# Ends with an error if any of this is no longer seen.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 speculators==0.9.0
# Not needed here, and a build for another torch keeps transformers from being imported.
"$work/venv/bin/pip" uninstall -q -y torchvision
cd "$work"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from speculators.convert.eagle.eagle3_converter import Eagle3Converter

HIDDEN, VOCAB, DRAFT_VOCAB, BASE = 32, 60, 24, 500_000.0


def write_head(folder: Path) -> None:
    """A valid EAGLE-3 head of one layer, 32 wide, with three norms before fc."""
    config = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_hidden_layers": 1,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "vocab_size": VOCAB,
        "draft_vocab_size": DRAFT_VOCAB,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": BASE},
        "fc_norm": True,
        "torch_dtype": "float32",
    }
    layer = {
        "self_attn.q_proj": (32, 64),
        "self_attn.k_proj": (16, 64),
        "self_attn.v_proj": (16, 64),
        "self_attn.o_proj": (32, 32),
        "mlp.gate_proj": (48, 32),
        "mlp.up_proj": (48, 32),
        "mlp.down_proj": (32, 48),
        "hidden_norm": (32,),
        "input_layernorm": (32,),
        "post_attention_layernorm": (32,),
    }
    shapes = {f"midlayer.{name}.weight": shape for name, shape in layer.items()}
    shapes |= {"fc.weight": (32, 96), "norm.weight": (32,), "lm_head.weight": (DRAFT_VOCAB, 32)}
    shapes |= {f"fc_norm.{i}.weight": (32,) for i in range(3)}
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    tensors["d2t"] = torch.arange(DRAFT_VOCAB)
    tensors["t2d"] = torch.arange(VOCAB) % 2 == 0
    tensors["t2d"][2 * DRAFT_VOCAB :] = False
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")


def write_target(folder: Path) -> None:
    """The config of the target, which the converter reads sizes from."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "vocab_size": VOCAB,
        "max_position_embeddings": 512,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))


write_head(Path("head"))
write_target(Path("target"))
Eagle3Converter().convert("head", "converted", "target", validate=False)
converted = json.loads(Path("converted/config.json").read_text())
with safe_open("converted/model.safetensors", "pt") as file:
    norms = [key for key in file.keys() if "fc_norm" in key]
rope = converted["transformer_layer_config"]["rope_parameters"]
print(f"transformers {transformers.__version__}")
print(f"fc_norm in the config: {converted['fc_norm']}")
print(f"fc_norm tensors: {norms}, of 3")
print(f"rope_theta: {rope['rope_theta']}, of {BASE}")
seen = converted["fc_norm"] and not norms and rope["rope_theta"] == 10_000.0
print("as described" if seen else "this has changed")
sys.exit(0 if seen else 1)
PYTHON
