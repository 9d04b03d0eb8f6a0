"""OpenVINO GenAI's side of the comparison; runs in an environment of its own.

Arguments: the folder with the models, threads, id of the end token. Reads tasks and writes answers,
one JSON object a line. A pipeline stays loaded.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai

# As in OpenVINO's sample of prompt lookup.
_LOOKUP = {"num_assistant_tokens": 5, "max_ngram_size": 3}
_F32 = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}

folder, threads, end = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
pipelines: dict[tuple[str, str], genai.LLMPipeline] = {}


def pipeline(weights: str, drafts: str) -> genai.LLMPipeline:
    """Load a pipeline; "f32" and "default" are one model in two precisions of inference."""
    key = weights, drafts
    if key not in pipelines:
        scheduler = genai.SchedulerConfig()
        # On by default, and a prompt that is repeated would be free.
        scheduler.enable_prefix_caching = False
        model = "f32" if weights == "default" else weights
        pipelines[key] = genai.LLMPipeline(
            folder / f"openvino-{model}",
            "CPU",
            scheduler_config=scheduler,
            INFERENCE_NUM_THREADS=threads,
            **(_F32 if weights == "f32" else {}),
            **({"prompt_lookup": True} if drafts == "lookup" else {}),
        )
    return pipelines[key]


def decode(weights: str, drafts: str, prompt: list[int], count: int) -> dict[str, Any]:
    """Decode greedily. The time of the first token is the prompt's."""
    settings = {"max_new_tokens": count, "do_sample": False, "eos_token_id": end}
    config = genai.GenerationConfig(**settings, **(_LOOKUP if drafts == "lookup" else {}))
    ids = ov.Tensor(np.array([prompt], dtype=np.int64))
    result = pipeline(weights, drafts).generate(ids, config)
    first = result.perf_metrics.get_ttft().mean
    whole = result.perf_metrics.get_generate_duration().mean
    return {
        "tokens": list(result.tokens[0]),
        "prompt_tokens": 1,
        "prompt_seconds": first / 1e3,
        "decode_seconds": (whole - first) / 1e3,
    }


for line in sys.stdin:
    sys.stdout.write(json.dumps(decode(**json.loads(line))) + "\n")
    sys.stdout.flush()
