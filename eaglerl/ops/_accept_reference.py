"""`accept_draft` and `extend_ngrams` in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from eaglerl.ops.accept_draft import AcceptedDrafts
from eaglerl.ops.ngram_table import NGRAM_CONSTANTS, NgramTable


def extend_ngrams_ref(table: NgramTable, token_ids: Tensor, counts: Tensor) -> None:
    """Compute `extend_ngrams` in plain torch, by comparing the whole text; for tests.

    The tables of n-grams are neither read nor written.
    """
    width, capacity = token_ids.shape[1], table.texts.shape[1]
    matches, proposals, proposed = table.looked_up
    for slot, given in enumerate(counts.clamp(0, width).tolist()):
        if given == 0:
            continue
        length = int(table.lengths[slot])
        matches[slot] = proposals[slot] = 0
        if not 0 <= length <= capacity or given > capacity - length:
            table.lengths[slot] = NGRAM_CONSTANTS["closed"]
            continue
        table.texts[slot, length : length + given] = token_ids[slot, :given]
        length += given
        table.lengths[slot] = length
        match, end = _longest_match(table.texts[slot, :length], table.ends.shape[1] + 1)
        if match and proposed.shape[1]:
            matches[slot], proposals[slot] = match, proposed.shape[1]
            place = torch.arange(proposed.shape[1], device=proposed.device)
            proposed[slot] = table.texts[slot, end + place % (length - end)]


def _longest_match(text: Tensor, longest: int) -> tuple[int, int]:
    """Return length and end of the last of the longest earlier occurrences of the text's end."""
    ends = torch.arange(1, len(text), device=text.device)
    lengths = torch.zeros_like(ends)
    for back in range(1, min(longest, len(text)) + 1):
        same = (ends >= back) & (text[(ends - back).clamp(min=0)] == text[-back])
        lengths += same & (lengths == back - 1)
    lengths[lengths < NGRAM_CONSTANTS["shortest"]] = 0
    if not len(ends) or int(lengths.max()) == 0:
        return 0, 0
    best = int(lengths.max())
    return best, int(ends[lengths == best][-1])


def accept_draft_ref(
    token_ids: Tensor,
    parents: Tensor,
    levels: Tensor,
    ancestors: Tensor,
    enabled: Tensor,
    choices: Tensor,
    accepted: AcceptedDrafts,
    table: NgramTable | None = None,
) -> None:
    """Compute `accept_draft` in plain torch; for tests."""
    slots, rows = token_ids.shape
    longest = accepted.rows.shape[1]
    chosen = (token_ids == choices.gather(1, parents.clamp(0, rows - 1))) & enabled
    chosen[:, 0] = True
    taken = (chosen[:, None] | ~ancestors).all(-1) & (levels > 0) & (levels < longest)
    taken[:, 0] = False
    # All other rows are written behind the path.
    places = torch.where(taken, levels, longest)
    path = torch.zeros(slots, longest + 1, dtype=torch.int64, device=choices.device)
    path.scatter_(1, places, torch.arange(rows, device=choices.device).expand(slots, -1))
    accepted.rows.copy_(path[:, :longest])
    accepted.counts.copy_((1 + taken.sum(1)).clamp(max=longest))
    accepted.token_ids.copy_(choices.gather(1, accepted.rows))
    if table is not None:
        extend_ngrams_ref(table, accepted.token_ids, accepted.counts)
