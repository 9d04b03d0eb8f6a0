"""The policy of ``--policy auto``, whose learned costs are kept in the user's cache.

They belong to the same machine, threads, models and precisions as a cost table that was measured.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from eaglerl.cli.shared.machine_cost import kept_cost_path

if TYPE_CHECKING:
    from eaglerl.cost.online_cost import OnlineCost
    from eaglerl.eagle3 import SpeculativeDecoder
    from eaglerl.policies.auto_policy import AutoPolicy


def learned_cost_path(decoder: SpeculativeDecoder) -> Path:
    """Return where the costs that were learned with this decoder on this machine are kept."""
    measured = kept_cost_path(decoder)
    return measured.with_name(f"learned-{measured.name}")


def can_keep_auto_policy(decoder: SpeculativeDecoder) -> bool:
    """Return whether there is a head, and drafts are made on the CPU, where the policy decides."""
    return decoder.draft_head is not None and decoder.target.device.type == "cpu"


@contextmanager
def keeping_auto_policy(decoder: SpeculativeDecoder) -> Iterator[AutoPolicy]:
    """Make the policy with the costs that earlier runs learned; keep what it learns at the end.

    Of two processes that end at the same time, one is remembered.

    Args:
        decoder: a decoder with a draft head, on the CPU; `can_keep_auto_policy` tells.
    """
    from eaglerl.policies.auto_policy import make_auto_policy

    assert decoder.draft_head is not None
    path = learned_cost_path(decoder)
    vocab_size = decoder.draft_head.config.draft_vocab_size
    policy = make_auto_policy(vocab_size)
    known = _read(path, policy)
    if known is not None:
        policy = make_auto_policy(vocab_size, known)
    before = policy.cost.cycles
    try:
        yield policy
    finally:
        if policy.cost.cycles > before:
            path.parent.mkdir(parents=True, exist_ok=True)
            policy.cost.to_json(path)


def _read(path: Path, policy: AutoPolicy) -> OnlineCost | None:
    """Return kept costs that have the width and the rows of a policy; None without them."""
    from eaglerl.cost.online_cost import OnlineCost

    if not path.is_file():
        return None
    try:
        cost = OnlineCost.from_json(path)
    except ValueError as error:
        warnings.warn(f"{error}; it is ignored", stacklevel=3)
        return None
    limit = policy.limit
    fits = limit.top_k in cost.top_ks and cost.max_rows >= limit.total_tokens
    return cost if fits else None
