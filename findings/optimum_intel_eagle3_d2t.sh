#!/usr/bin/env bash
# optimum-intel 2.2.0: an EAGLE-3 head whose draft vocabulary is the target's gets a random map.
#
# d2t[i] is the distance from draft id i to the target's id. Heads with the target's whole vocabulary
# have no use for it, and EAGLE's loader does without. Expected: a head without d2t is converted with
# zeros, which is what the model class sets in its constructor.
#
# Seen: from_pretrained, which the export uses, makes the class without memory and never fills the
# buffer. The report calls it "newly initialized"; it holds whatever lay in memory, such as
# [140172838510784, 94085426577200, ...], and the converted model maps draft tokens by it.
#
# Ends with an error if this is no longer seen. The packages take 2 GB.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip=("$work/venv/bin/pip" install -q)
"${pip[@]}" torch==2.13.0 optimum-intel==2.2.0 nncf==3.4.0 openvino==2026.4.1 transformers==5.5.4
# torchvision for CUDA does not load beside a torch for the CPU, and then keeps transformers from it.
"$work/venv/bin/pip" uninstall -q -y torchvision
"$work/venv/bin/python" - "$work/head" <<'PYTHON'
import json
import os
import sys

import torch
from optimum.exporters.openvino.model_patcher import LlamaEagle3ForCausalLM
from safetensors.torch import save_file
from transformers import AutoConfig

folder, vocabulary = sys.argv[1], 4096
os.makedirs(folder)
config = {
    "architectures": ["LlamaForCausalLMEagle3"],
    "model_type": "llama",
    "num_hidden_layers": 1,
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": vocabulary,
    "draft_vocab_size": vocabulary,
    "tie_word_embeddings": False,
}
with open(f"{folder}/config.json", "w", encoding="utf-8") as file:
    json.dump(config, file)
made = LlamaEagle3ForCausalLM(AutoConfig.from_pretrained(folder))
assert not made.model.d2t.any(), "the constructor sets zeros"
left_out = ("d2t", "t2d", "embed_tokens.weight")
weights = {
    name.removeprefix("model."): tensor
    for name, tensor in made.state_dict().items()
    if not name.endswith(left_out)
}
save_file(weights, f"{folder}/model.safetensors", {"format": "pt"})
# Memory that was used before, as in any process that has loaded a target.
used = [torch.full((vocabulary,), 12345) for _ in range(1000)]
del used
found = LlamaEagle3ForCausalLM.from_pretrained(folder).model.d2t
print("d2t:", found[:6].tolist(), "...", int((found != 0).sum()), "of", vocabulary, "are not zero")
sys.exit(0 if found.any() else "d2t is zero now")
PYTHON
