"""Acceptance: which rows of a verified tree are kept, found on the host or on the device."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch

from eaglerl.eagle3.accepted import Acceptance, Accepted
from eaglerl.eagle3.cache.kv_cache import KVCache
from eaglerl.eagle3.device_acceptance import DeviceAcceptance
from eaglerl.eagle3.fused_policy import BoundPolicy, decision_of
from eaglerl.eagle3.ruled_policy import DeviceDraft, read_report, report_of
from eaglerl.eagle3.stopwatch import TotalTime
from eaglerl.eagle3.target.target_model import TargetOutput
from eaglerl.eagle3.tree.device_tree import DeviceTree
from eaglerl.eagle3.verifier import RowVerifier, Verifier
from eaglerl.ops import DraftTree


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
            decision=decision_of(params[0].cpu().tolist()),
        )


def _draft_of(tree: DraftTree | DeviceTree) -> DeviceDraft | None:
    """Copy to the host what a rule has drafted and chosen on a device."""
    if not isinstance(tree, DeviceTree) or tree.selection is None:
        return None
    numbers = report_of(tree.selection)[0].cpu().tolist()
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
