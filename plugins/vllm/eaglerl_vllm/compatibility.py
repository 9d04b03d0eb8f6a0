"""Whether this vLLM, and what it was told to run, is what the plugin was written for."""

from __future__ import annotations

import inspect
from typing import Any

# What the patched methods take, in order. Another signature is another meaning.
SIGNATURES: dict[str, tuple[str, ...]] = {
    "EagleProposer.__init__": ("self", "vllm_config", "device", "runner"),
    "EagleProposer.propose": (
        "self", "num_speculative_tokens", "target_token_ids", "target_positions",
        "target_hidden_states", "next_token_ids", "token_indices_to_sample",
        "common_attn_metadata", "sampling_metadata", "mm_embed_inputs",
        "num_rejected_tokens_gpu", "slot_mappings",
    ),
    "EagleProposer._sample_draft_tokens": ("self", "hidden_states", "sampling_metadata"),
    "GPUModelRunner.propose_draft_token_ids": (
        "self", "scheduler_output", "sampled_token_ids", "sampling_metadata", "hidden_states",
        "sample_hidden_states", "aux_hidden_states", "spec_decode_metadata",
        "common_attn_metadata", "slot_mappings",
    ),
}  # fmt: skip


def changed_signatures(classes: dict[str, type]) -> list[str]:
    """Return what is different in the methods that would be patched.

    Args:
        classes: the classes by their names in `SIGNATURES`.
    """
    changed = []
    for name, expected in SIGNATURES.items():
        owner, method = name.split(".")
        found = getattr(classes[owner], method, None)
        if found is None:
            changed.append(f"{name} is missing")
            continue
        names = tuple(inspect.signature(found).parameters)
        if names != expected:
            changed.append(f"{name} takes {', '.join(names)}")
    return changed


def unsupported(config: Any) -> list[str]:
    """Return what in a `VllmConfig` the plugin cannot serve.

    Args:
        config: the configuration of a worker.
    """
    speculative = config.speculative_config
    if speculative is None:
        return ["there is no --speculative-config"]
    parallel, scheduler = config.parallel_config, config.scheduler_config
    found = []
    if config.use_v2_model_runner:
        found.append("the V2 model runner is in use; set VLLM_USE_V2_MODEL_RUNNER=0")
    if speculative.method != "eagle3":
        found.append(f"the speculative method is {speculative.method}, not eagle3")
    if scheduler.async_scheduling:
        found.append(
            "asynchronous scheduling keeps drafts on the device; add --no-async-scheduling"
        )
    sizes = {
        "tensor": parallel.tensor_parallel_size,
        "pipeline": parallel.pipeline_parallel_size,
        "data": parallel.data_parallel_size,
    }
    # Times differ between ranks, and so would their choices.
    found += [f"{kind}-parallel size is {size}" for kind, size in sizes.items() if size > 1]
    if scheduler.max_num_seqs > 1024:
        found.append(f"max_num_seqs is {scheduler.max_num_seqs}, more than 1024")
    if config.model_config.is_multimodal_model:
        found.append("the model takes more than text")
    for option in ("parallel_drafting", "use_heterogeneous_vocab", "use_local_argmax_reduction"):
        if getattr(speculative, option, False):
            found.append(f"{option} is set")
    return found
