"""The draft of a cycle: the trees of all slots grow together, round by round."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import torch

from eaglerl.eagle3.batch.batch_policy import BatchPolicy
from eaglerl.eagle3.batch.batched_sequence import CyclePart, alive, failing, shared_passes
from eaglerl.eagle3.head.cached_draft import CachedDraft
from eaglerl.eagle3.head.packed_draft import PackedDraft
from eaglerl.eagle3.head.packed_slots import PackedSlots, SlotRows
from eaglerl.eagle3.layers.row_batch import MOST_EXACT_ROWS
from eaglerl.ops import DraftTreeBuilder


class BatchDrafter:
    """Drafts the trees of several slots, with one pass of the head for all of them each round.

    Heads whose runner cannot mix slots draft for one slot after another.
    """

    def __init__(self, draft: CachedDraft, policies: BatchPolicy) -> None:
        """Set up.

        Args:
            draft: the runner; its cache has the slots.
            policies: decide how far the trees grow.
        """
        self._draft = draft
        self._policies = policies
        self._shared: PackedSlots | None = None
        if isinstance(draft, PackedDraft) and draft.head_config.sliding_window is None:
            self._shared = PackedSlots(draft)
        self._builders = [DraftTreeBuilder() for _ in draft.lengths]
        self._most_rows = 0 if self._shared is None else MOST_EXACT_ROWS

    def draft(self, parts: Sequence[CyclePart]) -> None:
        """Draft the trees of these parts, looked-up tokens included."""
        rounds = 0
        self._extend(parts)
        drafted = going = alive(parts)
        while going := self._continuing(going, rounds):
            self._expand(going, rounds)
            going = alive(going)
            rounds += 1
        drafted = alive(drafted)
        with failing(*drafted):
            self._policies.select()
        for part in alive(drafted):
            with failing(part):
                builder = self._builders[part.slot]
                part.tree, part.params = self._policies.finish(part.slot, builder, part.lookup)

    def _continuing(self, parts: Sequence[CyclePart], depth: int) -> list[CyclePart]:
        """Show the policy the last pass; return the parts that draft another round."""
        if not parts:
            return []
        for part in parts:
            sequence = part.sequence
            with failing(part), sequence.policy_time:
                length = len(sequence.state.token_ids)
                builder = self._builders[part.slot]
                self._policies.look(part.slot, builder, depth, length, part.lookup)
        with failing(*parts):
            asked = set(self._policies.continuing())
            return [
                part
                for part in alive(parts)
                if part.slot in asked and depth < part.plan.params.depth
            ]
        return []

    def _extend(self, parts: Sequence[CyclePart]) -> None:
        """Run the first pass over all rows that the head has not processed."""
        taken = []
        for part in parts:
            taken.append(part.sequence.state.pending.take_as_they_are(self._draft.reduce))
            part.draft_rows += len(taken[-1][0])
        counts = [len(token_ids) for token_ids, _, _ in taken]
        rooms = [self._room(part) for part in parts]
        # Stable rows have no masked block.
        for group in shared_passes(counts, [0] * len(counts), rooms, self._most_rows):
            chosen = [parts[index] for index in group]
            with failing(*chosen):
                hidden, logits = self._first_pass(chosen, [taken[index] for index in group])
                for row, part in enumerate(chosen):
                    with failing(part):
                        self._begin(part, hidden[row : row + 1], logits[row])

    def _first_pass(
        self, parts: Sequence[CyclePart], taken: Sequence[tuple[torch.Tensor, torch.Tensor, bool]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self._shared is None or len(parts) == 1:
            # A prompt may be longer than a pass: `extend` reads it in pieces.
            (part,), ((token_ids, features, done),) = parts, taken
            hidden, logits = self._draft.extend(token_ids, features, part.slot, reduced=done)
            return hidden[None], logits[None]
        raw = [features for _, features, done in taken if not done]
        pieces: Iterator[torch.Tensor] = iter(())
        if raw:
            pieces = iter(self._draft.reduce(torch.cat(raw)).split([len(part) for part in raw]))
        rows = [
            SlotRows(part.slot, token_ids, features if done else next(pieces))
            for part, (token_ids, features, done) in zip(parts, taken, strict=True)
        ]
        return self._shared.extend_slots(rows)

    def _begin(self, part: CyclePart, hidden: torch.Tensor, logits: torch.Tensor) -> None:
        part.hidden = hidden
        part.sequence.state.first_logits = logits
        builder = self._builders[part.slot]
        builder.begin(part.root, part.plan.params.top_k)
        builder.first(logits.float(), self._draft.draft_to_target)

    def _expand(self, parts: Sequence[CyclePart], round_index: int) -> None:
        """Run another round for these parts."""
        frontiers = []
        for part in parts:
            assert part.hidden is not None, "the first pass came before"
            token_ids, parents, mask = self._builders[part.slot].frontier()
            part.draft_rows += len(token_ids)
            frontiers.append(SlotRows(part.slot, token_ids, part.hidden[parents], mask))
        counts = [len(frontier.token_ids) for frontier in frontiers]
        blocks = [(round_index + 1) * count for count in counts]
        rooms = [self._room(part) for part in parts]
        for group in shared_passes(counts, blocks, rooms, self._most_rows):
            chosen = [parts[index] for index in group]
            with failing(*chosen):
                rows = [frontiers[index] for index in group]
                hidden, logits = self._round(rows, round_index)
                bounds = accumulate((counts[index] for index in group), initial=0)
                for part, (begin, end) in zip(chosen, pairwise(bounds), strict=True):
                    with failing(part):
                        part.hidden = hidden[begin:end]
                        builder = self._builders[part.slot]
                        builder.expand(logits[begin:end].float(), self._draft.draft_to_target)

    def _round(
        self, rows: Sequence[SlotRows], round_index: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self._shared is not None and len(rows) > 1:
            return self._shared.expand_slots(rows, round_index)
        (only,) = rows
        assert only.mask is not None, "a frontier has a mask"
        return self._draft.expand(only.token_ids, only.hidden, round_index, only.mask, only.slot)

    def _room(self, part: CyclePart) -> int:
        return self._draft.cache.capacity - self._draft.lengths[part.slot]
