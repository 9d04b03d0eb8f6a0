"""One sequence of a batch, and its part of a cycle."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from eaglerl.eagle3.accepted import Accepted
from eaglerl.eagle3.cache.kv_cache import KVCache
from eaglerl.eagle3.cache.prefix_cache import BLOCK_ROWS
from eaglerl.eagle3.continuation import Continuation
from eaglerl.eagle3.head.cached_draft import CachedDraft
from eaglerl.eagle3.layers.row_batch import MOST_EXACT_ROWS
from eaglerl.eagle3.policy import NO_DRAFT, DraftPlan, StepResult, TreeParams
from eaglerl.eagle3.prompt_reader import PromptReader
from eaglerl.eagle3.sequence_state import SequenceState
from eaglerl.eagle3.stopping import StoppingRules
from eaglerl.eagle3.stopwatch import TotalTime
from eaglerl.eagle3.target.target_model import TargetModel
from eaglerl.eagle3.tree.prompt_lookup import NO_LOOKUP, Lookup
from eaglerl.eagle3.verifier import Verifier
from eaglerl.ops import DraftTree

# A chunk has as many rows at least: fewer take hardly less time.
_LEAST_CHUNK = 8


class BatchedSequence(Continuation):
    """A prompt in a slot of a `BatchSession`, and its continuation so far.

    Attributes:
        slot: the slot; it may belong to another sequence after this one has ended.
        verifier: greedy or sampling.
        error: what ended the sequence, if it failed.
        state: its text with all emitted tokens, and what the next cycle needs.
        policy_time: the policy's time since the last cycle.
        reused_tokens: tokens at the beginning of the prompt whose rows were known; see
            `PrefixCache`.
        block_features: (3k,) features by position, of the last token of every block of the text.
        exact_length: tokens at the beginning whose rows have the bits that they get alone.
    """

    def __init__(
        self,
        slot: int,
        prompt_ids: Sequence[int],
        verifier: Verifier,
        rules: StoppingRules,
        *,
        drafts: bool,
        top_logprobs: int | None,
    ) -> None:
        """Take a prompt; `BatchSession.join` does."""
        super().__init__(prompt_ids, rules, top_logprobs)
        self.slot = slot
        self.verifier = verifier
        self.error: BaseException | None = None
        self.state = SequenceState(drafts=drafts)
        self.policy_time = TotalTime()
        self.reused_tokens = 0
        self.block_features: dict[int, torch.Tensor] = {}
        self.exact_length = sys.maxsize
        self._prompt = PromptReader(prompt_ids)
        self._waited = 0.0
        self._row_seconds = 0.0
        self._left: str | None = None
        self._policy_seconds = 0.0

    @property
    def waited_seconds(self) -> float:
        """Time spent waiting while others had their turn at the target."""
        return self._waited

    @property
    def ended(self) -> bool:
        """Whether the sequence has finished, failed, or left."""
        return not (self.finish_reason is None and self.error is None and self._left is None)

    @property
    def unread(self) -> int:
        """Number of prompt tokens that have not been read."""
        return self._prompt.unread

    @property
    def policy_seconds(self) -> float:
        """The policy's time so far; see `StepResult`."""
        return self._policy_seconds + self.policy_time.seconds

    @property
    def left(self) -> str | None:
        """Why the sequence left before its end; None if it did not."""
        return self._left

    def leave(self, reason: str) -> None:
        """End the sequence before its end."""
        self._left = reason

    def fail(self, error: BaseException) -> None:
        """End the sequence because of an error."""
        self.error = error

    def wait(self, seconds: float) -> None:
        """Count time spent waiting for the target."""
        self._waited += seconds

    def reuse(self, length: int, features: torch.Tensor) -> None:
        """Begin behind a prefix whose rows are in the caches.

        Args:
            length: its tokens, fewer than the prompt's.
            features: (B, 3k) features of the last token of each of its blocks.
        """
        self.reused_tokens = length
        for block, own in enumerate(features):
            self.block_features[(block + 1) * BLOCK_ROWS - 1] = own
        self._prompt = PromptReader(self._prompt.token_ids, read=length, features=features[-1:])

    def draft_ahead(self, draft: CachedDraft) -> None:
        """Let the draft process what was read of a prompt that goes on.

        All of a long prompt at once would hold up the first cycle of all sequences: 5,000 tokens by
        a second.
        """
        after, features = self._prompt.take_all_but_last()
        if after:
            draft.extend(torch.tensor(after), features, self.slot)

    def next_chunk(self, most_rows: int, seconds: float | None = None) -> int:
        """Return the number of rows of the next chunk.

        Args:
            most_rows: most rows of a chunk.
            seconds: about how long it may take, by the rows of the chunk before; None for no bound.
        """
        rows = min(self.unread, most_rows)
        if seconds is not None and self._row_seconds:
            rows = min(rows, max(_LEAST_CHUNK, int(seconds / self._row_seconds)))
        return rows

    def read_chunk(self, target: TargetModel, cache: KVCache, most_rows: int) -> tuple[int, ...]:
        """Read the next chunk of the prompt.

        Args:
            target: the target.
            cache: its KV cache.
            most_rows: most tokens of the chunk. A row's logits may depend on where chunks of more
                than `MOST_EXACT_ROWS` begin.

        Returns:
            The first token, if this was the last chunk.

        Raises:
            ValueError: the target's logits hold NaN.
        """
        started = time.perf_counter()
        begin = cache.lengths[self.slot]
        logits = self._prompt.read_chunk(target, cache, self.slot, most_rows)
        self._mark_blocks(begin, self._prompt.last_chunk)
        kept: tuple[int, ...] = ()
        if logits is not None:
            check_logits(bool(logits.isnan().any()))
            first = self.verifier.next_token(logits[0])
            self.record_logprobs(logits, (first,))
            prompt_ids, features = self._prompt.token_ids, self._prompt.take_features()
            self._prompt = PromptReader()
            self.state.begin([*prompt_ids, first], features)
            kept = self._append((first,))
        seconds = time.perf_counter() - started
        self._row_seconds = seconds / (cache.lengths[self.slot] - begin)
        self.prefill_seconds += seconds
        return kept

    @property
    def records_logprobs(self) -> bool:
        """Whether log-probabilities are wanted."""
        return self._logprobs is not None

    def record_logprobs(self, logits: torch.Tensor, token_ids: Sequence[int]) -> None:
        """Record tokens that were chosen from (R, V) logits, if that is wanted."""
        if self._logprobs is not None:
            self._logprobs.add(logits, token_ids)

    def keep(self, accepted: Accepted, tree_rows: int) -> None:
        """Append the tokens of a verification.

        Args:
            accepted: what was accepted.
            tree_rows: rows of the tree.
        """
        root = len(self.state.token_ids) - 1
        if tree_rows > MOST_EXACT_ROWS:
            self.exact_length = min(self.exact_length, root)
        self._mark_blocks(root, accepted.features)
        self.state.keep(accepted)

    def add_cycle(self, result: StepResult) -> tuple[int, ...]:
        """Append the result of a cycle; return its tokens as far as the sequence goes."""
        self.cycles.append(result)
        self._policy_seconds += result.policy_seconds
        return self._append(result.token_ids)

    def let_go(self) -> None:
        """Forget what only further cycles would need."""
        self._prompt.clear()
        self.state.pending.clear()
        self.block_features.clear()

    def _mark_blocks(self, first: int, features: torch.Tensor) -> None:
        """Keep the features of tokens that end a block; the first ones are at position `first`."""
        for position in range(first | (BLOCK_ROWS - 1), first + len(features), BLOCK_ROWS):
            # A copy, so that not all of them are kept.
            self.block_features[position] = features[position - first].clone()


