"""Making of runners from the requested modes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from eaglerl.eagle3.batch.batch_policy import BatchPolicy
from eaglerl.eagle3.batch.fused_slots import FusedSlots
from eaglerl.eagle3.batch.per_slot_policies import PerSlotPolicies
from eaglerl.eagle3.decoder import SpeculativeDecoder
from eaglerl.eagle3.fused_policy import FusedPolicy
from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.eagle3.policy import TreeParams, TreePolicy
from eaglerl.eagle3.target.target_files import load_transformers_model
from eaglerl.evaluation.modes.baseline_modes import BASELINES, BaselineInputs, make_baseline
from eaglerl.evaluation.modes.batch_runner import BatchRunner
from eaglerl.evaluation.modes.mode_names import POLICY_KINDS, ModeSpec, constant_tree
from eaglerl.evaluation.modes.policy_modes import find_policy, load_live_policy
from eaglerl.evaluation.modes.runners import (
    DecoderRunner,
    Decoding,
    Runner,
    TransformersRunner,
)
from eaglerl.evaluation.modes.split_policies import SplitPolicies, check_for_batch
from eaglerl.policies.auto_policy import make_auto_policy
from eaglerl.policies.batch_auto import BatchAutoPolicy
from eaglerl.policies.online_policy import limit_for

#: Kinds of mode whose tree is chosen by a pass before the comparison.
SELECTED_KINDS = ("tuned", "hindsight")
#: Most looked-up tokens of the kinds that learn costs and acceptance while decoding.
AUTO_LOOKUPS = {"auto": 12, "auto-trees": 0}


@dataclass(frozen=True)
class Resources:
    """What runners are made from.

    Attributes:
        decoder: decoder of all modes but ``generate``.
        target: folder of the target.
        decoding: settings of decoding.
        inputs: inputs of the baselines.
        target_id: fingerprint of the target.
        head_id: fingerprint of the head.
        selection_ids: ids of the questions that a tree is chosen on, by kind of mode.
        longest: tokens of the longest conversation that is decoded, answers included.
    """

    decoder: SpeculativeDecoder
    target: Path
    decoding: Decoding
    inputs: BaselineInputs
    target_id: str
    head_id: str
    selection_ids: Mapping[str, Sequence[str]] = field(default_factory=dict)
    longest: int = 0

    @cached_property
    def transformers_model(self) -> Any:
        """The target as transformers runs it, with the decoder's dtype and device."""
        target = self.decoder.target
        on_cpu = target.device.type == "cpu"
        dtype = torch.float32 if on_cpu else target.embed_tokens.dtype
        model: Any = load_transformers_model(self.target, dtype)
        return model.to(target.device)


def make_runner(
    mode: ModeSpec, resources: Resources, trees: Mapping[str, TreeParams] | None = None
) -> Runner | BatchRunner:
    """Make the runner of a mode.

    Args:
        mode: the mode.
        resources: what it is made from.
        trees: for a kind whose tree is chosen, the tree of each split.

    Raises:
        ValueError: its policy belongs to another head or cannot decide for several sequences, the
            target is not on the CPU, or an input is missing.
    """
    decoder = resources.decoder
    if mode.concurrency > 1:
        policies = _batch_policies(mode, resources, trees)
        return BatchRunner(decoder, mode.concurrency, resources.longest, policies)
    if mode.kind == "generate":
        return TransformersRunner(resources.transformers_model)
    if mode.kind in SELECTED_KINDS:
        return DecoderRunner(decoder, dict(trees or {}))
    if mode.kind in AUTO_LOOKUPS:
        vocab_size = _head_of(decoder).config.draft_vocab_size
        lookup_tokens = AUTO_LOOKUPS[mode.kind]
        return DecoderRunner(decoder, make_auto_policy(vocab_size, lookup_tokens=lookup_tokens))
    policy, counter = _policy_of_one(mode, resources)
    return DecoderRunner(decoder, policy, counter)


def _batch_policies(
    mode: ModeSpec, resources: Resources, trees: Mapping[str, TreeParams] | None
) -> BatchPolicy:
    """Make what decides for several sequences."""
    if mode.kind in SELECTED_KINDS:
        return SplitPolicies(dict(trees or {}))
    if mode.kind in AUTO_LOOKUPS:
        limit = limit_for(_head_of(resources.decoder).config.draft_vocab_size)
        lookup_tokens = AUTO_LOOKUPS[mode.kind]
        return BatchAutoPolicy(mode.concurrency, limit=limit, lookup_tokens=lookup_tokens)
    policy, _ = _policy_of_one(mode, resources)
    if isinstance(policy, FusedPolicy):
        decoder = resources.decoder
        assert decoder.draft_runner is not None  # as there is a head
        reduce = decoder.draft_runner.reduce
        return FusedSlots(policy, mode.concurrency, _head_of(decoder), reduce)
    check_for_batch(policy, mode.label)
    return PerSlotPolicies(policy)


def _policy_of_one(mode: ModeSpec, resources: Resources) -> tuple[TreeParams | TreePolicy, Any]:
    """Make the policy of one sequence, and what counts its cached decisions."""
    tree = constant_tree(mode)
    if tree is not None:
        return tree, None
    if mode.kind == "baseline":
        return make_baseline(mode.argument, resources.inputs), None
    return load_live_policy(
        find_policy(Path(mode.argument)),
        resources.decoder,
        kind=mode.kind,
        seed=resources.inputs.seed,
    )


def _head_of(decoder: SpeculativeDecoder) -> Eagle3DraftHead:
    assert decoder.draft_head is not None  # checked before
    return decoder.draft_head


def mode_fingerprint(mode: ModeSpec, resources: Resources) -> str | None:
    """Return a fingerprint of what a mode is made from, or None if its spec says it all."""
    inputs = resources.inputs
    parts: list[Any] = []
    needs: Sequence[str] = mode.needs
    if mode.kind in POLICY_KINDS:
        parts.append(find_policy(Path(mode.argument)).fingerprint)
    if mode.kind in SELECTED_KINDS:
        parts += [_trees(inputs.grid), list(resources.selection_ids[mode.kind])]
    if mode.kind == "baseline":
        needs = BASELINES[mode.argument].needs
        parts += [_trees(inputs.actions), _trees(inputs.grid), inputs.seed]
    if mode.kind == "baseline" and "cost" in needs:
        # `compare` has checked what a mode needs.
        assert inputs.cost is not None
        parts.append(asdict(inputs.cost))
    if "traces" in needs:
        parts.append(sorted(trace.prompt_id for trace in inputs.traces))
    if not parts:
        return None
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _trees(trees: Sequence[TreeParams]) -> list[list[int]]:
    return [[tree.total_tokens, tree.depth, tree.top_k] for tree in trees]
