"""A policy of `PolicyWeights` that decides within the decoding loop's own calls."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from eaglerl.eagle3.draft import Eagle3DraftHead
from eaglerl.eagle3.params import CycleState, TreeParams
from eaglerl.ops import ActionCache, PolicyWeights, fused_encode
from eaglerl.ops.action_cache import SKETCH_SIZE, CacheModeName
from eaglerl.ops.encoder import FusedEncoder

if TYPE_CHECKING:
    from eaglerl.eagle3.session import StepResult


class FusedPolicy:
    """Chooses the draft tree from the target's features of the last token.

    The features cross the draft head's FC once, for the draft and for the policy. A decision is
    kept in an `ActionCache`; on a device the loop learns it with the copy that says how many tokens
    were accepted, and waits for nothing else.

    Attributes:
        weights: the policy, of the head's features g (``mlp_input`` "features") or of the taps.
        cache: keeps its decisions; its ``stats()`` tell how often. Made when the policy is bound.
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
        self._cache_settings = {
            "interval": action_cache_steps,
            "mode": cache_mode,
            "threshold": threshold,
            "reference_size": weights.feature_size or SKETCH_SIZE,
            "horizon": weights.horizon,
        }
        self.cache = ActionCache(1, **self._cache_settings)
        self._steps = 0
        self._bound: BoundPolicy | None = None

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

    def bind(self, head: Eagle3DraftHead) -> BoundPolicy:
        """Prepare the policy for a draft head, on the head's device; once for each head in turn.

        Raises:
            ValueError: the policy reads features of another width, or an action is wider than the
                draft's vocabulary.
        """
        if self._bound is None or self._bound.head is not head:
            self._bound = BoundPolicy(self, head)
        return self._bound


class BoundPolicy:
    """A policy joined to the draft head whose features it reads."""

    def __init__(self, policy: FusedPolicy, head: Eagle3DraftHead) -> None:
        _check_fit(policy.weights, head)
        self._policy = policy
        self._device = head.fc.weight.device
        self._weights = policy.weights.to(self._device)
        if policy.cache.device != self._device:
            policy.cache = ActionCache(1, device=self._device, **policy._cache_settings)
        self._encoder: FusedEncoder | None = None
        if self._device.type == "cpu":
            self._row = torch.zeros(1, self._weights.mlp_in_features)
            self._encoder = FusedEncoder(
                self._weights,
                policy.cache,
                max_rows=1,
                temperature=policy.temperature,
                seed=policy.seed,
            )
        self._with_fc = None
        if self._device.type != "cpu" and self._weights.mlp_input == "features":
            self._with_fc = with_head(self._weights, head)
        self.head = head

    def decide(self, hidden: torch.Tensor, taps: torch.Tensor) -> TreeParams:
        """The decision for one sequence, known to the host.

        Args:
            hidden: (1, h) reduced features of the last accepted token.
            taps: (1, 3k) its target features.
        """
        features = hidden if self._weights.mlp_input == "features" else taps
        if self._encoder is None:
            out = fused_encode(features, None, None, self._weights, **self._options())
            return TreeParams(*out.params[0].cpu().tolist())
        # The encoder knows this buffer, and does not check it again.
        self._row.copy_(features)
        self._encoder.encode(self._row, offset=self._next_offset())
        return TreeParams(*self._encoder.params[0].tolist())

    def encode(
        self, features: torch.Tensor, rows: torch.Tensor, last: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Reduce the accepted rows and decide, on any device, without waiting for it.

        Args:
            features: (T, 3k) target features of a verification.
            rows: (P,) int64 accepted rows, in any padding.
            last: (1,) int64 which of them is the last accepted one.

        Returns:
            (P, h) reduced features and (1, 3) int32 parameters.
        """
        if self._with_fc is not None:
            arguments = {"rows": rows, "last": last, **self._options()}
            out = fused_encode(features, None, None, self._with_fc, **arguments)
            return out.features, out.params
        hidden = self.head.reduce(features[rows].to(self.head.fc.weight.dtype))
        if self._weights.mlp_input == "features":
            out = fused_encode(hidden[last], None, None, self._weights, **self._options())
        else:
            out = fused_encode(features, None, None, self._weights, rows=rows[last],
                               return_features=False, **self._options())  # fmt: skip
        return hidden, out.params

    def _options(self) -> dict[str, object]:
        policy = self._policy
        return {
            "cache": policy.cache,
            "temperature": policy.temperature,
            "seed": policy.seed,
            "offset": self._next_offset(),
        }

    def _next_offset(self) -> int:
        self._policy._steps += 1
        return self._policy._steps


def with_head(weights: PolicyWeights, head: Eagle3DraftHead) -> PolicyWeights:
    """Joins a policy of features with the FC and the norms of a draft head, in the head's dtype.

    Args:
        weights: the policy, without FC.
        head: the head; its tensors are shared, not copied, where they are contiguous.
    """
    norms = head.fc_norm if head.fc_norm is not None else [head.input_norm]
    scales = [norm.weight.detach().float() for norm in norms if norm is not None]
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
