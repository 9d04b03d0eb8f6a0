"""Acceptance: which rows of a verified tree are kept, found on the host or on the device."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from eaglerl.eagle3.cache.kv_cache import KVCache
from eaglerl.eagle3.fused_policy import BoundPolicy
from eaglerl.eagle3.policy import TreeParams
from eaglerl.eagle3.ruled_policy import DeviceDraft, read_report, report_of, report_size
from eaglerl.eagle3.sampling import RowVerifier, Verifier
from eaglerl.eagle3.stopwatch import TotalTime
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
        decision: the tree that a `FusedPolicy` chose from them; None without one.
        drafted_rows: `rows` without the root, if they are known on the host.
        draft: what a rule has drafted and chosen on a device; None without one.
    """

    rows: torch.Tensor
    emitted: tuple[int, ...]
    token_ids: torch.Tensor
    features: torch.Tensor
    reduced: bool
    last_features: torch.Tensor
    decision: TreeParams | None
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


class HostAcceptance:
    """Acceptance on the host: for a target on the CPU, and for verifiers that read the text.

    A tree on a device is copied to the host first, and the device waits for the result.
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
        if policy is None:
            kept = keep_path(output.features, tree, rows, bonus, cache, slot)
            return replace(kept, draft=_draft_of(tree))
        device = output.features.device
        index, last = torch.tensor(rows).to(device), torch.tensor([len(rows) - 1]).to(device)
        with self._policy_time:
            features, params = policy.encode(output.features, index, last)
        # The draft needs the reduced features with or without a policy: not the policy's time.
        self._policy_time.seconds -= policy.reduce_seconds
        return replace(
            keep_path(output.features, tree, rows, bonus, cache, slot),
            features=features,
            reduced=True,
            decision=TreeParams(*params[0].cpu().tolist()),
        )


def _draft_of(tree: DraftTree | DeviceTree) -> DeviceDraft | None:
    """Copy to the host what a rule has drafted and chosen on a device."""
    if not isinstance(tree, DeviceTree) or tree.selection is None:
        return None
    numbers = report_of(tree.selection).cpu().tolist()
    return read_report(numbers, tree.selection.sizes, tree.passes)


def keep_path(
    features: torch.Tensor,
    tree: DraftTree | DeviceTree,
    rows: list[int],
    bonus: int,
    cache: KVCache,
    slot: int,
) -> Accepted:
    """Commit the rows of an accepted path, which the host knows.

    Args:
        features: (T, 3k) target features of the tree's rows.
        tree: the verified tree.
        rows: the path, the root first.
        bonus: the target's token after the path.
        cache: the target's cache, whose scratch rows are those of the tree.
        slot: the sequence.
    """
    device = features.device
    index = torch.tensor(rows).to(device)
    if isinstance(tree, DeviceTree):
        cache.move_scratch(index, slot)
        cache.advance(len(rows), slot)
    else:
        cache.commit(rows, slot)
    drafted = tree.token_ids[index[1:]].cpu().tolist() if len(rows) > 1 else ()
    emitted = (*drafted, bonus)
    return Accepted(
        rows=index,
        emitted=emitted,
        token_ids=torch.tensor(emitted).to(device),
        features=features[index],
        reduced=False,
        last_features=features[rows[-1]].clone(),
        decision=None,
        drafted_rows=tuple(rows[1:]),
    )


class DeviceAcceptance:
    """Acceptance on the device: one copy to the host per cycle, the policy's choice included."""

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
        # The token of an accepted child is its parent's choice, and the bonus is the last row's.
        emitted = choices[rows]
        report = [count, emitted]
        selection, longest = tree.selection, tree.longest_path
        if selection is not None:
            report += [rows, report_of(selection)]
        features = None
        if policy is not None:
            with self._policy_time:
                features, params = policy.encode(output.features, rows, last)
            self._policy_time.seconds -= policy.reduce_seconds
            report.append(params.flatten().long())
        # The host does not know the rows yet, so all P are moved; those behind the accepted ones
        # are scratch.
        cache.move_scratch(rows, slot)
        # The only synchronisation of the cycle: count, P tokens, with a rule the rows and what it
        # has drafted and chosen, and with a policy T/D/K.
        numbers = torch.cat(report).cpu().tolist()
        kept = numbers[0]
        cache.advance(kept, slot)
        decision = None if policy is None else TreeParams(*numbers[-3:])
        draft, drafted_rows = None, ()
        if selection is not None:
            drafted_rows = tuple(numbers[2 + longest : 1 + longest + kept])
            begin = 1 + 2 * longest
            end = begin + report_size(selection.sizes)
            draft = read_report(numbers[begin:end], selection.sizes, tree.passes)
        if features is None:
            features = output.features[rows[:kept]]
        return Accepted(
            rows=rows[:kept],
            emitted=tuple(numbers[1 : 1 + kept]),
            token_ids=emitted[:kept],
            features=features[:kept],
            reduced=policy is not None,
            # A slice of host numbers: indexing with `last` would synchronise once more.
            last_features=output.features[rows[kept - 1 : kept]][0],
            decision=decision,
            drafted_rows=drafted_rows,
            draft=draft,
        )


def make_acceptance(verifier: Verifier, policy_time: TotalTime, *, on_device: bool) -> Acceptance:
    """Return the acceptance for a verifier, on the host or on a device.

    A verifier that reads the text runs on the host even for a device, and a warning says so.
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

    A row is accepted if it and all of its ancestors are the choices of their parents' rows.
    Siblings have distinct tokens, so the accepted rows are one path. All (T, T) pairs of rows are
    compared at once: a loop down the tree would read the device after every level.

    Args:
        tree: a tree of T rows.
        choices: (T,) int64 the target's token after every row.

    Returns:
        Rows of the path, (P,) int64, root first, padded with row 0 to the longest path that the
        tree can have; and the number of rows in the path, (1,) int64.
    """
    total = tree.longest_path
    chosen = (tree.token_ids == choices[tree.parents]) & tree.enabled
    chosen[0] = True
    accepted = (chosen | ~tree.ancestors).all(-1)
    # One row per level is accepted, so its level is its place in the path. All other rows are
    # written to place P, which is cut off.
    places = torch.where(accepted, tree.levels, total)
    rows = torch.zeros(total + 1, dtype=torch.int64, device=choices.device)
    rows = rows.scatter(0, places, torch.arange(len(choices), device=choices.device))
    return rows[:total], accepted.sum()[None]
