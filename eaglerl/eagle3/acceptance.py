"""What a verification keeps, and what follows from it: on the host, or on the target's device."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Protocol

import torch

from eaglerl.eagle3.cache.kv_cache import KVCache
from eaglerl.eagle3.fused_policy import BoundPolicy
from eaglerl.eagle3.policy import TreeParams
from eaglerl.eagle3.sampling import RowVerifier, Verifier
from eaglerl.eagle3.stopwatch import TotalTime
from eaglerl.eagle3.target.target_model import TargetOutput
from eaglerl.eagle3.tree.device_tree import DeviceTree
from eaglerl.ops import DraftTree


@dataclass(frozen=True, slots=True)
class Accepted:
    """The outcome of a verification; the kept rows are committed in the target's cache.

    Attributes:
        rows: (R,) int64 kept rows of the pass, on the target's device.
        emitted: the accepted drafted tokens, then the bonus.
        token_ids: the same, (R,) int64 on the target's device: the token after each kept row.
        features: (R, 3k) target features of the kept rows, or (R, h) if `reduced`.
        reduced: whether the draft's FC has run over them, for the policy.
        last_features: (3k,) target features of the last kept row.
        decision: the tree that the policy chose from them; None without such a policy.
    """

    rows: torch.Tensor
    emitted: tuple[int, ...]
    token_ids: torch.Tensor
    features: torch.Tensor
    reduced: bool
    last_features: torch.Tensor
    decision: TreeParams | None


class Acceptance(Protocol):
    """Turns the target's output over a tree into what is kept."""

    def __call__(
        self,
        output: TargetOutput,
        tree: DraftTree | DeviceTree,
        cache: KVCache,
        slot: int,
        policy: BoundPolicy | None,
    ) -> Accepted:
        """Accept, commit, and let the policy decide."""


class HostAcceptance:
    """The host walks down the tree: for a target on the CPU, and for verifiers that read the text.

    Of a tree on a device it asks for the rows, and the device waits for what it says.
    """

    def __init__(self, verifier: Verifier, policy_time: TotalTime) -> None:
        self._verifier = verifier
        self._policy_time = policy_time

    def __call__(
        self,
        output: TargetOutput,
        tree: DraftTree | DeviceTree,
        cache: KVCache,
        slot: int,
        policy: BoundPolicy | None,
    ) -> Accepted:
        """See `Acceptance`."""
        assert output.logits is not None, "the verification asks for all logits"
        walked = tree.on_host() if isinstance(tree, DeviceTree) else tree
        rows, bonus = self._verifier.accept(output.logits, walked)
        device = output.features.device
        index, last = torch.tensor(rows).to(device), torch.tensor([len(rows) - 1]).to(device)
        last_features, decision = output.features[rows[-1]].clone(), None
        if policy is None:
            features = output.features[index]
        else:
            with self._policy_time:
                features, params = policy.encode(output.features, index, last)
            # Without the policy the draft would reduce them.
            self._policy_time.seconds -= policy.reduce_seconds
            decision = TreeParams(*params[0].cpu().tolist())
        if isinstance(tree, DeviceTree):
            cache.move_scratch(index, slot)
            cache.advance(len(rows), slot)
        else:
            cache.commit(rows, slot)
        emitted = (*tree.token_ids[index[1:]].cpu().tolist(), bonus)
        return Accepted(
            rows=index,
            emitted=emitted,
            token_ids=torch.tensor(emitted).to(device),
            features=features,
            reduced=policy is not None,
            last_features=last_features,
            decision=decision,
        )


class DeviceAcceptance:
    """For any device: one copy to the host a cycle, which also brings the policy's choice."""

    def __init__(self, verifier: RowVerifier, policy_time: TotalTime) -> None:
        self._verifier = verifier
        self._policy_time = policy_time

    def __call__(
        self,
        output: TargetOutput,
        tree: DraftTree | DeviceTree,
        cache: KVCache,
        slot: int,
        policy: BoundPolicy | None,
    ) -> Accepted:
        """See `Acceptance`."""
        assert isinstance(tree, DeviceTree), "a session on a device drafts there"
        assert output.logits is not None, "the verification asks for all logits"
        choices = self._verifier.choices(output.logits)
        rows, count = accepted_rows(tree, choices)
        last = count - 1
        # An accepted child's token is what its parent's row chose, and so is the bonus.
        emitted = choices[rows]
        report = [count, emitted]
        features = None
        if policy is not None:
            with self._policy_time:
                features, params = policy.encode(output.features, rows, last)
            self._policy_time.seconds -= policy.reduce_seconds
            report.append(params.flatten().long())
        cache.move_scratch(rows, slot)
        numbers = torch.cat(report).cpu().tolist()
        kept = numbers[0]
        cache.advance(kept, slot)
        decision = None if policy is None else TreeParams(*numbers[-3:])
        if features is None:
            features = output.features[rows[:kept]]
        return Accepted(
            rows=rows[:kept],
            emitted=tuple(numbers[1 : 1 + kept]),
            token_ids=emitted[:kept],
            features=features[:kept],
            reduced=policy is not None,
            # A slice: indexing by a tensor of no axes would ask the device for its value.
            last_features=output.features[rows[kept - 1 : kept]][0],
            decision=decision,
        )


def make_acceptance(verifier: Verifier, policy_time: TotalTime, *, on_device: bool) -> Acceptance:
    """Return what accepts for a verifier, on the host or on a device.

    A warning says where the host has to decide for a device.
    """
    if not on_device:
        return HostAcceptance(verifier, policy_time)
    if isinstance(verifier, RowVerifier):
        return DeviceAcceptance(verifier, policy_time)
    warnings.warn(
        "logits processors that read the text run on the host: the device waits for it after "
        "every verification",
        stacklevel=4,
    )
    return HostAcceptance(verifier, policy_time)


def accepted_rows(tree: DeviceTree, choices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Follow the target's choices from the root as far as the tree goes, without a loop.

    A row is accepted if it and all of its ancestors are what their parents' rows chose. Siblings
    carry distinct tokens, so the accepted rows are one path.

    Args:
        tree: a tree of T rows.
        choices: (T,) int64, what the target puts after every row.

    Returns:
        Rows of the path (P,) int64, root first, filled up with the root to the longest path that
        the tree can have; and their number, (1,) int64.
    """
    total = tree.longest_path
    chosen = (tree.token_ids == choices[tree.parents]) & tree.enabled
    chosen[0] = True
    accepted = (chosen | ~tree.ancestors).all(-1)
    # Rows that are not accepted are written behind the path's last place.
    places = torch.where(accepted, tree.levels, total)
    rows = torch.zeros(total + 1, dtype=torch.int64, device=choices.device)
    rows = rows.scatter(0, places, torch.arange(len(choices), device=choices.device))
    return rows[:total], accepted.sum()[None]
