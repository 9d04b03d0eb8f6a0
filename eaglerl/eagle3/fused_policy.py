"""A policy of `PolicyWeights` that decides within the decoding loop's own calls."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from eaglerl.eagle3.head.draft_head import Eagle3DraftHead, RMSNorm
from eaglerl.eagle3.policy import CycleState, StepResult, TreeParams
from eaglerl.ops import ActionCache, PolicyWeights, fused_encode
from eaglerl.ops.action_cache import SKETCH_SIZE, CacheModeName
from eaglerl.ops.encoder import FusedEncoder

# Accepted rows of one cycle: the levels of the deepest tree, or of the longest chain.
_MOST_ROWS = 512


class FusedPolicy:
    """Chooses the draft tree from the target's features of the last token.

    The features cross the draft head's FC once, for the draft and for the policy. A decision is
    kept in an `ActionCache`; on a device the loop learns it with the copy that says how many tokens
    were accepted, and waits for nothing else.

    Attributes:
        weights: the policy, of the reduced features g (``mlp_input`` "features") or of the target's
            low, mid and high features ("taps").
        cache: keeps its decisions; its ``stats()`` tell how often, of a fork's cycles not. Made
            when the policy is bound.
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
            weights: the policy. It holds no FC: the draft head has it.
            action_cache_steps: cycles that a decision serves; 1 decides at every cycle.
            cache_mode: see `ActionCache`.
            threshold: see `ActionCache`.
            temperature: 0 takes the best action; above, actions are drawn.
            seed: of the draws.

        Raises:
            ValueError: `weights` hold a FC, or an action that is no tree.
        """
        if weights.fc_weight is not None:
            raise ValueError(
                "weights must hold no fc_weight: the decoder's own draft head reduces the features"
            )
        for action, bins in enumerate(weights.bins.cpu().tolist()):
            try:
                TreeParams(*bins)
            except ValueError as error:
                raise ValueError(f"weights.bins[{action}] is no tree: {error}") from error
        self.weights = weights
        self.temperature = temperature
        self.seed = seed
        self._new_cache = partial(
            ActionCache,
            1,
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

    def fork(self) -> FusedPolicy:
        """The same policy with a cache of its own, for a sequence beside the one at work.

        Its draws differ from this one's.
        """
        self._forks += 1
        other = copy.copy(self)
        other.seed = self.seed + self._forks
        other.cache = self._new_cache()
        other._steps, other._bound = 0, None
        return other

    def reset(self) -> None:
        """Forget the sequence before. The cache's counters go on."""
        self.cache.invalidate()

    def choose(self, state: CycleState) -> TreeParams:
        """The tree that was decided when the last token was accepted.

        Raises:
            ValueError: the session was not made for this policy, so nothing was decided.
        """
        if state.decision is None:
            raise ValueError(
                "state.decision is missing: a FusedPolicy decides inside the session, which must "
                "be made with it (decoder.generate and decoder.new_session do)"
            )
        return state.decision

    def observe(self, result: StepResult) -> None:
        """Nothing to learn."""

    def bind(
        self, head: Eagle3DraftHead, reduce: Callable[[torch.Tensor], torch.Tensor]
    ) -> BoundPolicy:
        """Prepare the policy for a draft head, on the head's device; once for each head in turn.

        Args:
            head: the head whose features it reads.
            reduce: the head's FC as its runner has it, (R, 3k) to (R, h); used where the policy
                reads the target's features themselves.

        Raises:
            ValueError: the policy reads features of another width, or an action is wider than the
                draft's vocabulary.
        """
        if self._bound is None or self._bound.head is not head:
            self._bound = BoundPolicy(self, head, reduce)
        return self._bound


class BoundPolicy:
    """A policy joined to the draft head whose features it reads.

    Attributes:
        reduce_seconds: what the draft's features took of the last `encode`, on the host's clock; 0
            where one launch on a device makes them.
    """

    def __init__(
        self,
        policy: FusedPolicy,
        head: Eagle3DraftHead,
        reduce: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        _check_fit(policy.weights, head)
        device = head.fc.weight.device
        if policy.cache.device != device:
            policy.cache = policy._new_cache(device=device)
        self._policy = policy
        self._reduces = policy.weights.mlp_input == "features"
        weights = policy.weights.to(device)
        self._weights = with_head(weights, head) if self._reduces else weights
        self._reduce = reduce
        self._encoder: FusedEncoder | None = None
        self.reduce_seconds = 0.0
        if device.type == "cpu":
            self._encoder = FusedEncoder(
                self._weights,
                policy.cache,
                max_rows=_MOST_ROWS,
                temperature=policy.temperature,
                seed=policy.seed,
                return_features=self._reduces,
            )
        self.head = head

    def encode(
        self, features: torch.Tensor, rows: torch.Tensor, last: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Reduce the accepted rows and decide, in one call, without waiting for a device.

        Args:
            features: (T, 3k) target features of a verification.
            rows: (P,) int64 accepted rows, in any padding.
            last: (1,) int64 which of them is the last accepted one.

        Returns:
            (P, h) reduced features and (1, 3) int32 parameters.
        """
        policy = self._policy
        policy._steps += 1
        if self._encoder is not None:
            self._encoder.encode(features, rows=rows, last=last, offset=policy._steps)
            hidden, params = self._encoder.features, self._encoder.params
            # The next call overwrites them, and the draft may not have asked for them by then.
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
        if hidden is None:
            started = time.perf_counter()
            hidden = self._reduce(features[rows])
            self.reduce_seconds = time.perf_counter() - started
        return hidden, params


def with_head(weights: PolicyWeights, head: Eagle3DraftHead) -> PolicyWeights:
    """Joins a policy of features with the FC and the norms of a draft head, in the head's dtype.

    Args:
        weights: the policy, without FC.
        head: the head; its tensors are shared, not copied, where they are contiguous.
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
    width, given = 3 * config.feature_hidden_size, weights.taps_size
    if weights.mlp_input == "features":
        width, given = config.hidden_size, weights.feature_size
    if given != width:
        raise ValueError(
            f"the policy reads {weights.mlp_input} of width {given}, the draft head has {width}"
        )
    widest = int(weights.bins[:, 2].max())
    if widest > config.draft_vocab_size:
        raise ValueError(
            f"the policy has an action with top_k={widest}, the draft's vocabulary has "
            f"{config.draft_vocab_size} tokens"
        )
