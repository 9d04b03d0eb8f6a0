"""A session with caches and a policy of its own, and what they go back to."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from eaglerl.eagle3.cache.caches import CachePool, Caches
from eaglerl.eagle3.fused_policy import FusedPolicy
from eaglerl.eagle3.head.cached_draft import CachedDraft
from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.eagle3.policy import TreePolicy
from eaglerl.eagle3.policy_use import begin_use, use_verifier
from eaglerl.eagle3.sampling import Verifier
from eaglerl.eagle3.session import DecodingSession
from eaglerl.eagle3.target.target_model import TargetModel


def open_session(
    target: TargetModel,
    head: Eagle3DraftHead,
    draft: CachedDraft,
    pool: CachePool,
    verifier: Verifier,
    capacity: int,
    policy: TreePolicy | None = None,
) -> DecodingSession:
    """Make a session that gives everything back when it is closed or garbage collected.

    Args:
        target: decodes.
        head: drafts.
        draft: the head's runner, which reduces features for the policy.
        pool: has the caches.
        verifier: greedy or sampling.
        capacity: rows of the caches.
        policy: see `SpeculativeDecoder.new_session`.

    Raises:
        ValueError: see `SpeculativeDecoder.new_session`.
    """
    ends = [use_verifier(verifier)]
    try:
        if policy is not None:
            policy, end_use = begin_use(policy)
            ends.append(end_use)
        bound = policy.bind(head, draft.reduce) if isinstance(policy, FusedPolicy) else None
        caches = pool.take(capacity)
    except BaseException:
        _end(ends)
        raise
    session = DecodingSession(target, caches.draft, verifier, caches.target, policy=bound)
    session.own(caches, partial(_release, pool, ends))
    session.tree_policy = policy
    return session


def _release(pool: CachePool, ends: list[Callable[[], None]], caches: Caches | None) -> None:
    """End what a session has; without caches where they are not fit for another one."""
    _end(ends)
    if caches is not None:
        pool.give_back(caches)


def _end(ends: list[Callable[[], None]]) -> None:
    for end in ends:
        end()
