"""What the cycles of one sequence leave behind for the next cycle."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from eaglerl.eagle3.accepted import Accepted
from eaglerl.eagle3.pending_rows import PendingRows
from eaglerl.eagle3.policy import CycleState, DraftLimits, StepResult, TreeParams
from eaglerl.eagle3.tree.prompt_lookup import NO_LOOKUP, ContextLookup, Lookup, common_length

#: Number of log-probabilities in `CycleState.confidence`.
_CONFIDENCES = 8


class SequenceState:
    """The text of one sequence, and what the next cycle needs of the cycles before it.

    Attributes:
        token_ids: prompt and tokens so far; the last one has no row in the target's cache yet.
        pending: rows that the draft has not processed.
        last_features: (3k,) target features of the last token that the target has processed.
        decision: the tree or limits that a `FusedPolicy` chose; None without one.
        first_logits: (Vd,) logits of the first draft pass in the last cycle that drafted.
    """

    def __init__(self, *, drafts: bool, on_device: bool = False) -> None:
        """Begin without a text.

        Args:
            drafts: whether a draft head will need the rows of the tokens.
            on_device: see `CycleState`.
        """
        self.token_ids: list[int] = []
        self.pending = PendingRows()
        self.last_features = torch.empty(0)
        self.decision: TreeParams | DraftLimits | None = None
        self.first_logits: torch.Tensor | None = None
        self._drafts = drafts
        self._on_device = on_device
        self._last: StepResult | None = None
        self._text: ContextLookup | None = None

    def begin(self, token_ids: list[int], features: torch.Tensor) -> None:
        """Begin with a prompt that was read.

        Args:
            token_ids: the n tokens of the prompt, and the first new one.
            features: (m, 3k) target features of the last m tokens of the prompt, those that the
                draft has not processed; kept, not copied.
        """
        self.token_ids = token_ids
        self._text = self.first_logits = None
        self.last_features = features[-1].clone()
        self.pending.clear()
        if self._drafts:
            after = torch.tensor(token_ids[-len(features) :]).to(features.device)
            self.pending.add(after, features, reduced=False)

    @property
    def cycle_state(self) -> CycleState:
        """The policy's input before the next cycle."""
        return CycleState(
            self.last_features,
            len(self.token_ids),
            self._last,
            self.decision,
            self._indexed_text,
            self._confidence,
            self._on_device,
        )

    def look_up(self, most_tokens: int) -> Lookup:
        """Look up at most `most_tokens` tokens in the text."""
        return self._indexed_text().propose(most_tokens) if most_tokens else NO_LOOKUP

    def keep(self, accepted: Accepted) -> None:
        """Append the tokens of a verification."""
        self.token_ids.extend(accepted.emitted)
        self.last_features = accepted.last_features
        self.decision = accepted.decision
        if self._drafts:
            self.pending.add(accepted.token_ids, accepted.features, reduced=accepted.reduced)

    def result(
        self,
        accepted: Accepted,
        rows: int,
        params: TreeParams,
        lookup: Lookup,
        seconds: Sequence[float],
        policy_seconds: float,
    ) -> StepResult:
        """Make the result of a cycle whose tokens are part of the text already.

        Args:
            accepted: what was accepted.
            rows: rows that the target verified.
            params: the head's part of the tree.
            lookup: the looked-up tokens.
            seconds: of the draft and of the verification.
            policy_seconds: see `StepResult`.
        """
        self._last = StepResult(
            token_ids=accepted.emitted,
            params=params,
            accepted=len(accepted.emitted) - 1,
            draft_seconds=seconds[0],
            verify_seconds=seconds[1],
            features=self.last_features,
            context_length=len(self.token_ids),
            lookup=lookup,
            lookup_accepted=common_length(lookup.token_ids, accepted.emitted[:-1]),
            rows=rows,
            policy_seconds=policy_seconds,
            accepted_rows=accepted.drafted_rows,
        )
        return self._last

    def _confidence(self) -> np.ndarray | None:
        """Compute `CycleState.confidence`."""
        if self.first_logits is None:
            return None
        log_probs = torch.log_softmax(self.first_logits.float(), dim=-1)
        return log_probs.topk(min(_CONFIDENCES, len(log_probs))).values.cpu().numpy()

    def _indexed_text(self) -> ContextLookup:
        """Return the index of the sequence, root included, with all new tokens added."""
        if self._text is None:
            self._text = ContextLookup()
        self._text.extend(self.token_ids[len(self._text) :])
        return self._text
