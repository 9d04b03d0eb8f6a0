"""Acceptance on a device: which rows of a verified tree are kept, in one copy to the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from eaglerl.eagle3.accepted import Accepted
from eaglerl.eagle3.cache.kv_cache import KVCache
from eaglerl.eagle3.fused_policy import BoundPolicy, decision_of
from eaglerl.eagle3.ruled_policy import read_report, report_of, report_size
from eaglerl.eagle3.stopwatch import TotalTime
from eaglerl.eagle3.target.target_model import TargetOutput
from eaglerl.eagle3.tree.device_tree import DeviceTree
from eaglerl.eagle3.verifier import RowVerifier
from eaglerl.ops import AcceptedDrafts, DraftTree, NgramTable, accept_draft


@dataclass(frozen=True, slots=True)
class DeviceAccepted:
    """What a device has accepted of S sequences, before the host knows how much of it counts.

    Attributes:
        rows: (S, P) int64 rows of the path, padded with row 0.
        counts: (S,) int64 number of rows in the path.
        token_ids: (S, P) int64 the target's choice after each row.
        features: (S, P, 3k) target features of the rows, or (S, P, h) reduced by the policy's call.
        last_features: (S, 3k) target features of the last row of each path.
        report: (S, N) int64 what the host is told, see `read_accepted`.
    """

    rows: torch.Tensor
    counts: torch.Tensor
    token_ids: torch.Tensor
    features: torch.Tensor
    last_features: torch.Tensor
    report: torch.Tensor


def accept_on_device(
    output: TargetOutput,
    tree: DeviceTree,
    choose: Callable[[torch.Tensor], torch.Tensor],
    policy: BoundPolicy | None,
    policy_time: TotalTime,
    *,
    accepted: AcceptedDrafts | None = None,
    table: NgramTable | None = None,
) -> DeviceAccepted:
    """Find the accepted rows, and let the policy choose the next trees, without the host.

    Args:
        output: the target's output over the trees, with all logits.
        tree: the tree; those of S sequences with `accepted`.
        choose: chooses the target's tokens, see `RowVerifier.choices`.
        policy: chooses the next trees; None for none.
        policy_time: adds up the policy's time on the host's clock.
        accepted: memory for the paths, of S slots and the trees' longest path, which the result
            then refers to; None finds the path of a single tree by torch's operators.
        table: takes the accepted tokens and looks up what follows; needs `accepted`.
    """
    assert output.logits is not None, "the verification asks for all logits"
    choices = choose(output.logits)
    if accepted is None:
        path, counts = accepted_rows(tree, choices)
        # The token of an accepted child is its parent's choice, and the bonus is the last row's.
        rows, emitted = path[None], choices[path][None]
    else:
        accept_draft(
            tree.token_ids,
            tree.parents,
            tree.levels,
            tree.ancestors,
            tree.enabled,
            choices.view(tree.token_ids.shape),
            accepted,
            table,
        )
        rows, counts, emitted = accepted.rows, accepted.counts, accepted.token_ids
    slots, longest = rows.shape
    first = torch.arange(slots, device=rows.device)
    # Of the paths' rows among those of the pass, and of each path's last one.
    flat = (rows + first[:, None] * tree.rows).flatten()
    last = first * longest + counts - 1
    report = [counts[:, None], emitted]
    if tree.selection is not None:
        report += [rows, report_of(tree.selection)]
    if policy is None:
        features = output.features[flat]
    else:
        with policy_time:
            features, params = policy.encode(output.features, flat, last)
        # The draft needs the reduced features with or without a policy: not the policy's time.
        policy_time.seconds -= policy.reduce_seconds
        report.append(params.long())
    return DeviceAccepted(
        rows=rows,
        counts=counts,
        token_ids=emitted,
        features=features.view(slots, longest, -1),
        last_features=output.features[flat[last]],
        report=torch.cat(report, dim=1),
    )


def read_accepted(
    found: DeviceAccepted,
    slot: int,
    numbers: list[int],
    last_features: torch.Tensor,
    tree: DeviceTree,
    policy: BoundPolicy | None,
) -> Accepted:
    """Return what was accepted of one sequence, as the host has learned it.

    Args:
        found: what the device has found.
        slot: the sequence.
        numbers: its report, copied to the host: the count, P tokens, with a rule the P rows and
            what it has drafted and chosen, and with a policy its action.
        last_features: (3k,) its part of `found`, or a copy.
        tree: the trees.
        policy: whose choice the report ends with; None for none.
    """
    kept, longest, draft = numbers[0], tree.longest_path, None
    drafted_rows: tuple[int, ...] = ()
    if tree.selection is not None:
        sizes = tree.selection.sizes
        drafted_rows = tuple(numbers[2 + longest : 1 + longest + kept])
        begin = 1 + 2 * longest
        draft = read_report(numbers[begin : begin + report_size(sizes)], sizes, tree.passes)
    return Accepted(
        rows=found.rows[slot, :kept],
        emitted=tuple(numbers[1 : 1 + kept]),
        token_ids=found.token_ids[slot, :kept],
        features=found.features[slot, :kept],
        reduced=policy is not None,
        last_features=last_features,
        decision=None if policy is None else decision_of(numbers[-policy.params.shape[1] :]),
        drafted_rows=drafted_rows,
        draft=draft,
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
        found = accept_on_device(output, tree, self._verifier.choices, policy, self._policy_time)
        # The host does not know the rows yet, so all P are moved; those behind the accepted ones
        # are scratch.
        cache.move_scratch(found.rows[0], slot)
        # The only synchronisation of the cycle.
        (numbers,) = found.report.cpu().tolist()
        cache.advance(numbers[0], slot)
        return read_accepted(found, 0, numbers, found.last_features[0], tree, policy)


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
