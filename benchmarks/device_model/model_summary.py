"""What the model says, in sentences for the head of its page."""

from __future__ import annotations

from assumptions import DEVICES, TARGETS
from cycle_costs import ENDS, cost_table
from decision_tables import CLAIMED, between, net_seconds
from decision_times import (
    cycle_seconds,
    find,
    folded_seconds,
    kept_seconds,
    selection_seconds,
)

from eaglerl.eagle3.policy import TreeParams

_DRAFT = (4, 5, 32, 12)
_LARGEST, _CONTEXT = TreeParams(32, 5, 4), 512


def decision_share() -> tuple[float, float]:
    """Return the least and the most that decisions add to a cycle of the policy's largest draft."""
    shares = []
    for target in TARGETS.values():
        for end in ENDS:
            free, paid = (cost_table(target, end, decides=on) for on in (False, True))
            added = paid.seconds(_LARGEST, _CONTEXT) / free.seconds(_LARGEST, _CONTEXT) - 1
            shares.append(added)
    return min(shares), max(shares)


def summary() -> str:
    """Return the sentences."""
    device = DEVICES[1]
    folded, choice = folded_seconds(device, 4096), selection_seconds(_DRAFT)
    both, kept = cycle_seconds(device, _DRAFT), kept_seconds(4096)
    replaced, net = net_seconds(_DRAFT)
    size = 1e6 * find("folded", 4096)["read"] / device.bandwidth
    least, most = (f"{100 * share:.1f}" for share in decision_share())
    if both.high <= CLAIMED:
        verdict = "holds"
    else:
        verdict = "does not hold" if both.low > CLAIMED else "is not shown to hold"
    return "\n".join((
        f"- **The claim that the folded decision and the choice of nodes add at most "
        f"{1e6 * CLAIMED:.0f} us to a constant tree's",
        f"  cycle on an {device.name} {verdict}.** By the model the folded decision takes "
        f"{between(folded)} us once a cycle, and the choice of nodes",
        f"  {between(choice)} us after each pass: {between(both)} us for a cycle of "
        f"{1 + _DRAFT[1]} passes. Reading the folded weights is {size:.1f} us of it.",
        f"- A folded launch that finds its decision kept takes {between(kept)} us.",
        f"- The choice of nodes stands in for {replaced} operations of torch in this package's "
        "own constant tree. Less those it is a difference of",
        f"  {between(net)} us per pass. Beside a constant tree whose bookkeeping were one kernel, "
        "there is nothing to subtract.",
        f"- Decisions add {least} to {most} % to a cycle of the targets below. Whether they pay "
        "depends on what they gain.",
    ))  # fmt: skip
