"""The policy that learns while decoding which candidates the target accepts."""

from __future__ import annotations

import copy

from eaglerl._ext import C
from eaglerl.cost.cost_table import CostTable
from eaglerl.eagle3.policy import (
    CycleState,
    DraftPlan,
    DraftProgress,
    Selection,
    StepResult,
    TreeParams,
)

#: Largest draft of the policies that learn while decoding. Trees of more levels gained nothing on
#: the recorded traces.
DEFAULT_LIMIT = TreeParams(32, 5, 4)


class OnlinePolicy:
    """A policy that drafts and verifies while it is worth the cost, and needs no training.

    A candidate's survival is the probability that the target accepts it and all its ancestors. It
    is predicted by two logistic regressions, which begin by believing the draft's own probabilities
    and learn from every verified candidate (Platt 1999, with one Newton step a label):

    - a candidate of the draft: the logit of the draft's cumulative probability, and whether prompt
      lookup proposes the same or another token, with the length of its match and the running
      success of lookups;
    - a looked-up token that the draft did not propose, given that the one before is accepted: its
      level, the length of the match, the running success, and the draft's confidence in its best
      token.

    The candidates that maximise expected tokens - rate * seconds are verified. Another round is
    drafted if what its best candidates are expected to add is worth more than the pass. How often
    they survive beside those of the round before, and how much of the expected gain comes true, is
    learned as well. The rate is that of the last 1,000 cycles, by the cost table.

    Attributes:
        cost: cost table of this machine.
        limit: the largest tree; every draft has its width.
        lookup_tokens: most looked-up tokens to verify.
    """

    def __init__(
        self,
        cost: CostTable,
        *,
        limit: TreeParams = DEFAULT_LIMIT,
        lookup_tokens: int = 12,
    ) -> None:
        """Set up.

        Args:
            cost: duration of the cycles on this machine.
            limit: the largest tree to draft.
            lookup_tokens: most tokens of prompt lookup to verify; 0 for none.

        Raises:
            ValueError: the cost table lacks the width or the rows of `limit`, `limit` drafts
                nothing, or `lookup_tokens` is negative.
        """
        self.cost = cost
        self._begin(limit, lookup_tokens, float(cost.verify_seconds(1, 0)))

    def _begin(self, limit: TreeParams, lookup_tokens: int, plain_seconds: float) -> None:
        if limit.total_tokens == 1:
            raise ValueError("limit must draft at least one node, got total_tokens=1")
        self.limit = limit
        self.lookup_tokens = lookup_tokens
        self._plan = DraftPlan(limit, lookup_tokens)
        self._shared = C.OnlineAcceptance(limit.depth, plain_seconds)
        self._cycle = self._new_cycle()
        self.reset()

    def fork(self) -> OnlinePolicy:
        """Return the same policy for another concurrent sequence; both learn together."""
        other = copy.copy(self)
        other._separate()
        other.reset()
        return other

    def _separate(self) -> None:
        """Replace what forks do not share, in a copy of another policy."""
        self._cycle = self._new_cycle()

    @property
    def rate(self) -> float:
        """Tokens per second of the last 1,000 cycles, by the cost table."""
        return self._shared.rate

    def reset(self) -> None:
        """Begin a sequence: forget its lookups; what was learned stays."""
        self._cycle.reset()
        self._seen: DraftProgress | None = None
        self._continues = False

    def choose(self, state: CycleState) -> DraftPlan:
        """Return the largest tree and the most looked-up tokens that the policy may end with."""
        self._seen = None
        self._cycle.begin()
        return self._plan

    def observe(self, result: StepResult) -> None:
        """Learn from the verified candidates, and from the success of the lookup."""
        # Without `select` the tree was another's: there was no room for a draft at the end.
        if self._cycle.selected:
            self._cycle.observe(result.accepted_rows, len(result.token_ids))
        lookup = result.lookup
        if lookup.match_length:
            self._cycle.count_lookup(lookup.token_ids[0] == result.token_ids[0])

    def should_continue(self, progress: DraftProgress) -> bool:
        """Return whether another round promises more than it costs."""
        self._look_at(progress)
        return self._continues

    def select(self, progress: DraftProgress) -> Selection:
        """Return the most probable candidates, as many as are worth verifying."""
        self._look_at(progress)
        return Selection(*self._cycle.select())

    def choose_total_tokens(self, progress: DraftProgress) -> int:
        """Return the number of rows that `select` verifies."""
        return self.select(progress).choose_total_tokens(progress)

    @property
    def native_cycle(self) -> C.OnlineCycle | None:
        """What decides between the passes, natively; None if that is overridden."""
        names = ("should_continue", "select")
        own = all(getattr(type(self), name) is getattr(OnlinePolicy, name) for name in names)
        return self._cycle if own and not vars(self).keys() & set(names) else None

    def _look_at(self, progress: DraftProgress) -> None:
        if self._seen is progress:
            return
        lookup = progress.lookup
        self._continues = self._cycle.score(
            progress.scores,
            progress.depth,
            progress.context_length,
            lookup.match_length,
            len(lookup.token_ids),
            progress.lookup_nodes,
        )
        self._seen = progress

    def _new_cycle(self) -> C.OnlineCycle:
        limit = self.limit
        return C.OnlineCycle(
            self._shared,
            limit.top_k,
            limit.depth,
            limit.total_tokens,
            self.lookup_tokens,
            *self.cost.verify_lines(limit.total_tokens),
            *self.cost.draft_passes(limit.top_k),
        )


def limit_for(draft_vocab_size: int) -> TreeParams:
    """Return `DEFAULT_LIMIT`, or the largest tree within it of a head that drafts fewer tokens.

    Args:
        draft_vocab_size: number of tokens that the head can draft.
    """
    rows, depth, most = DEFAULT_LIMIT.total_tokens, DEFAULT_LIMIT.depth, DEFAULT_LIMIT.top_k
    width = min(most, draft_vocab_size)
    return TreeParams(min(rows, 1 + width + depth * width**2), depth, width)
