"""The policy of ``--policy auto``, whose learned costs are kept in the user's cache.

They belong to the same machine, threads, models and precisions as a cost table that was measured.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from eaglerl.cli.shared.machine_cost import kept_cost_path

if TYPE_CHECKING:
    from eaglerl.cost.online_cost import OnlineCost
    from eaglerl.eagle3 import SpeculativeDecoder
    from eaglerl.policies.auto_policy import AutoPolicy
    from eaglerl.policies.batch_auto import BatchAutoPolicy

_P = TypeVar("_P")


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
    from eaglerl.policies.auto_policy import make_auto_policy

    assert decoder.draft_head is not None
    path = learned_cost_path(decoder)
    policy = _make(path, partial(make_auto_policy, decoder.draft_head.config.draft_vocab_size))
    with _keeping(policy.cost, path):
        yield policy


@contextmanager
def keeping_batch_policy(
    decoder: SpeculativeDecoder, slots: int
) -> Iterator[Callable[[], BatchAutoPolicy]]:
    """Do the same for the policy of a batch, whose shared passes have costs of their own.

    Args:
        decoder: see `keeping_auto_policy`.
        slots: most sequences of the batch.

    Returns:
        A function that makes the policy; all that it makes learn the costs together.
    """
    from eaglerl.policies.batch_auto import make_batch_auto

    assert decoder.draft_head is not None
    alone = learned_cost_path(decoder)
    path = alone.with_name(f"batch-of-{slots}-{alone.name}")
    make = partial(make_batch_auto, decoder.draft_head.config.draft_vocab_size, slots)
    cost = _make(path, make).cost
    with _keeping(cost, path):
        yield lambda: make(cost)


@contextmanager
def _keeping(cost: OnlineCost, path: Path) -> Iterator[None]:
    """Write the costs at the end, if anything was learned."""
    before = cost.cycles
    try:
        yield
    finally:
        if cost.cycles > before:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                cost.to_json(path)
            except OSError as error:
                # The texts are decoded; the next run begins without these costs.
                warnings.warn(f"the learned costs cannot be kept: {error}", stacklevel=5)


def _make(path: Path, make: Callable[[OnlineCost | None], _P]) -> _P:
    """Make a policy with kept costs, if there are any that it can use."""
    from eaglerl.cost.online_cost import OnlineCost

    try:
        cost = OnlineCost.from_json(path)
    except FileNotFoundError:
        return make(None)
    except ValueError as error:
        warnings.warn(f"{error}; it is ignored", stacklevel=4)
        return make(None)
    try:
        return make(cost)
    except ValueError as error:
        # Another version had other trees.
        warnings.warn(f"the learned costs {str(path)!r} are ignored: {error}", stacklevel=4)
        return make(None)
