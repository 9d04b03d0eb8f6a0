"""`select_draft_nodes` in plain torch, over all slots at once."""

from __future__ import annotations

import torch
from torch import Tensor

from eaglerl.ops.node_selection import (
    ADDED,
    CONSTANTS,
    EXPECTED,
    INSIDE,
    LEVELS,
    NODES,
    PASS_COST,
    PROMISED,
    STOPPED,
    LookedUp,
    NodeSelection,
    rule_layout,
)

_SURVIVAL, _LOGIT, _RATIO = (CONSTANTS[f"{kind}_bits"] for kind in ("survival", "logit", "ratio"))
_LAST = 2**31 - 1


def select_draft_nodes_ref(
    selection: NodeSelection,
    rule: Tensor,
    level: int,
    roots: Tensor,
    token_ids: Tensor,
    log_probs: Tensor,
    lookup: LookedUp | None = None,
    limits: Tensor | None = None,
) -> None:
    """Compute `select_draft_nodes` in plain torch; for tests."""
    before = {name: tensor.clone() for name, tensor in selection.tensors.items()}
    going = torch.ones_like(selection.record[:, 0], dtype=torch.bool)
    if level > 0:
        going = (selection.record[:, STOPPED] == 0) & (selection.record[:, LEVELS] == level)
    looked_up = selection.no_lookup if lookup is None else lookup
    drafted = (roots, token_ids, log_probs, looked_up)
    _Level(selection, rule.long(), level, *drafted, _limits(selection, limits)).run()
    for name, tensor in selection.tensors.items():
        shape = (-1, *[1] * (tensor.ndim - 1))
        tensor.copy_(torch.where(going.view(shape), tensor, before[name]))


def _limits(selection: NodeSelection, limits: Tensor | None) -> Tensor:
    """Return (S, 4) int64 rows, passes, top_k and looked-up tokens, within the sizes."""
    top_k, depth, rows, lookup = selection.sizes
    most = selection.record.new_tensor([rows, depth, top_k, lookup]).long()
    if limits is None:
        return most.expand(selection.slots, -1)
    return limits.long().clamp(most.new_tensor([1, 0, 1, 0]), most)


