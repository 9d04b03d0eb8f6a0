"""eaglerl's side of the comparison: reads tasks and writes answers, one JSON object a line."""

from __future__ import annotations

import functools
import json
import sys
import time
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from eaglerl import SpeculativeDecoder, TreeParams
from eaglerl.eagle3 import NO_DRAFT
from eaglerl.eagle3.layers.row_batch import RowBatch
from eaglerl.prepare import default_draft_path, prepare_model

# From this many rows on a pass is part of a prompt: in chunks, with the logits of its last row.
_PROMPT_ROWS = 512
_BANDWIDTH_BYTES, _BANDWIDTH_REPEATS = 1 << 30, 10


@functools.cache
def decoder(precision: str) -> SpeculativeDecoder:
    """Load the packaged model and its head."""
    return SpeculativeDecoder.from_pretrained(
        prepare_model(),
        default_draft_path(),
        precision=precision,
        # What the processor's bfloat16 products take as they are.
        weights="bf16" if precision == "bfloat16" else "stored",
    )


def load(precision: str) -> dict[str, Any]:
    """Load a precision; say so if it is refused."""
    try:
        decoder(precision)
    except ValueError as error:
        return {"refused": str(error)}
    return {}


def decode(precision: str, drafts: str, prompt: list[int], count: int) -> dict[str, Any]:
    """Decode greedily. The first token is the end of the prompt's time."""
    chosen: Any
    if drafts == "policy":
        # One for all answers, which learns from each.
        chosen = "auto"
    else:
        chosen = NO_DRAFT if drafts == "plain" else TreeParams.from_text(drafts)
    ids = torch.tensor([prompt])
    started = time.perf_counter()
    with decoder(precision).start(ids, chosen, max_new_tokens=count) as generation:
        generation.advance()
        first = time.perf_counter()
        already = len(generation.new_ids)
        generation.run()
        ended = time.perf_counter()
        tokens = list(generation.new_ids)
    return {
        "tokens": tokens,
        "prompt_tokens": already,
        "prompt_seconds": first - started,
        "decode_seconds": ended - first,
    }


@torch.inference_mode()
def time_passes(precision: str, rows: int, repeats: int) -> dict[str, Any]:
    """Time whole passes of the target: of consecutive tokens, with an empty cache."""
    target = decoder(precision).target
    cache = target.new_cache(rows)
    # Not committed: every pass writes the same rows again.
    ids = torch.arange(rows) * 7919 % target.vocab_size
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        if rows < _PROMPT_ROWS:
            target.forward(RowBatch.causal(ids, 0), cache)
        else:
            for start in range(0, rows, target.chunk_size):
                chunk = ids[start : start + target.chunk_size]
                last = start + len(chunk) == rows
                target.forward(RowBatch.causal(chunk, start), cache, "last" if last else "none")
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds[1:]}


def bandwidth() -> dict[str, Any]:
    """Return the best bytes per second at which all threads read 1 GiB of memory."""
    data = torch.ones(_BANDWIDTH_BYTES // 4)
    best = 0.0
    for read in (torch.sum, torch.max, lambda x: torch.dot(x, x)):
        for _ in range(_BANDWIDTH_REPEATS):
            started = time.perf_counter()
            read(data)
            best = max(best, _BANDWIDTH_BYTES / (time.perf_counter() - started))
    return {"bytes_per_second": best}


TASKS = {f.__name__: f for f in (load, decode, time_passes, bandwidth)}


def main(threads: int) -> None:
    """Answer until stdin ends."""
    torch.set_num_threads(threads)
    disable_progress_bar()
    for line in sys.stdin:
        task = json.loads(line)
        answer = TASKS[task.pop("do")](**task)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
