"""A policy that chooses the next tree in the call that reduces the draft's features."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from eaglerl._ext import C
from eaglerl.eagle3.head.draft_head import Eagle3DraftHead, RMSNorm
from eaglerl.eagle3.policy import (
    CycleState,
    DraftLimits,
    DraftPlan,
    StepResult,
    TreeParams,
    TreePolicy,
)
from eaglerl.ops import ActionCache, PolicyWeights, fused_encode
from eaglerl.ops.action_cache import SKETCH_SIZE, CacheModeName
from eaglerl.ops.encoder import FusedEncoder

# Most rows that one cycle accepts: bounds the depth of a tree, and the looked-up tokens.
_MOST_ROWS = 512


class FusedPolicy:
    """A policy of `PolicyWeights` that reads the target's features of the last token.

    The features pass through the draft head's FC once, for the draft and for the policy. Decisions
    are kept in an `ActionCache`. On a device the host learns the decision with the copy that says
    how many tokens were accepted, and waits for nothing else.

    Actions with ``lookup_tokens`` are plans: their total_tokens is that of the tree, and looked-up
    tokens are verified beside it. In a `LimitedPolicy` they are limits.

    Attributes:
        weights: the policy's weights. It reads the reduced features g (``mlp_input`` "features") or
            the target's low, mid and high features ("taps").
        cache: the action cache; its ``stats()`` count this policy's cycles, not those of forks.
            Binding the policy to a head on another device replaces it.
    """

    def __init__(
        self,
        weights: PolicyWeights,
        *,
        action_cache_steps: int = 10,
        cache_mode: CacheModeName = "fixed",
        threshold: float = 0.9,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Set up.

        Args:
            weights: the policy's weights, without an FC: that of the draft head is used.
            action_cache_steps: cycles that one decision serves; 1 decides in every cycle.
            cache_mode: see `ActionCache`.
            threshold: see `ActionCache`.
            temperature: 0 takes the best action; above 0, actions are drawn.
            seed: seed of the draws.

        Raises:
            ValueError: `weights` have an FC, or an action is no tree.
        """
        if weights.fc_weight is not None:
            raise ValueError(
                "weights must hold no fc_weight: the decoder's own draft head reduces the features"
            )
        for action, numbers in enumerate(weights.actions.cpu().tolist()):
            try:
                plan_of(decision_of(numbers))
            except ValueError as error:
                raise ValueError(f"weights.actions[{action}] is no tree: {error}") from error
        self.weights = weights
        self.temperature = temperature
        self.seed = seed
        self._new_cache = partial(
            ActionCache,
            interval=action_cache_steps,
            mode=cache_mode,
            threshold=threshold,
            reference_size=weights.feature_size or SKETCH_SIZE,
            horizon=weights.horizon,
        )
        self.cache = self._new_cache()
        self._steps = 0
        self._forks = 0
        self._bound: BoundPolicy | None = None

    def fork(self, slots: int = 1) -> FusedPolicy:
        """Return the same policy with its own action cache, for one more sequence or several.

        Its seed is another, so that its draws differ.

        Args:
            slots: sequences of the cache.
        """
        self._forks += 1
        other = copy.copy(self)
        other.seed = self.seed + self._forks
        other.cache = self._new_cache(slots)
        other._steps, other._bound = 0, None
        return other

    def reset(self) -> None:
        """Forget the previous sequence; the cache's counters continue."""
        self.cache.invalidate()

    def choose(self, state: CycleState) -> TreeParams | DraftPlan:
        """Return the tree or the plan that was chosen when the last token was accepted.

        Raises:
            ValueError: the session was not opened with this policy, so no tree was chosen.
        """
        if state.decision is None:
            raise ValueError(
                "state.decision is missing: a FusedPolicy decides inside the session, which must "
                "be made with it (decoder.generate and decoder.new_session do)"
            )
        return plan_of(state.decision)

    def observe(self, result: StepResult) -> None:
        """Do nothing: the policy is trained already."""

    def bind(
        self, head: Eagle3DraftHead, reduce: Callable[[torch.Tensor], torch.Tensor]
    ) -> BoundPolicy:
        """Prepare the policy for a draft head, on the head's device; keep the result for that head.

        Args:
            head: the head whose features the policy reads.
            reduce: the FC of the head's runner, (R, 3k) to (R, h); used if the policy reads the
                target's features, since its call then does not compute the draft's.

        Raises:
            ValueError: the policy reads features of another width, or an action's top_k is larger
                than the draft's vocabulary.
        """
        if self._bound is None or self._bound.head is not head:
            self._bound = BoundPolicy(self, head, reduce)
        return self._bound


