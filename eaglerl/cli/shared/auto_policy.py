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

    Of two processes that end at the same time, one is remembered. Kept costs that cannot be read,
    or a cache folder that cannot be written, are reported by a warning.

    Args:
        decoder: a decoder with a draft head, on the CPU; `can_keep_auto_policy` tells.
    """
    assert decoder.draft_head is not None
    path = learned_cost_path(decoder)
    policy = _make(path, decoder.draft_head.config.draft_vocab_size)
    before = policy.cost.cycles
    try:
        yield policy
    finally:
        if policy.cost.cycles > before:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                policy.cost.to_json(path)
            except OSError as error:
                # The texts are decoded; the next run begins without these costs.
                warnings.warn(f"the learned costs cannot be kept: {error}", stacklevel=3)


def _make(path: Path, vocab_size: int) -> AutoPolicy:
    """Make the policy with kept costs, if there are any that it can use."""
    from eaglerl.cost.online_cost import OnlineCost
    from eaglerl.policies.auto_policy import make_auto_policy

    try:
        cost = OnlineCost.from_json(path)
    except FileNotFoundError:
        return make_auto_policy(vocab_size)
    except ValueError as error:
        warnings.warn(f"{error}; it is ignored", stacklevel=4)
        return make_auto_policy(vocab_size)
    try:
        return make_auto_policy(vocab_size, cost)
    except ValueError as error:
        # Another version had other trees.
        warnings.warn(f"the learned costs {str(path)!r} are ignored: {error}", stacklevel=4)
        return make_auto_policy(vocab_size)
