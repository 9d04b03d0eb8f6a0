#!/usr/bin/env bash
# transformers 5.24.0: reading a GGUF file drops its RoPE scaling, without a warning.
#
# A small random Llama is written to GGUF four times: without scaling, with Llama 3's as the tensor
# rope_freqs.weight (what llama.cpp's converter writes for such models), and with linear and yarn
# scaling in the metadata (llama.rope.scaling.type, .factor, .original_context_length), all of which
# llama.cpp applies. Expected: AutoModelForCausalLM.from_pretrained(folder, gguf_file=...) gives the
# logits of the model that was written.
#
# Seen: the config's rope_type is "default" each time, and nothing is said.
#   none: rope_type 'default', logits at most 0.000 deviations off, warnings []
#   rope_freqs.weight, linear, yarn: the same, with logits more than half a deviation off
#
# Ends with an error if any of this is no longer seen.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 transformers==5.24.0 gguf==0.19.0 accelerate==1.15.0
mkdir "$work/files"
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - "$work/files" <<'PYTHON'
import sys
import warnings
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

folder = Path(sys.argv[1])
THETA, VOCAB, HEADS, WIDTH = 500_000.0, 96, 4, 64
SCALINGS = {
    "none": {"rope_type": "default"},
    "rope_freqs.weight": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "linear": {"rope_type": "linear", "factor": 8.0},
    "yarn": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64},
}


def write(path, model, name):
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(VOCAB)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(WIDTH)
    writer.add_rope_freq_base(THETA)
    if name in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(name))
        writer.add_rope_scaling_factor(8.0)
    if name == "yarn":
        writer.add_rope_scaling_orig_ctx_len(64)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for key, tensor in model.state_dict().items():
        values = tensor.numpy()
        if ".q_proj." in key or ".k_proj." in key:
            # GGUF has the two members of a rotary pair side by side.
            parts = values.reshape(HEADS, 2, WIDTH // 2, -1)
            values = np.ascontiguousarray(parts.swapaxes(1, 2).reshape(values.shape))
        stem, _, kind = key.rpartition(".")
        writer.add_tensor(f"{names.get_name(stem)}.{kind}", values)
    if name == "rope_freqs.weight":
        half = np.arange(WIDTH // 2) / (WIDTH // 2)
        divisors = THETA**-half / model.model.rotary_emb.inv_freq.numpy()
        writer.add_tensor(name, divisors.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


print("transformers", transformers.__version__)
ids = torch.arange(200)[None] * 7 % VOCAB
as_described = True
for name, scaling in SCALINGS.items():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=HEADS * WIDTH, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=512,
        rope_parameters={"rope_theta": THETA, **scaling}, initializer_range=0.2,
    )
    model = LlamaForCausalLM(config).eval()
    write(folder / "model.gguf", model, name)
    with warnings.catch_warnings(record=True) as caught, torch.inference_mode():
        warnings.simplefilter("always")
        read = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file="model.gguf", dtype=torch.float32
        )
        expected, actual = model(ids).logits, read.eval()(ids).logits
    away = float((actual - expected).abs().max() / expected.std())
    kind = read.config.rope_parameters["rope_type"]
    told = [str(w.message) for w in caught if "rope" in str(w.message).lower()]
    print(f"{name}: rope_type {kind!r}, logits at most {away:.3f} deviations off, warnings {told}")
    dropped = kind == "default" and not told
    as_described &= dropped and ((away < 0.01) if name == "none" else (away > 0.5))
print("as described" if as_described else "this has changed")
sys.exit(0 if as_described else 1)
PYTHON
