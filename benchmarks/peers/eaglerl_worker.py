"""eaglerl's side of `compare_peers.py`: the same protocol, with a precision and a tree."""

import json
import sys
import time

import torch
from transformers.utils.logging import disable_progress_bar

from eaglerl import SpeculativeDecoder, TreeParams, load_policy
from eaglerl.eagle3 import NO_DRAFT
from eaglerl.prepare import default_draft_path, default_policy_path, prepare_model

disable_progress_bar()
decoders: dict[str, SpeculativeDecoder] = {}


def answer(task: dict) -> dict:
    """Decode greedily; the decoder stays loaded for the next task."""
    torch.set_num_threads(task["threads"])
    precision = task["model"]
    if precision not in decoders:
        decoders[precision] = SpeculativeDecoder.from_pretrained(
            prepare_model(), default_draft_path(), precision=precision
        )
    decoder = decoders[precision]
    name = task["tree"]
    if name == "policy":
        policy = load_policy(default_policy_path(), decoder)
    else:
        policy = NO_DRAFT if name == "plain" else TreeParams.from_text(name)
    ids = torch.tensor([task["prompt"]])
    started = time.perf_counter()
    with decoder.start(ids, policy, max_new_tokens=task["count"]) as generation:
        generation.advance()
        first = time.perf_counter()
        generation.run()
        ended = time.perf_counter()
        tokens = list(generation.new_ids)
    return {"tokens": tokens, "prompt_seconds": first - started, "decode_seconds": ended - first}


for line in sys.stdin:
    sys.stdout.write(json.dumps(answer(json.loads(line))) + "\n")
    sys.stdout.flush()
