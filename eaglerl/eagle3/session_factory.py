"""The factory of sessions that a decoder and its generations share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from eaglerl.eagle3.cache.caches import CachePool, Caches
from eaglerl.eagle3.captured.decode_slots import SlotDecoder
from eaglerl.eagle3.captured.graphed_calls import graphs_on
from eaglerl.eagle3.fused_policy import fused_part
from eaglerl.eagle3.head.cached_draft import CachedDraft
from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.eagle3.policy import TreePolicy
from eaglerl.eagle3.policy_use import begin_use, use_verifier
from eaglerl.eagle3.session import DecodingSession
from eaglerl.eagle3.target.target_model import TargetModel
from eaglerl.eagle3.verifier import Verifier

#: Rows that new caches have free behind the longest sequence: room for a tree of 512 rows. A wider
#: plan makes the session's caches grow.
TREE_ROOM = 512


class SessionFactory:
    """A factory of sessions over one target and its draft head, with caches from one pool.

    Attributes:
        target: the target.
        draft_head: the draft head; None for plain decoding.
        draft_runner: runs the head, and reduces features for a `FusedPolicy`; None without a head.
        pool: keeps the caches of sequences that have ended.
        slots: decodes several prompts together on a device.
    """

    def __init__(
        self,
        target: TargetModel,
        draft_head: Eagle3DraftHead | None,
        draft_runner: CachedDraft | None,
        *,
        cuda_graphs: bool = False,
    ) -> None:
        """Start with an empty pool.

        Args:
            target: see `SessionFactory`.
            draft_head: see there.
            draft_runner: see there.
            cuda_graphs: see `SpeculativeDecoder`.

        Raises:
            ValueError: `cuda_graphs`, and the target is on another device.
        """
        self.target = target
        self.draft_head = draft_head
        self.draft_runner = draft_runner
        new_draft = None if draft_runner is None else draft_runner.with_own_cache
        self._new_graph = graphs_on(target.device) if cuda_graphs else None
        self.pool = CachePool(target.new_cache, new_draft)
        self.slots = SlotDecoder(
            target, draft_head, draft_runner, self._new_graph, spare_rows=TREE_ROOM
        )

    def new_session(
        self, verifier: Verifier, length: int, policy: TreePolicy | None = None
    ) -> DecodingSession:
        """Open a session, which gives everything back when it is closed or garbage collected.

        Args:
            verifier: greedy or sampling.
            length: tokens of the longest sequence, prompt included.
            policy: see `SpeculativeDecoder.new_session`.

        Raises:
            ValueError: see `SpeculativeDecoder.new_session`.
        """
        ends = [use_verifier(verifier)]
        try:
            if policy is not None:
                policy, end_use = begin_use(policy)
                ends.append(end_use)
            bound = None
            fused = fused_part(policy)
            if fused is not None:
                if self.draft_head is None or self.draft_runner is None:
                    raise ValueError(
                        "policy must draft nothing, since this decoder has no draft head, got a "
                        f"{type(policy).__name__}"
                    )
                bound = fused.bind(self.draft_head, self.draft_runner.reduce)
            caches = self.pool.take(length + TREE_ROOM)
        except BaseException:
            _end(ends)
            raise
        session = DecodingSession(
            self.target,
            caches.draft,
            verifier,
            caches.target,
            bound_policy=bound,
            tree_policy=policy,
            new_graph=self._new_graph,
        )
        session.own(caches, partial(_release, self.pool, ends))
        return session


def _release(pool: CachePool, ends: list[Callable[[], None]], caches: Caches | None) -> None:
    """End the uses and give the caches back; None means that no other sequence may have them."""
    _end(ends)
    if caches is not None:
        pool.give_back(caches)


def _end(ends: list[Callable[[], None]]) -> None:
    for end in ends:
        end()