class _Level:
    """One call for all slots, stopped or not."""

    def __init__(
        self, selection: NodeSelection, rule: Tensor, level: int, roots: Tensor, token_ids: Tensor,
        log_probs: Tensor, lookup: LookedUp, limits: Tensor,
    ) -> None:  # fmt: skip
        self.selection, self.rule, self.level = selection, rule, level
        self.roots, self.lookup = roots, lookup
        self.token_ids, self.log_probs = token_ids.flatten(1), log_probs.flatten(1)
        self.sizes, self.layout = selection.sizes, rule_layout(selection.sizes)
        self.confidences, self.survivals = (table.long() for table in selection.tables)
        self.match = lookup.match_lengths.clamp(0, CONSTANTS["longest_match"])
        self.most_rows, self.most_passes, self.width, most_offered = limits.unbind(1)
        offered = torch.minimum(lookup.counts.clamp(min=0), most_offered)
        self.offered = torch.where(self.match > 0, offered, 0)
        self.begin = self.sizes.level_begin(level)
        self.end = self.begin + self.token_ids.shape[1]
        self.row = torch.arange(len(rule), device=rule.device)[:, None]
        # Which children of each level, and which nodes of the pool, are candidates.
        top_k, width = self.sizes.top_k, self.width[:, None]
        place = torch.arange(top_k**2, device=rule.device)
        below = (place % top_k < width) & (place.div(top_k, rounding_mode="floor") < width)
        self.possible = torch.cat((below[:, :top_k], below.repeat(1, level)), 1)

    def part(self, name: str, count: int) -> Tensor:
        """Return (S, count) words of the rules."""
        begin = self.layout[name]
        return self.rule[:, begin : begin + count]

    def run(self) -> None:
        self._add_candidates()
        self._find_inside()
        self._choose()
        self._write_rows()
        self._expand()
        self._decide()

    def _survival(self, logit: Tensor) -> Tensor:
        offset = logit.clamp(CONSTANTS["least_logit"], CONSTANTS["most_logit"])
        offset = offset - CONSTANTS["least_logit"]
        return _between(self.survivals, offset, CONSTANTS["survival_step_bits"])

    def _confidence(self, score: Tensor) -> Tensor:
        # The bits of a positive float32 are ordered as the number is.
        below = torch.where(score.isnan(), torch.inf, (-score).clamp(min=0.0))
        bits = below.view(torch.int32).long()
        bits = bits.clamp(CONSTANTS["least_score_bits"], CONSTANTS["most_score_bits"])
        offset = bits - CONSTANTS["least_score_bits"]
        step, fraction = CONSTANTS["score_step_bits"], CONSTANTS["score_fraction_bits"]
        return _between(self.confidences, offset >> (step - fraction), fraction)

    def _add_candidates(self) -> None:
        state, level = self.selection, self.level
        slots, count = self.token_ids.shape
        if level == 0:
            parents = torch.full((slots, count), -1, device=self.rule.device)
            scores = self.log_probs
        else:
            parents = state.frontier[:, 0].repeat_interleave(self.sizes.top_k, dim=1)
            previous = self.sizes.level_begin(level - 1)
            parents = parents.clamp(previous, self.begin - 1)
            scores = state.scores.gather(1, parents) + self.log_probs
        agrees, possible = self._looked_up(parents), self.possible[:, self.begin :]
        confidence = self._confidence(scores)
        logit = self.part("bias", 1) + self.part("level", 1) * level
        logit = logit + ((self.part("confidence", 1) * confidence) >> _LOGIT)
        logit = logit + ((self.part("surplus", 1) * confidence.clamp(min=0)) >> _LOGIT)
        agree, disagree = (
            self.part(name, CONSTANTS["longest_match"] + 1).gather(1, self.match[:, None])
            for name in ("agree", "disagree")
        )
        text = torch.where(agrees, agree, disagree)
        logit = logit + torch.where(self.match[:, None] > 0, text, 0)
        logit = logit.clamp(CONSTANTS["least_logit"], CONSTANTS["most_logit"])
        if level > 0:
            logit = torch.minimum(logit, state.logits.gather(1, parents).long())
        logit = torch.where(possible, logit, CONSTANTS["least_logit"])
        where = slice(self.begin, self.end)
        state.scores[:, where], state.pool_ids[:, where] = scores, self.token_ids
        state.pool_parents[:, where], state.logits[:, where] = parents.int(), logit.int()
        index = torch.where(agrees, torch.arange(self.begin, self.end).to(agrees.device), _LAST)
        first = index.min(1).values
        state.lookup_nodes[:, level] = torch.where(first < _LAST, first, -1).int()

    def _looked_up(self, parents: Tensor) -> Tensor:
        """Return which candidates hold the looked-up token: one of each slot at most."""
        level, ids = self.level, self.lookup.token_ids
        if level >= ids.shape[1]:
            return torch.zeros_like(parents, dtype=torch.bool)
        above = torch.full_like(self.offered, -1)
        if level > 0:
            above = self.selection.lookup_nodes[:, level - 1].long()
        reached = (level < self.offered) & ((above >= 0) | (level == 0))
        found = reached[:, None] & (parents == above[:, None])
        found &= (self.token_ids == ids[:, level, None]) & self.possible[:, self.begin :]
        return found & (found.cumsum(1) == 1)

    def _find_inside(self) -> None:
        nodes = self.selection.lookup_nodes[:, : self.level + 1]
        place = torch.arange(self.level + 1, device=nodes.device)
        held = (nodes >= 0) & (place < self.offered[:, None])
        self.inside = held.long().cumprod(1).sum(1)
        last = (self.inside - 1).clamp(min=0)[:, None]
        holder = nodes.long().gather(1, last)[:, 0]
        self.holder = torch.where(self.inside > 0, holder, -1)

    def _looked_up_survivals(self) -> Tensor:
        """Return (S, L) survivals of looked-up tokens that no candidate holds; -1 for others."""
        lookup, state = self.sizes.lookup_tokens, self.selection
        matches = CONSTANTS["longest_match"] + 1
        tail = self.part("tail", matches * lookup).reshape(len(self.rule), matches, lookup)
        tail = tail[self.row[:, 0], self.match]
        holder = self._survival(state.logits.gather(1, self.holder.clamp(min=0)[:, None]).long())
        drafted = self.inside > 0
        reached = torch.where(drafted, holder[:, 0], 1 << _SURVIVAL)
        first = state.scores[:, 0]
        first = torch.where(first > -15.99, first, -15.99).clamp(max=0.0)
        beside = (self.part("tail_score", 1)[:, 0] * (first * (1 << _LOGIT)).long()) >> _LOGIT
        end = torch.minimum(self.offered, self.part("most_levels", 1)[:, 0])
        survivals = []
        for token in range(lookup):
            logit = tail[:, token] + drafted * self.part("tail_inside", 1)[:, 0]
            logit = logit + (self.inside == token) * beside
            taken = (self.inside <= token) & (token < end)
            reached = torch.where(taken, (reached * self._survival(logit)) >> _SURVIVAL, reached)
            survivals.append(torch.where(taken, reached, -1))
        return torch.stack(survivals, 1) if survivals else tail.new_zeros(len(tail), 0)

    def _choose(self) -> None:
        rows, pool = self.sizes.rows, self.sizes.pool_size
        drafted = self._survival(self.selection.logits[:, : self.end].long())
        drafted = torch.where(self.possible, drafted, -1)
        self.level_survivals = drafted[:, self.begin :]
        text = self._looked_up_survivals()
        survival = torch.cat((drafted, text), 1)
        index = torch.arange(survival.shape[1], device=survival.device)
        index = torch.where(index < self.end, index, index - self.end + pool)
        order = survival.sort(dim=1, descending=True, stable=True)
        self.best = order.values[:, : rows - 1]
        self.best_index = index[order.indices[:, : rows - 1]]
        exists = self.best >= 0
        sums = torch.where(exists, self.best, 0).cumsum(1)
        price = self.part("price", rows)[:, : 1 + self.best.shape[1]]
        none = torch.zeros_like(price[:, :1])
        sums = torch.cat((none, sums), 1)
        inside = (
            torch.arange(1, 1 + exists.shape[1], device=exists.device) < self.most_rows[:, None]
        )
        allowed = torch.cat((none == 0, exists & inside), 1)
        self.chosen = torch.where(allowed, sums - price, -(2**40)).argmax(1)
        self.expected = sums.gather(1, self.chosen[:, None])[:, 0]

    def _write_rows(self) -> None:
        state, sizes = self.selection, self.sizes
        pool, top_k, rows = sizes.pool_size, sizes.top_k, sizes.rows
        place = torch.arange(rows - 1, device=self.rule.device)
        index = torch.full((len(self.rule), rows - 1), _LAST, device=self.rule.device)
        known = self.best_index.shape[1]
        index[:, :known] = torch.where(place[:known] < self.chosen[:, None], self.best_index, _LAST)
        index = index.sort(dim=1).values
        used = index < _LAST
        text = used & (index >= pool)
        node = torch.where(used & ~text, index, 0)
        looked_up = torch.where(text, index - pool, 0)
        parent = state.pool_parents.gather(1, node).long()
        before = torch.where(looked_up == self.inside[:, None], self.holder[:, None], index - 1)
        parent = torch.where(text, before, parent)
        parent_row = torch.where(parent < 0, 0, 1 + torch.searchsorted(index, parent))
        parent_row = torch.where(used, parent_row, 0)
        token = state.pool_ids.gather(1, node)
        if sizes.lookup_tokens:
            token = torch.where(text, self.lookup.token_ids.gather(1, looked_up), token)
        token = torch.where(used, token, self.roots[:, None])
        level = torch.where(
            node < top_k, 1, 2 + (node - top_k).div(top_k**2, rounding_mode="floor")
        )
        level = torch.where(text, looked_up + 1, level)
        state.row_ids.copy_(torch.cat((self.roots[:, None], token), 1))
        state.row_parents.copy_(torch.nn.functional.pad(parent_row, (1, 0)))
        state.row_levels.copy_(torch.nn.functional.pad(torch.where(used, level, 1), (1, 0)))
        nodes = torch.where(used, index, -1)
        state.row_nodes.copy_(torch.nn.functional.pad(nodes, (1, 0), value=-1))
        state.enabled.copy_(torch.nn.functional.pad(used, (1, 0), value=True))
        state.ancestors.copy_(torch.eye(rows, dtype=torch.bool, device=used.device))
        at = torch.arange(rows, device=used.device).expand_as(state.row_parents)
        for _ in range(rows):
            at = state.row_parents.gather(1, at)
            state.ancestors.scatter_(2, at[:, :, None], True)
        record, added = state.record, text.sum(1)
        record[:, LEVELS], record[:, INSIDE] = self.level + 1, self.inside.int()
        record[:, NODES], record[:, ADDED] = (self.chosen - added).int(), added.int()
        record[:, EXPECTED] = self.expected.int()

    def _expand(self) -> None:
        state, top_k = self.selection, self.sizes.top_k
        scores = state.scores[:, self.begin : self.end]
        # NaN counts as less than minus infinity, and as more than what is no candidate.
        number = torch.where(scores == -torch.inf, -1e39, scores.double())
        number = torch.where(scores.isnan(), -1e40, number)
        scores = torch.where(self.possible[:, self.begin :], number, -torch.inf)
        best = scores.sort(dim=1, descending=True, stable=True).indices[:, :top_k]
        place = torch.arange(top_k, device=best.device)
        best = best.gather(1, torch.minimum(place, self.width[:, None] - 1))
        tokens = self.token_ids.gather(1, best)
        state.frontier.copy_(torch.stack((best + self.begin, tokens, best // top_k), 1))

    def _decide(self) -> None:
        sizes, record, level = self.sizes, self.selection.record, self.level
        top_k, rows = sizes.top_k, sizes.rows
        price = self.part("price", rows)
        more = torch.minimum(self.chosen + self.width, self.most_rows - 1)
        dearer = price.gather(1, more[:, None]) - price.gather(1, self.chosen[:, None])
        mean = dearer[:, 0].clamp(min=0) // (more - self.chosen).clamp(min=1)
        worst = torch.full_like(mean, 1 << _SURVIVAL)
        if self.best.shape[1]:
            last = (self.chosen - 1).clamp(min=0)[:, None]
            worst = torch.where(self.chosen > 0, self.best.gather(1, last)[:, 0], worst)
        row_price = torch.where(more > self.chosen, mean, worst)[:, None]
        top = self.level_survivals.sort(dim=1, descending=True).values[:, :top_k]
        top = torch.where(torch.arange(top_k, device=top.device) < self.width[:, None], top, 0)
        end = torch.minimum(self.part("most_levels", 1)[:, 0] - 1, self.most_passes)
        promised = torch.zeros_like(worst)
        cost, ratio = promised.clone(), torch.full_like(promised, 1 << _RATIO)
        pays = torch.zeros_like(promised, dtype=torch.bool)
        kept, kept_cost = promised.clone(), promised.clone()
        for following in range(level, sizes.depth):
            within = following < end
            ratio = (ratio * self.part("ratio", sizes.depth)[:, following]) >> _RATIO
            hope = (top * ratio[:, None]) >> _RATIO
            promised = promised + (hope - row_price).clamp(min=0).sum(1)
            cost = cost + self.part("pass_price", sizes.depth)[:, following]
            value = (promised * self.part("gain", sizes.depth)[:, level]) >> _RATIO
            more = (value - cost > kept - kept_cost) | torch.tensor(following == level)
            better = within & more
            kept = torch.where(better, value, kept)
            kept_cost = torch.where(better, cost, kept_cost)
            pays |= within & (value > cost)
        record[:, PROMISED] = kept.clamp(max=_LAST).int()
        record[:, PASS_COST] = kept_cost.clamp(max=_LAST).int()
        record[:, STOPPED] = (~pays).int()


def _between(table: Tensor, offset: Tensor, bits: int) -> Tensor:
    """Return the numbers at places in units of 2^-bits of an entry."""
    left = offset >> bits
    rise = table[left + 1] - table[left]
    return table[left] + ((rise * (offset & ((1 << bits) - 1))) >> bits)
