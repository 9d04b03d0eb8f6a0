"""vLLM's side of the comparison of heads; runs in an environment of its own.

Reads a JSON object from standard input: the folders "target" and "head", "chain" (drafted tokens
per cycle), "tokens" (new tokens per prompt) and "prompts" (token ids). The last line of the output
is a JSON object: "cycles", "accepted" (per position) and "texts".
"""

import json
import os
import sys

# In the engine's own process: nothing is left to end, and errors reach this one.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from vllm import LLM, SamplingParams

_PREFIX = "vllm:spec_decode_num_"

task = json.load(sys.stdin)
model = LLM(
    model=task["target"],
    dtype="float32",
    max_model_len=1024,
    max_num_seqs=8,
    enforce_eager=True,
    enable_prefix_caching=False,
    disable_log_stats=False,
    speculative_config={
        "method": "eagle3",
        "model": task["head"],
        "num_speculative_tokens": task["chain"],
    },
)
sampling = SamplingParams(temperature=0.0, max_tokens=task["tokens"], ignore_eos=True)
outputs = model.generate([{"prompt_token_ids": ids} for ids in task["prompts"]], sampling)
counts = {metric.name: metric for metric in model.get_metrics()}
answer = {
    "cycles": counts[_PREFIX + "drafts"].value,
    "accepted": list(counts[_PREFIX + "accepted_tokens_per_pos"].values),
    "texts": [list(output.outputs[0].token_ids) for output in outputs],
}
sys.stdout.write("\n" + json.dumps(answer) + "\n")
