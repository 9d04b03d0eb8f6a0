"""Policies that are given by their names."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Literal, Protocol, TypeAlias, cast

from eaglerl.eagle3.batch.batch_policy import MOST_SLOTS, BatchPolicy
from eaglerl.eagle3.batch.mixed_policies import MixedPolicies
from eaglerl.eagle3.batch.per_slot_policies import PerSlotPolicies
from eaglerl.eagle3.fused_policy import FusedPolicy
from eaglerl.eagle3.policy import ConstantPolicy, DraftPlan, TreeParams, TreePolicy, as_policy

#: What `SpeculativeDecoder.generate` takes as its policy.
PolicyChoice: TypeAlias = TreeParams | DraftPlan | TreePolicy | Literal["auto"]

# Policies are built on this package, which therefore names their module instead of importing it.
_MODULE, _MAKER = "eaglerl.policies.auto_policy", "make_auto_policy"
_BATCH_MODULE, _BATCH_MAKER = "eaglerl.policies.batch_auto", "make_batch_auto"


class JointPolicy(BatchPolicy, Protocol):
    """A policy of a batch that other batches may share."""

    def fork(self, slots: int) -> BatchPolicy:
        """Return the policy of another batch; both learn together."""


class NamedPolicies:
    """The policies of a decoder by their names, made when first used.

    All generations with "auto" share one policy or its forks, and learn together; so do all
    batches. What a pass costs one sequence says little of what it costs several.
    """

    def __init__(
        self,
        draft_vocab_size: int,
        device_type: str,
        without: TreeParams,
        fuse: Callable[[FusedPolicy, int], BatchPolicy],
    ) -> None:
        """Set up.

        Args:
            draft_vocab_size: number of tokens that the head can draft.
            device_type: type of the target's device.
            without: the constant tree to use where "auto" cannot decide.
            fuse: makes of a policy the one of a batch with so many slots.
        """
        self._draft_vocab_size = draft_vocab_size
        self._fuse = fuse
        self._device_type = device_type
        self._without = without
        self._auto: TreePolicy | None = None
        self._batch_auto: JointPolicy | None = None

    def check(self, default: PolicyChoice | None) -> PolicyChoice:
        """Return a decoder's default policy; a policy that is named is made when first used.

        Args:
            default: the policy; None for "auto", or for the constant tree on other devices than
                the CPU.

        Raises:
            ValueError: `default` is a text, but not "auto".
            TypeError: `default` is no policy.
        """
        if default is None:
            return "auto" if self._device_type == "cpu" else self._without
        if isinstance(default, str):
            check_name(default)
            return default
        return as_policy(default)

    def find(self, policy: PolicyChoice) -> TreePolicy:
        """Return the policy of a name; wrap a tree or a plan.

        Raises:
            ValueError: `policy` is a text, but not "auto".
            TypeError: `policy` is no policy.
        """
        if not isinstance(policy, str):
            return as_policy(policy)
        check_name(policy)
        if self._auto is None:
            self._auto = self._make_auto()
        return self._auto

    def for_batch(self, policy: TreePolicy) -> BatchPolicy | None:
        """Return what decides for prompts that `generate` decodes together, at most `MOST_SLOTS`.

        Args:
            policy: the policy for one sequence.

        Returns:
            A constant policy for every slot. For "auto" a policy that decides for all slots
            together; for a `FusedPolicy` one that reads the features of all of them. None for
            others: what they rest on may not hold for shared passes.
        """
        if isinstance(policy, ConstantPolicy):
            return PerSlotPolicies(policy)
        if isinstance(policy, FusedPolicy):
            return self._fuse(policy, MOST_SLOTS)
        return self._joint(MOST_SLOTS) if policy is self._auto else None

    def for_slots(self, policy: PolicyChoice | BatchPolicy, slots: int) -> BatchPolicy:
        """Return what decides for a batch's sequences that have no policy of their own.

        Args:
            policy: "auto" decides for all of them together, as every `BatchPolicy` does; a
                `FusedPolicy` reads the features of all of them in one call; of another policy,
                every sequence takes it or a fork of it.
            slots: most sequences.

        Raises:
            ValueError: `policy` is a text, but not "auto"; or "auto" has more slots than rows.
            TypeError: `policy` is no policy.
        """
        if isinstance(policy, str):
            check_name(policy)
            return MixedPolicies(self._joint(slots))
        if isinstance(policy, FusedPolicy):
            return self._fuse(policy, slots)
        return share_policy(policy)

    def _joint(self, slots: int) -> BatchPolicy:
        """Return an automatic policy of a batch; all of up to `MOST_SLOTS` slots learn together."""
        make = cast(
            "Callable[[int, int], JointPolicy]",
            getattr(import_module(_BATCH_MODULE), _BATCH_MAKER),
        )
        if slots > MOST_SLOTS:
            return make(self._draft_vocab_size, slots)
        if self._batch_auto is None:
            self._batch_auto = make(self._draft_vocab_size, MOST_SLOTS)
        return self._batch_auto.fork(slots)

    def _make_auto(self) -> TreePolicy:
        kind = self._device_type
        if kind != "cpu" and (kind != "cuda" or find_spec("triton") is None):
            warnings.warn(
                f'policy="auto" decides on the CPU, and on a CUDA device with Triton (pip install '
                f"triton); on {kind} it is the constant tree {self._without}",
                stacklevel=2,
            )
            return ConstantPolicy(self._without)
        make = cast("Callable[[int], TreePolicy]", getattr(import_module(_MODULE), _MAKER))
        return make(self._draft_vocab_size)


def share_policy(policy: TreeParams | DraftPlan | TreePolicy | BatchPolicy) -> BatchPolicy:
    """Return a batch's policy, beside which sequences may have their own.

    Raises:
        TypeError: `policy` is no policy.
    """
    if isinstance(policy, PerSlotPolicies | MixedPolicies):
        return policy
    # A protocol of methods without values: of the policies of one sequence, none has `plan`.
    if hasattr(policy, "plan"):
        return MixedPolicies(cast("BatchPolicy", policy))
    return PerSlotPolicies(policy)


def check_name(policy: str) -> None:
    """Check the name of a policy.

    Raises:
        ValueError: there is none of this name.
    """
    if policy != "auto":
        raise ValueError(f'policy must be "auto", a tree, a plan or a policy, got {policy[:80]!r}')
