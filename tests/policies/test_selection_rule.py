"""The rule that a device decides by, beside what the policy itself decides in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eaglerl.cost.online_cost import OnlineCost
from eaglerl.eagle3 import TreeParams
from eaglerl.eagle3.ruled_policy import DeviceDraft, read_report, report_of, report_size
from eaglerl.ops import NodeSelection, SelectionSizes, select_draft_nodes, stack_rules
from eaglerl.ops.node_selection import CONSTANTS, INSIDE, STOPPED, LookedUp
from eaglerl.policies import AutoPolicy

from ..ops.selection_cases import random_drafts

SIZES = SelectionSizes(3, 3, 16, 6)
LIMIT = TreeParams(16, 3, 3)
CYCLES = 400


def learned_policy() -> AutoPolicy:
    cost = OnlineCost((SIZES.top_k,))
    for rows in [1, 2, 4, 8, 12, 16] * 30:
        cost._native.observe(rows, 100, 4e-3 * (1 + 0.06 * rows), 0, 2, 4e-4 * 3)
    return AutoPolicy(cost, limit=LIMIT, lookup_tokens=SIZES.lookup_tokens)


def test_decisions_are_nearly_the_policys_own() -> None:
    """Survivals within fixed point; rows and stops but for near ties and the look-ahead."""
    policy, source = learned_policy(), np.random.default_rng(0)
    cycle, selection = policy._cycle, NodeSelection(1, SIZES)
    worst, chosen, stops, drafts = 0.0, [], [], 0
    for number in range(CYCLES):
        case = random_drafts(number, SIZES, 1)
        case.levels = [
            (ids, torch.nan_to_num(log_probs, nan=-1.0, neginf=-20.0).clamp(max=0.0))
            for ids, log_probs in case.levels
        ]
        match = max(int(case.lookup.match_lengths[0]), 0)
        count = int(case.lookup.counts[0].clamp(0, SIZES.lookup_tokens)) if match else 0
        looked_up = case.lookup.token_ids[0, :count].tolist()
        drafted, _ = cycle.plan(100, match, count, 2)
        rule = stack_rules([cycle.selection_rule(list(SIZES))])
        lookup = LookedUp(torch.tensor([match]), torch.tensor([count]), case.lookup.token_ids)
        for level, (ids, log_probs) in enumerate(case.levels):
            select_draft_nodes(selection, rule, level, case.roots, ids, log_probs, lookup)
            end = SIZES.level_begin(level + 1)
            nodes = selection.lookup_nodes[0, : level + 1].numpy().astype(np.int64)
            goes_on = cycle.score(
                selection.scores[0, :end].numpy(), level, 100, match, count,
                nodes if count else None,
            )  # fmt: skip
            survivals, _ = cycle.survival()
            logits = selection.logits[0, :end].numpy() / 2.0 ** CONSTANTS["logit_bits"]
            worst = max(worst, np.abs(1 / (1 + np.exp(-logits)) - survivals).max())
            stopped = bool(selection.record[0, STOPPED])
            if level < SIZES.depth:
                stops.append(stopped == (not goes_on))
            if stopped:
                break
        own_nodes, own_lookup = cycle.select()
        draft = read_report(report_of(selection)[0].tolist(), SIZES, SIZES.depth + 1)
        chosen.append((draft.nodes, draft.lookup_tokens) == (own_nodes.tolist(), own_lookup))
        # What was chosen by the rule is what is learned from.
        cycle.take_choice(draft.nodes, draft.lookup_tokens)
        drafts += drafted
        rows = [row for row in range(1, draft.rows) if source.random() < 0.4][:3]
        tokens = [int(source.integers(0, 6)) for _ in range(len(rows) + 1)]
        cycle.observe_planned(rows, tokens, looked_up, draft.rows, 4e-3, 1e-3)
    assert worst < 2e-3
    assert np.mean(chosen) > 0.9
    assert np.mean(stops) > 0.9
    assert drafts > 0


def test_a_report_is_what_was_chosen() -> None:
    case = random_drafts(3, SIZES, 1)
    selection = NodeSelection(1, SIZES)
    for level in range(SIZES.depth + 1):
        select_draft_nodes(selection, *case.call(level))
    numbers = report_of(selection)[0].tolist()
    assert len(numbers) == report_size(SIZES)
    draft = read_report(numbers, SIZES, 4)
    rows = selection.row_nodes[0, 1:][selection.enabled[0, 1:]].tolist()
    assert draft.nodes == [node for node in rows if node < SIZES.pool_size]
    assert draft.added == len(rows) - len(draft.nodes)
    assert draft.rows == int(selection.enabled.sum())
    assert draft.levels == selection.record[0, 0]
    held = selection.record[0, INSIDE].item()
    assert draft.lookup_tokens == (held + draft.added if draft.added else 0)
    assert np.array_equal(
        draft.scores.view(np.int32), selection.scores[0].view(torch.int32).numpy()
    )
    assert isinstance(draft, DeviceDraft)


def test_what_a_choice_may_be() -> None:
    cycle = learned_policy()._cycle
    cycle.plan(10, 0, 0, 1)
    with pytest.raises(ValueError, match=r"score\(\) must be called first"):
        cycle.take_choice([0], 0)
    with pytest.raises(ValueError, match=r"top_k must be in 1..32, got 33"):
        cycle.selection_rule([33, 1, 2, 0])
    cycle.score(np.array([-0.1, -2.0, -3.0], np.float32), 0, 10, 0, 0, None)
    for nodes, lookup in (([3], 0), ([1, 1], 0), ([-1], 0), ([0], 1)):
        with pytest.raises(ValueError, match="must be in"):
            cycle.take_choice(nodes, lookup)
