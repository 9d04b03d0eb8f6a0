"""vLLM's side of comparisons and tests; runs in an environment of its own.

Argument: a JSON object with the options of vLLM's `LLM`. Reads tasks and writes answers, one JSON
object a line: {"prompts": lists of token ids, "sampling": options of `SamplingParams`, or one such
object for each prompt} gives {"tokens", "texts", "preemptions", "seconds", "metrics"}.

A task may have a "choice" as well, for an engine with eaglerl's plugin in this process: {"lengths":
chain length of every batch size, from 1 on, as in vLLM's schedule by batch size, or null,
"policy": the plugin's policy, or null for vLLM's own code}. It stays until the next.
"""

import json
import os
import sys
import time
from typing import Any

import prometheus_client
from vllm import LLM, SamplingParams
from vllm.sampling_params import StructuredOutputsParams


def params(options: dict[str, Any]) -> SamplingParams:
    """Make the parameters of a request."""
    given = dict(options)
    if "json" in given:
        given["structured_outputs"] = StructuredOutputsParams(json=given.pop("json"))
    return SamplingParams(**given)


def metrics() -> dict[str, float]:
    """Return the plugin's counts."""
    text = prometheus_client.generate_latest().decode()
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("eaglerl:")]
    return {name: float(value) for name, value in lines}


def choose(llm: LLM, lengths: list[int] | None, policy: str | None, kept: dict[str, Any]) -> None:
    """Change where the lengths of chains come from.

    Args:
        llm: an engine in this process.
        lengths: of every batch size; None for the longest.
        policy: of the plugin; None for vLLM's own code.
        kept: policies that were used before, with what they have learned.
    """
    from eaglerl_vllm.plugin import make_proposer
    from eaglerl_vllm.settings import Settings

    core = llm.llm_engine.engine_core.engine_core
    core.scheduler.dynamic_sd_lookup = None if lengths is None else [0, *lengths]
    if policy is not None and policy not in kept:
        kept[policy] = make_proposer(Settings(policy=policy), core.vllm_config)

    def change(worker: Any) -> None:
        worker.model_runner.drafter.eaglerl = None if policy is None else kept[policy]

    llm.collective_rpc(change)


def decode(llm: LLM, prompts: list[list[int]], sampling: Any) -> dict[str, Any]:
    """Decode all prompts, as many at a time as the engine takes."""
    several = (
        [params(each) for each in sampling] if isinstance(sampling, list) else params(sampling)
    )
    inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
    before = time.perf_counter()
    outputs = llm.generate(inputs, several, use_tqdm=False)
    seconds = time.perf_counter() - before
    preempted = [each.value for each in llm.get_metrics() if each.name == "vllm:num_preemptions"]
    return {
        "tokens": [list(output.outputs[0].token_ids) for output in outputs],
        "texts": [output.outputs[0].text for output in outputs],
        "preemptions": sum(preempted),
        "seconds": seconds,
        "metrics": metrics(),
    }


def main() -> None:
    """Answer tasks until there are no more."""
    # Results go to the stdout of the beginning; what libraries print goes to stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    llm = LLM(**json.loads(sys.argv[1]))
    kept: dict[str, Any] = {}
    for line in sys.stdin:
        task = json.loads(line)
        choice = task.pop("choice", None)
        if choice is not None:
            choose(llm, **choice, kept=kept)
        answers.write(json.dumps(decode(llm, **task)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
