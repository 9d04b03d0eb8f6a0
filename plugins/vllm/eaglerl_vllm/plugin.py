"""The entry point: patches vLLM where it drafts, if it is the version that is known."""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable
from typing import Any

import torch

from eaglerl_vllm.compatibility import changed_signatures, unsupported
from eaglerl_vllm.expanded_settings import repair_expansion
from eaglerl_vllm.settings import Settings, read_settings

# Under vLLM's own logger, whose level and format the user has set.
log = logging.getLogger("vllm.eaglerl")
_MARK = "_eaglerl_patched"


def register() -> None:
    """Wait for a worker whose configuration turns the plugin on; vLLM calls this everywhere."""
    from vllm.v1.worker.worker_base import WorkerBase

    from eaglerl_vllm.metrics import share_folder

    if getattr(WorkerBase, _MARK, False):
        return
    share_folder()
    _register_metrics()
    original = WorkerBase.__init__

    @functools.wraps(original)
    def init(self: Any, vllm_config: Any, *args: Any, **options: Any) -> None:
        original(self, vllm_config, *args, **options)
        if read_settings(vllm_config.additional_config) is not None:
            _activate(vllm_config)

    WorkerBase.__init__ = init
    setattr(WorkerBase, _MARK, True)


def _register_metrics() -> None:
    import prometheus_client

    from eaglerl_vllm.metrics import Collector

    prometheus_client.REGISTRY.register(Collector())


def _activate(config: Any) -> None:
    """Patch vLLM, or say once why not."""
    problems = unsupported(config)
    if not problems:
        classes = _classes()
        problems = (
            changed_signatures(classes)
            if classes is not None
            else ["vLLM's EAGLE proposer is not where it was"]
        )
        if not problems:
            _patch(classes["EagleProposer"], classes["GPUModelRunner"])
            repair_expansion(torch.device(config.device_config.device_type))
            return
    log.warning("eaglerl is off, and vLLM drafts as it does without: %s", "; ".join(problems))


def _classes() -> dict[str, type] | None:
    try:
        eagle = importlib.import_module("vllm.v1.spec_decode.eagle")
        runner = importlib.import_module("vllm.v1.worker.gpu_model_runner")
        return {"EagleProposer": eagle.EagleProposer, "GPUModelRunner": runner.GPUModelRunner}
    except (ImportError, AttributeError):
        return None


def _patch(proposer: Any, runner: Any) -> None:
    if getattr(proposer, _MARK, False):
        return
    setattr(proposer, _MARK, True)
    proposer.__init__ = _init(proposer.__init__)
    proposer.propose = _propose(proposer.propose)
    proposer._sample_draft_tokens = _sample_draft_tokens(proposer._sample_draft_tokens)
    runner.propose_draft_token_ids = _propose_draft_token_ids(runner.propose_draft_token_ids)


def _init(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def init(self: Any, vllm_config: Any, device: Any, runner: Any = None) -> None:
        original(self, vllm_config, device, runner)
        settings = read_settings(vllm_config.additional_config)
        # Another engine of the same process may be one that is not supported.
        self.eaglerl = None
        if settings is not None and not unsupported(vllm_config):
            self.eaglerl = make_proposer(settings, vllm_config)

    return init


def make_proposer(settings: Settings, config: Any) -> Any:
    """Return what chooses for a vLLM configuration, an `AdaptiveProposer`.

    Args:
        settings: the plugin's settings.
        config: a `VllmConfig`.

    Raises:
        ValueError: the settings do not fit vLLM's.
    """
    from eaglerl_vllm.adaptive_proposer import AdaptiveProposer
    from eaglerl_vllm.cost_file import CostFile
    from eaglerl_vllm.make_policy import make_policy
    from eaglerl_vllm.statistics import Statistics
    from eaglerl_vllm.step_log import StepLog

    slots = config.scheduler_config.max_num_seqs
    tokens = config.speculative_config.num_speculative_tokens
    cache = config.cache_config
    policy = make_policy(settings, slots, tokens)
    if config.speculative_config.draft_sample_method == "probabilistic":
        log.warning(
            "eaglerl drafts the most probable tokens, not drawn ones as draft_sample_method says: "
            "a choice among those would change the distribution of the text"
        )
    keeps = settings.costs is not None and settings.policy == "auto"
    log.info("eaglerl chooses chains of up to %d tokens: policy %s", tokens, settings.policy)
    return AdaptiveProposer(
        policy,
        slots,
        tokens,
        most_rows=config.scheduler_config.max_num_batched_tokens,
        shared_block=cache.block_size if cache.enable_prefix_caching else None,
        statistics=Statistics(),
        step_log=StepLog(settings.step_log) if settings.step_log else None,
        cost_file=CostFile(policy.cost, settings.costs) if keeps else None,
    )


def _propose_draft_token_ids(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def propose(self: Any, scheduler_output: Any, sampled_token_ids: Any, *args: Any) -> Any:
        adaptive = getattr(self.drafter, "eaglerl", None)
        if adaptive is None:
            return original(self, scheduler_output, sampled_token_ids, *args)
        adaptive.begin(self, scheduler_output, sampled_token_ids)
        original(self, scheduler_output, sampled_token_ids, *args)
        return adaptive.finish()

    return propose


def _propose(original: Callable[..., Any]) -> Callable[..., Any]:
    from eaglerl_vllm.adaptive_proposer import StopDraftingError
    from eaglerl_vllm.unread_rows import Rows

    @functools.wraps(original)
    def propose(
        self: Any,
        num_speculative_tokens: int,
        target_token_ids: Any,
        target_positions: Any,
        target_hidden_states: Any,
        next_token_ids: Any,
        token_indices_to_sample: Any,
        common_attn_metadata: Any,
        sampling_metadata: Any,
        mm_embed_inputs: Any = None,
        num_rejected_tokens_gpu: Any = None,
        slot_mappings: Any = None,
    ) -> Any:
        adaptive = self.eaglerl
        rows = Rows(
            target_token_ids, target_positions, target_hidden_states, token_indices_to_sample,
            common_attn_metadata,
        )  # fmt: skip
        if adaptive is not None and adaptive.working:
            read = adaptive.rows_to_read(rows, num_rejected_tokens_gpu, self.block_size)
            if read is None:
                adaptive.select()
                self._last_draft_probs = None
                return torch.empty(len(next_token_ids), 0, dtype=torch.int64)
            rows = read
        try:
            drafted = original(
                self, num_speculative_tokens, rows.token_ids, rows.positions, rows.hidden_states,
                next_token_ids, rows.last, rows.metadata, sampling_metadata, mm_embed_inputs,
                num_rejected_tokens_gpu, slot_mappings,
            )  # fmt: skip
        except StopDraftingError:
            drafted = torch.empty(len(next_token_ids), 0, dtype=torch.int64)
        if adaptive is not None and adaptive.working:
            adaptive.select()
        return drafted

    return propose


def _sample_draft_tokens(original: Callable[..., Any]) -> Callable[..., Any]:
    from eaglerl_vllm.adaptive_proposer import StopDraftingError
    from eaglerl_vllm.draft_tokens import draft_tokens

    @functools.wraps(original)
    def sample(self: Any, hidden_states: Any, sampling_metadata: Any) -> Any:
        adaptive = self.eaglerl
        if adaptive is None or not adaptive.working:
            return original(self, hidden_states, sampling_metadata)
        if not adaptive.drafting:
            # The head has read the prompt; nothing is to be drafted.
            raise StopDraftingError
        drafted = draft_tokens(self, hidden_states)
        adaptive.look(drafted)
        return drafted.token_ids, None

    return sample
