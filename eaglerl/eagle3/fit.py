"""Checks that the parts of a decoder fit together: target, draft head and policy."""

from __future__ import annotations

from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.eagle3.named_policies import PolicyChoice, check_name
from eaglerl.eagle3.policy import NO_DRAFT, ConstantPolicy, TreePolicy, as_plan, as_policy
from eaglerl.eagle3.target.target_model import TargetModel


def plain_policy(policy: PolicyChoice) -> TreePolicy:
    """Return a policy that drafts nothing, for a decoder without a head; "auto" is one.

    Raises:
        ValueError: `policy` drafts, or could draft.
    """
    if isinstance(policy, str):
        check_name(policy)
        return ConstantPolicy(NO_DRAFT)
    chosen = as_policy(policy)
    if isinstance(chosen, ConstantPolicy):
        plan = as_plan(chosen.params)
        if plan.params.total_tokens == 1 and not plan.lookup_tokens:
            return chosen
        name = str(policy if policy is not chosen else chosen.params)
    else:
        name = type(chosen).__name__
    raise ValueError(
        f"policy must draft nothing, since this decoder has no draft head: None or "
        f"TreeParams(total_tokens=1), got {name}"
    )


def check_fit(target: TargetModel, draft_head: Eagle3DraftHead) -> None:
    """Check that a head fits a target.

    Raises:
        ValueError: a size differs; the message names the first one.
    """
    config = draft_head.config
    for name, head_value, target_value in (
        ("vocab_size", config.vocab_size, target.vocab_size),
        ("hidden size of the features", config.feature_hidden_size, target.hidden_size),
        (
            "feature_layers",
            config.resolve_feature_layers(target.num_layers),
            target.feature_layers,
        ),
    ):
        if head_value != target_value:
            raise ValueError(
                f"the draft head does not fit the target: {name} is {head_value} in the head "
                f"and {target_value} in the target"
            )