class BoundPolicy:
    """A policy joined to the draft head whose features it reads.

    Attributes:
        head: the draft head.
        params: (S, 3 or 4) int32 the last choices of `encode`, if they are limits, in memory that
            stays; the policy's cache has S slots.
        reduce_seconds: time in the last `encode` that reduced the draft's features, on the host's
            clock; 0 if one launch on a device does both.
    """

    def __init__(
        self,
        policy: FusedPolicy,
        head: Eagle3DraftHead,
        reduce: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        """Join them; see `FusedPolicy.bind`."""
        _check_fit(policy.weights, head)
        device = head.fc.weight.device
        if policy.cache.device != device:
            policy.cache = policy._new_cache(policy.cache.slots, device=device)
        self._policy = policy
        self._reduces = policy.weights.mlp_input == "features"
        weights = policy.weights.to(device)
        self._weights = with_head(weights, head) if self._reduces else weights
        self._reduce = reduce
        columns = weights.action_columns
        slots = policy.cache.slots
        self.params = torch.zeros((slots, columns), dtype=torch.int32, device=device)
        self._encoder: FusedEncoder | None = None
        self.reduce_seconds = 0.0
        if device.type == "cpu":
            self._encoder = FusedEncoder(
                self._weights,
                policy.cache,
                max_rows=_MOST_ROWS,
                max_sequences=policy.cache.slots,
                temperature=policy.temperature,
                seed=policy.seed,
                return_features=self._reduces,
            )
        self.head = head

    @property
    def cache(self) -> ActionCache:
        """The policy's action cache."""
        return self._policy.cache

    @property
    def limits(self) -> torch.Tensor | None:
        """`params` as limits for `select_draft_nodes`; None without lookup_tokens."""
        return self.params if self.params.shape[1] == len(C.action_columns) else None

    @property
    def draws(self) -> bool:
        """Whether actions are drawn: then every call has a number of its own."""
        return self._policy.temperature > 0

    def encode_slots(
        self, features: torch.Tensor, last: torch.Tensor, slots: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Reduce the accepted rows of several sequences on the CPU and decide for each.

        Args:
            features: (R, 3k) target features, one sequence after another; where R exceeds 512, only
                the last ones of each are read.
            last: (S,) int64 last row of every sequence.
            slots: (S,) int64 distinct slots of the cache.

        Returns:
            (R, h) reduced features, or None if the policy reads the target's or R exceeds 512; and
            the chosen actions as (S, 3 or 4) int32.
        """
        assert self._encoder is not None, "slots are decoded on the CPU"
        policy = self._policy
        policy._steps += 1
        whole = len(features) <= _MOST_ROWS
        if not whole:
            features, last = features[last], torch.arange(len(last))
        self._encoder.encode(features, last=last, slots=slots, offset=policy._steps)
        self.reduce_seconds = self._encoder.reduce_seconds
        hidden = self._encoder.features
        params = self._encoder.params[: len(last)].clone()
        return None if hidden is None or not whole else hidden[: len(features)].clone(), params

    def encode(
        self, features: torch.Tensor, rows: torch.Tensor, last: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Reduce the accepted rows and decide, in one call, without waiting for a device.

        For the sequences of all slots of the policy's cache at once, one after another.

        Args:
            features: (T, 3k) target features of a verification.
            rows: (P,) int64 accepted rows, padded with any rows.
            last: (S,) int64 index in `rows` of the last accepted one of each sequence.

        Returns:
            (P, h) reduced features, and the chosen actions as (S, 3 or 4) int32.
        """
        policy = self._policy
        policy._steps += 1
        if self._encoder is not None:
            self._encoder.encode(features, rows=rows, last=last, offset=policy._steps)
            hidden, params = self._encoder.features, self._encoder.params
            # A copy: the next call overwrites the buffer, and a cycle that drafts nothing leaves
            # the rows pending until after it.
            hidden = None if hidden is None else hidden[: len(rows)].clone()
            self.reduce_seconds = self._encoder.reduce_seconds
        else:
            hidden, _, _, params = fused_encode(
                features,
                None,
                None,
                self._weights,
                rows=rows,
                last=last,
                cache=policy.cache,
                temperature=policy.temperature,
                seed=policy.seed,
                offset=policy._steps,
                return_features=self._reduces,
            )
        if self.limits is not None:
            # Where the next draft's launches read them.
            self.params.copy_(params)
        if hidden is None:
            started = time.perf_counter()
            hidden = self._reduce(features[rows])
            self.reduce_seconds = time.perf_counter() - started
        return hidden, params


def decision_of(numbers: Sequence[int]) -> TreeParams | DraftLimits:
    """Return the tree of an action's three numbers, or the limits of four.

    Raises:
        ValueError: three numbers are no tree.
    """
    return DraftLimits(*numbers) if len(numbers) > 3 else TreeParams(*numbers)


def plan_of(decision: TreeParams | DraftLimits) -> TreeParams | DraftPlan:
    """Return the tree, or the plan of the largest tree with all looked-up tokens beside it."""
    if isinstance(decision, TreeParams):
        return decision
    return DraftPlan(decision.tree, decision.lookup_tokens)


def fused_part(policy: TreeParams | TreePolicy | None) -> FusedPolicy | None:
    """Return the `FusedPolicy` that a session must bind: the policy itself, or its `limits`."""
    part = getattr(policy, "limits", policy)
    return part if isinstance(part, FusedPolicy) else None


def with_head(weights: PolicyWeights, head: Eagle3DraftHead) -> PolicyWeights:
    """Return a policy's weights with a draft head's FC and norms, in the head's dtype.

    Args:
        weights: the policy's weights, without an FC.
        head: the head; its contiguous tensors are shared, not copied.
    """
    norms = head.fc_norm if head.fc_norm is not None else [head.input_norm]
    scales = [norm.weight.detach().float() for norm in norms if isinstance(norm, RMSNorm)]
    fc_weight = head.fc.weight.detach()
    return replace(
        weights.to(fc_weight.device, fc_weight.dtype),
        fc_weight=fc_weight.contiguous(),
        norm_weight=torch.cat(scales) if scales else None,
        norm_chunks=len(scales),
        eps=head.config.rms_norm_eps,
    )


def _check_fit(weights: PolicyWeights, head: Eagle3DraftHead) -> None:
    config = head.config
    width, given = 3 * config.feature_hidden_size, weights.joined_size
    if weights.mlp_input == "features":
        width, given = config.hidden_size, weights.feature_size
    if given != width:
        raise ValueError(
            f"the policy reads {weights.mlp_input} of width {given}, the draft head has {width}"
        )
    widest = int(weights.actions[:, 2].max())
    if widest > config.draft_vocab_size:
        raise ValueError(
            f"the policy has an action with top_k={widest}, the draft's vocabulary has "
            f"{config.draft_vocab_size} tokens"
        )
