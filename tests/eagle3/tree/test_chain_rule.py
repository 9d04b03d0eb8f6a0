"""The rule of a sequence that drafts nothing, in a launch of one that does."""

import pytest
import torch

from eaglerl.eagle3.tree.chain_rule import chain_limits, chain_rule
from eaglerl.ops import NodeSelection, SelectionSizes, select_draft_nodes, stack_rules
from eaglerl.ops.node_selection import STOPPED, LookedUp

SIZES = SelectionSizes(top_k=3, depth=2, rows=8, lookup_tokens=6)


@pytest.mark.parametrize("tokens", range(7))
@pytest.mark.parametrize("match", [2, 16])
@pytest.mark.parametrize("place", [0, 1, 2, None])
def test_the_rows_are_the_looked_up_tokens(tokens: int, match: int, place: int | None) -> None:
    """Whether the head's pass holds the first of them or not, and however sure of it it is."""
    looked_up = [20 + token for token in range(6)]
    children = [30, 31, 32]
    if place is not None:
        children[place] = looked_up[0]
    selection = NodeSelection(1, SIZES)
    lookup = LookedUp(torch.tensor([match]), torch.tensor([6]), torch.tensor([looked_up]))
    limits = torch.tensor([chain_limits(8, tokens)], dtype=torch.int32)
    for log_probs in ([-0.001, -7.0, -8.0], [-2.0, -2.0, -2.0], [-15.0, -16.0, -17.0]):
        drafted = torch.tensor([[children]]), torch.tensor([[log_probs]])
        rule = stack_rules([chain_rule(SIZES)])
        select_draft_nodes(selection, rule, 0, torch.tensor([7]), *drafted, lookup, limits)
        used = selection.enabled[0]
        assert selection.row_ids[0][used].tolist() == [7, *looked_up[:tokens]]
        assert selection.row_levels[0][used].tolist() == [*range(tokens + 1)]
        assert int(selection.record[0, STOPPED]) == 1


def test_without_a_match_there_is_the_root() -> None:
    selection = NodeSelection(1, SIZES)
    drafted = torch.tensor([[[1, 2, 3]]]), torch.tensor([[[-0.001, -7.0, -8.0]]])
    limits = torch.tensor([chain_limits(8, 3)], dtype=torch.int32)
    rule = stack_rules([chain_rule(SIZES)])
    select_draft_nodes(selection, rule, 0, torch.tensor([7]), *drafted, None, limits)
    assert selection.row_ids[0][selection.enabled[0]].tolist() == [7]