def check_logits(has_nan: bool) -> None:
    """Check logits that a token is chosen from.

    Args:
        has_nan: whether there is a NaN among them.

    Raises:
        ValueError: there is.
    """
    if has_nan:
        raise ValueError("the target's logits hold NaN: no token can be chosen from them")


@dataclass(slots=True, eq=False)
class CyclePart:
    """The part of one sequence in a cycle.

    Attributes:
        sequence: the sequence.
        plan: cut to what there is room for.
        lookup: the looked-up tokens.
        hidden: (K, h) features of the last draft pass.
        draft_rows: rows of this sequence in all draft passes.
        tree: what is verified; None before it is drafted.
        params: size of the head's part of it.
        accepted: what was accepted; None before that.
        error: what failed; the part takes no further step then.
    """

    sequence: BatchedSequence
    plan: DraftPlan = field(default_factory=DraftPlan)
    lookup: Lookup = NO_LOOKUP
    hidden: torch.Tensor | None = None
    draft_rows: int = 0
    tree: DraftTree | None = None
    params: TreeParams = NO_DRAFT
    accepted: Accepted | None = None
    error: Exception | None = None

    @property
    def slot(self) -> int:
        """The sequence's slot."""
        return self.sequence.slot

    @property
    def root(self) -> int:
        """The last token, which is the root of the tree."""
        return self.sequence.state.token_ids[-1]

    @property
    def tree_rows(self) -> int:
        """Rows of the tree; 0 before it is drafted."""
        return 0 if self.tree is None else len(self.tree.token_ids)


def alive(parts: Sequence[CyclePart]) -> list[CyclePart]:
    """Return the parts that have not failed."""
    return [part for part in parts if part.error is None]


@contextmanager
def failing(*parts: CyclePart) -> Iterator[None]:
    """Keep an exception of the block as the error of these parts."""
    try:
        yield
    except Exception as error:
        for part in alive(parts):
            part.error = error


def shared_passes(
    rows: Sequence[int], blocks: Sequence[int], rooms: Sequence[int], most_rows: int
) -> list[list[int]]:
    """Divide slots into passes, in order.

    Args:
        rows: rows of every slot in the pass.
        blocks: rows of every slot's masked block. That of a pass is as long as the longest.
        rooms: free cache rows of every slot, at least its block.
        most_rows: most rows of a pass of several slots.

    Returns:
        The indices of the slots of every pass.
    """
    passes: list[list[int]] = []
    count = block = 0
    room = 0
    for index in range(len(rows)):
        longest, least = max(block, blocks[index]), min(room, rooms[index])
        if passes and count + rows[index] <= most_rows and longest <= least:
            passes[-1].append(index)
            count, block, room = count + rows[index], longest, least
        else:
            passes.append([index])
            count, block, room = rows[index], blocks[index], rooms[index]
    return passes
