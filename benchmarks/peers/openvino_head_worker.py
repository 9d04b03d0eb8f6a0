"""OpenVINO GenAI's side of the comparison of heads; runs in an environment of its own.

Reads a JSON object from standard input: the folders "target" and "head", "chain" (drafted tokens
per cycle), "tokens" (new tokens per prompt) and "prompts" (token ids). The last line of the output
is a JSON object: "sizes", the accepted tokens of every cycle of every prompt, and "texts".
"""

import json
import sys

import numpy as np
import openvino as ov
import openvino_genai as genai

_F32 = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}


class Cycles(genai.StreamerBase):
    """Keeps how many tokens came at once: those of the prompt's pass, then those of every cycle."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def write(self, tokens: int | list[int]) -> genai.StreamingStatus:
        """Take the tokens of a cycle."""
        self.sizes.append(len(tokens) if isinstance(tokens, list) else 1)
        return genai.StreamingStatus.RUNNING

    def end(self) -> None:
        """Do nothing: the text is taken from the result."""


task = json.load(sys.stdin)
chain, wanted = task["chain"], task["tokens"]
scheduler = genai.SchedulerConfig()
scheduler.enable_prefix_caching = False
pipeline = genai.LLMPipeline(
    task["target"],
    "CPU",
    scheduler_config=scheduler,
    draft_model=genai.draft_model(task["head"], "CPU", **_F32),
    INFERENCE_NUM_THREADS=1,
    **_F32,
)
config = genai.GenerationConfig(
    # The last cycles, which are cut short, come after those that count.
    max_new_tokens=wanted + chain + 1,
    do_sample=False,
    ignore_eos=True,
    num_assistant_tokens=chain,
)
sizes, texts = [], []
for prompt in task["prompts"]:
    streamer = Cycles()
    ids = ov.Tensor(np.array([prompt], dtype=np.int64))
    result = pipeline.generate(ids, config, streamer)
    sizes.append([size - 1 for size in streamer.sizes[1:]])
    texts.append(list(result.tokens[0]))
sys.stdout.write("\n" + json.dumps({"sizes": sizes, "texts": texts}) + "\n")
