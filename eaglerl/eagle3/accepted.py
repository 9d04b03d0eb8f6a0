"""What a verification has accepted, and who finds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from eaglerl.eagle3.cache.kv_cache import KVCache
from eaglerl.eagle3.fused_policy import BoundPolicy
from eaglerl.eagle3.policy import DraftLimits, TreeParams
from eaglerl.eagle3.ruled_policy import DeviceDraft
from eaglerl.eagle3.target.target_model import TargetOutput
from eaglerl.eagle3.tree.device_tree import DeviceTree
from eaglerl.ops import DraftTree


@dataclass(frozen=True, slots=True)
class Accepted:
    """The result of a verification, whose kept rows are committed in the target's cache already.

    Attributes:
        rows: (R,) int64 kept rows of the pass, the root first, on the target's device.
        emitted: the accepted drafted tokens, then the bonus.
        token_ids: `emitted` as (R,) int64 on the target's device: the token after each kept row.
        features: (R, 3k) target features of the kept rows, or (R, h) if `reduced`.
        reduced: whether the draft's FC has run over `features` already, for the policy.
        last_features: (3k,) target features of the last kept row.
        decision: the tree or limits that a `FusedPolicy` chose from them; None without one.
        drafted_rows: `rows` without the root, if they are known on the host.
        draft: what a rule has drafted and chosen on a device; None without one.
    """

    rows: torch.Tensor
    emitted: tuple[int, ...]
    token_ids: torch.Tensor
    features: torch.Tensor
    reduced: bool
    last_features: torch.Tensor
    decision: TreeParams | DraftLimits | None
    drafted_rows: tuple[int, ...] = ()
    draft: DeviceDraft | None = None


class Acceptance(Protocol):
    """A function from the target's output over a tree to the rows that are kept."""

    def __call__(
        self,
        output: TargetOutput,
        tree: DraftTree | DeviceTree,
        cache: KVCache,
        slot: int,
        policy: BoundPolicy | None,
    ) -> Accepted:
        """Accept rows, commit them in `cache`, and let the policy choose the next tree."""
