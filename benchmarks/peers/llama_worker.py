"""llama.cpp's side of `compare_peers.py`; runs in an environment of its own.

Reads one JSON object a line: the path of a GGUF file, token ids of a prompt, tokens to generate,
threads. Writes the new tokens and the seconds of prompt and decoding.
"""

import json
import sys
import time

from llama_cpp import Llama

models: dict[tuple[str, int], Llama] = {}


def answer(task: dict) -> dict:
    """Decode greedily; the model stays loaded for the next task."""
    key = task["model"], task["threads"]
    if key not in models:
        models[key] = Llama(
            model_path=task["model"],
            n_ctx=2048,
            n_threads=task["threads"],
            n_threads_batch=task["threads"],
            verbose=False,
        )
    model = models[key]
    model.reset()
    started = time.perf_counter()
    tokens: list[int] = []
    first = started
    for token in model.generate(task["prompt"], temp=0.0, top_k=1, repeat_penalty=1.0):
        if not tokens:
            first = time.perf_counter()
        tokens.append(token)
        if len(tokens) == task["count"] or token in task["stop"]:
            break
    ended = time.perf_counter()
    return {"tokens": tokens, "prompt_seconds": first - started, "decode_seconds": ended - first}


for line in sys.stdin:
    sys.stdout.write(json.dumps(answer(json.loads(line))) + "\n")
    sys.stdout.flush()
