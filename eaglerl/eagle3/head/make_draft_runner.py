"""The choice of a draft head's runner."""

import warnings
from typing import Literal

from eaglerl.eagle3.head.cached_draft import CachedDraft
from eaglerl.eagle3.head.draft_head import Eagle3DraftHead
from eaglerl.eagle3.head.module_draft import ModuleDraft
from eaglerl.eagle3.head.packed_draft import PackedDraft, why_not_packed

DraftDtype = Literal["auto", "float32", "bfloat16", "int8"]


def make_draft_runner(
    head: Eagle3DraftHead, *, capacity: int, slots: int = 1, dtype: DraftDtype = "auto"
) -> CachedDraft:
    """Return the fastest runner for a head: `PackedDraft` on the CPU, else `ModuleDraft`.

    A head on the CPU that cannot be packed runs as a module with ``dtype="auto"``, and a warning
    says so.

    Args:
        head: the head; it must have an embedding table.
        capacity: rows per slot: stable rows and the scratch rows of the widest tree.
        slots: number of sequences.
        dtype: the dtype of the packed products. "auto" is int8, which costs SmolLM2's head no
            measurable acceptance. On other devices the head keeps its own dtype.

    Raises:
        ValueError: the head has no embedding table, an argument is out of range, or ``dtype`` is
            not "auto" and the head cannot be packed.
    """
    if head.fc.weight.device.type != "cpu":
        return ModuleDraft(head, capacity=capacity, slots=slots)
    reason = why_not_packed(head)
    if reason is not None and dtype == "auto":
        warnings.warn(f"the draft head runs unpacked, which is slower: {reason}", stacklevel=2)
        return ModuleDraft(head, capacity=capacity, slots=slots)
    packed_dtype = "int8" if dtype == "auto" else dtype
    return PackedDraft(head, capacity=capacity, slots=slots, dtype=packed_dtype)
