"""Prefixes of prompts whose rows a batch has kept from sequences before."""

from __future__ import annotations

from eaglerl.eagle3.batch.batched_sequence import BatchedSequence
from eaglerl.eagle3.cache.kv_cache import KVCache
from eaglerl.eagle3.cache.prefix_cache import PrefixCache
from eaglerl.eagle3.head.cached_draft import CachedDraft


class SessionPrefixes:
    """Gives sequences of a batch the rows that are known, and keeps theirs for later ones.

    A system prompt is there for the next request chunk by chunk, as it is read, and a conversation
    for its next turn when its answer has ended.

    Attributes:
        asked_tokens: tokens of all prompts so far.
        reused_tokens: those of them that were not read again.
    """

    def __init__(
        self, max_tokens: int, cache: KVCache, draft: CachedDraft | None, feature_width: int
    ) -> None:
        """Set up; see `PrefixCache`.

        Args:
            max_tokens: most tokens whose rows are kept.
            cache: the target's cache.
            draft: the draft's runner, with the slots of `cache`; None without a draft.
            feature_width: 3k, the width of the target's features.
        """
        self.asked_tokens = self.reused_tokens = 0
        self._cache = cache
        self._draft = draft
        draft_cache = None if draft is None else draft.cache
        self._prefixes = PrefixCache(max_tokens, cache, draft_cache, feature_width)

    @property
    def tokens(self) -> int:
        """Number of tokens whose rows are kept."""
        return self._prefixes.tokens

    def reuse(self, sequence: BatchedSequence) -> None:
        """Give a sequence that begins the rows that are known."""
        prompt = sequence.token_ids
        found = self._prefixes.find(prompt)
        self.asked_tokens += len(prompt)
        self.reused_tokens += found.length
        if found.length:
            sequence.reuse(found.length, self._prefixes.restore(found, sequence.slot))

    def keep(self, sequence: BatchedSequence) -> None:
        """Keep the rows of a sequence, or those of its prompt that were read."""
        slot = sequence.slot
        token_ids = sequence.state.token_ids or sequence.token_ids
        length = min(self._cache.lengths[slot], sequence.exact_length)
        if self._draft is not None:
            self._catch_up(self._draft, sequence)
        self._prefixes.store(token_ids[:length], slot, sequence.block_features)

    @staticmethod
    def _catch_up(draft: CachedDraft, sequence: BatchedSequence) -> None:
        """Let the draft process all rows but the last, which the next cycle's draft needs."""
        pending = sequence.state.pending
        if len(pending) < 2:
            return
        token_ids, features, reduced = pending.take_as_they_are(draft.reduce)
        draft.extend(token_ids[:-1], features[:-1], sequence.slot, reduced=reduced)
        pending.add(token_ids[-1:], features[-1:], reduced=reduced)
