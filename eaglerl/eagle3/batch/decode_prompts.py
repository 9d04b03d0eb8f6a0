"""Several prompts that are decoded to their ends, together."""

from __future__ import annotations

from collections.abc import Sequence

from eaglerl.eagle3.batch.batch_policy import MOST_SLOTS, BatchPolicy
from eaglerl.eagle3.batch.batch_session import BatchSession
from eaglerl.eagle3.head.cached_draft import CachedDraft
from eaglerl.eagle3.output import DecodedSequence
from eaglerl.eagle3.sampling import GreedyVerifier
from eaglerl.eagle3.stopping import StoppingRules
from eaglerl.eagle3.target.target_model import TargetModel
from eaglerl.eagle3.verifier import Verifier

#: Most bytes of the target's KV cache for all slots. They are taken when they are first written.
MOST_BYTES = 4 << 30

#: What each prompt is decoded with.
Begun = Sequence[tuple[Verifier, StoppingRules]]


def slots_for(target: TargetModel, begun: Begun, capacity: int) -> int:
    """Return how many prompts to decode at once; 1 where one after another is another thing.

    Draws of several prompts come from one generator, in the order of the prompts, and processors
    and criteria may remember what they have seen. So only greedy prompts without them share a
    batch.

    Args:
        target: the target.
        begun: verifier and rules of every prompt.
        capacity: rows of a slot.
    """
    if target.device.type != "cpu" or not target.mixes_slots:
        return 1
    if any(type(verifier) is not GreedyVerifier for verifier, _ in begun):
        return 1
    if any(rules.has_criteria for _, rules in begun):
        return 1
    values = 2 * target.num_layers * target.num_kv_heads * target.head_dim
    slot_bytes = values * target.kv_cache_dtype.itemsize * capacity
    return max(1, min(MOST_SLOTS, len(begun), MOST_BYTES // slot_bytes))


def decode_together(
    target: TargetModel,
    draft_runner: CachedDraft | None,
    policies: BatchPolicy,
    prompts: Sequence[list[int]],
    begun: Begun,
    *,
    spare: int,
) -> list[DecodedSequence] | None:
    """Decode prompts to their ends; each joins as soon as there is a slot.

    Args:
        target: the target.
        draft_runner: a runner of the draft head; None without a head.
        policies: decides for all of them; of at least `MOST_SLOTS` slots.
        prompts: token ids.
        begun: verifier and rules of every prompt.
        spare: rows of a slot behind the longest sequence, for the trees of its last cycles.

    Returns:
        The sequences in the order of the prompts; None if they must be decoded one after another.

    Raises:
        Exception: what ended a sequence, and with it all others.
    """
    lengths = [len(ids) + rules.limit for ids, (_, rules) in zip(prompts, begun, strict=True)]
    capacity = max(lengths) + spare
    slots = slots_for(target, begun, capacity)
    if slots == 1:
        return None
    session = BatchSession(target, draft_runner, policies, slots=slots, capacity=capacity)
    waiting = list(zip(prompts, begun, strict=True))[::-1]
    sequences: list[DecodedSequence] = []
    try:
        while waiting or session.sequences:
            while waiting and session.free_slots:
                prompt, (verifier, rules) = waiting.pop()
                sequences.append(session.join(prompt, verifier, rules))
            for sequence, _ in session.step():
                if sequence.error is not None:
                    raise sequence.error
    finally:
        session.close()
    return sequences
