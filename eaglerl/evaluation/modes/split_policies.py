"""Policies of modes that decode several questions at once."""

from __future__ import annotations

from collections.abc import Mapping

from eaglerl.eagle3.batch.per_slot_policies import PerSlotPolicies
from eaglerl.eagle3.policy import TreeParams, TreePolicy, as_policy


class SplitPolicies(PerSlotPolicies):
    """One policy per slot: that of the split that its question belongs to.

    Attributes:
        split: split of the question that joins next.
    """

    split: str

    def __init__(self, trees: Mapping[str, TreeParams]) -> None:
        """Set up.

        Args:
            trees: the tree of each split.
        """
        super().__init__(next(iter(trees.values())))
        self._of_split = {split: as_policy(tree) for split, tree in trees.items()}

    def join(self, slot: int, policy: TreePolicy | None = None) -> None:
        """Begin a sequence of a question of `split`."""
        super().join(slot, self._of_split[self.split] if policy is None else policy)


def check_for_batch(policy: TreeParams | TreePolicy, label: str) -> None:
    """Check that a policy of one sequence can decide for several.

    Args:
        policy: the policy.
        label: the mode's, for the message.

    Raises:
        ValueError: there can be no second one.
    """
    if not isinstance(policy, TreeParams) and not hasattr(policy, "fork"):
        raise ValueError(
            f"the mode {label!r} cannot decode several questions at once: its policy, a "
            f"{type(policy).__name__}, decides for one sequence. Leave it out, or use "
            "--concurrency 1"
        )
