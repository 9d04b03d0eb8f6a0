"""`select_draft_nodes` against its definition, against float64, and with bad arguments."""

import math

import numpy as np
import pytest
import torch

from eaglerl._ext import C
from eaglerl.ops import (
    ActionCache,
    NodeSelection,
    SelectionSizes,
    action_cache_step,
    select_draft_nodes,
    select_draft_nodes_ref,
)
from eaglerl.ops.node_selection import CONSTANTS, LookedUp, pack_rule, rule_layout, stack_rules

from .selection_cases import SIZES, Drafts, random_drafts


def same(first: NodeSelection, second: NodeSelection) -> None:
    for name, tensor in first.tensors.items():
        if name != "scratch":
            expected = second.tensors[name]
            if tensor.is_floating_point():
                tensor, expected = tensor.view(torch.int32), expected.view(torch.int32)
            assert torch.equal(tensor, expected), name


def compare(drafts: Drafts, slots: int) -> torch.Tensor:
    mine, judge = (NodeSelection(slots, drafts.sizes) for _ in range(2))
    for level in range(drafts.sizes.depth + 1):
        select_draft_nodes(mine, *drafts.call(level))
        select_draft_nodes_ref(judge, *drafts.call(level))
        same(mine, judge)
    return mine.record


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_native_equals_the_definition(sizes: SelectionSizes) -> None:
    """All bits, levels that follow the stop flag included."""
    records = torch.cat(
        [compare(random_drafts(seed, sizes, 200, limited=seed % 2 == 1), 200) for seed in range(4)]
    )
    if sizes.depth > 1 and sizes.rows > 1:
        assert len(records[:, 0].unique()) > 2  # drafts end at different levels
    if sizes.rows > 5:
        assert len(records[:, 2].unique()) > 4
    if sizes.lookup_tokens and sizes.rows > 5:
        assert (records[:, 3] > 0).any()
        assert (records[:, 4] > 0).any()


@pytest.mark.slow
@pytest.mark.parametrize("limited", [False, True])
def test_native_equals_the_definition_in_100_000_cases(limited: bool) -> None:
    for seed in range(100):
        compare(random_drafts(1000 + seed, SIZES[seed % len(SIZES)], 1000, limited), 1000)


def within(drafts: Drafts, sizes: SelectionSizes) -> Drafts:
    """Return drafts that are no larger than some sizes, with the parts of the rules for these."""
    parts, match = rule_layout(drafts.sizes), CONSTANTS["longest_match"] + 1
    top_k, depth, rows, lookup = sizes
    tail = drafts.rule[:, parts["tail"] : parts["price"]]
    tail = tail.view(len(tail), match, drafts.sizes.lookup_tokens)[:, :, :lookup]
    words = [drafts.rule[:, : parts["tail"]], tail.flatten(1)]
    for name, count in (("price", rows), ("pass_price", depth), ("ratio", depth), ("gain", depth)):
        words.append(drafts.rule[:, parts[name] : parts[name] + count])
    lengths, counts, ids = drafts.lookup
    levels = [
        tuple(each[:, :top_k, :top_k].contiguous() for each in level)
        for level in drafts.levels[: depth + 1]
    ]
    looked_up = LookedUp(lengths, counts, ids[:, :lookup].contiguous())
    return Drafts(sizes, torch.cat(words, 1), drafts.roots, looked_up, levels)


@pytest.mark.parametrize("sizes", SIZES[:5], ids=str)
def test_a_limited_draft_is_one_of_smaller_sizes(sizes: SelectionSizes) -> None:
    slots, source = 40, np.random.default_rng(9)
    for seed in range(8):
        drafts = random_drafts(seed, sizes, slots)
        most = (sizes.rows, sizes.depth, sizes.top_k, sizes.lookup_tokens)
        limits = source.integers((1, 0, 1, 0), most, endpoint=True)
        rows, depth, top_k, lookup = limits.tolist()
        small = within(drafts, SelectionSizes(top_k, depth, rows, lookup))
        drafts.limits = torch.from_numpy(limits.astype(np.int32)).repeat(slots, 1)
        mine, judge = NodeSelection(slots, sizes), NodeSelection(slots, small.sizes)
        for level in range(sizes.depth + 1):
            select_draft_nodes(mine, *drafts.call(level))
            if level <= depth:
                select_draft_nodes(judge, *small.call(level))
            for name in ("record", "row_ids", "row_parents", "row_levels", "enabled"):
                given = mine.tensors[name] if name == "record" else mine.tensors[name][:, :rows]
                assert torch.equal(given, judge.tensors[name]), name
            assert torch.equal(mine.ancestors[:, :rows, :rows], judge.ancestors)
            assert not mine.enabled[:, rows:].any()
            assert torch.equal(mine.frontier[:, 1:, :top_k], judge.frontier[:, 1:])
            repeated = mine.frontier[:, :, top_k - 1 :]
            assert torch.equal(repeated, repeated[:, :, :1].expand_as(repeated))


def test_limits_out_of_range_count_as_the_nearest() -> None:
    drafts, top = random_drafts(3, SIZES[0], 50), 2**31 - 1
    top_k, depth, rows, lookup = SIZES[0]
    found = {}
    for limits in (
        None, (top, top, top, top), (rows, depth, top_k, lookup), (1, 0, 1, 0), (0, -1, 0, -1),
        (-top - 1,) * 4,
    ):  # fmt: skip
        drafts.limits = None if limits is None else torch.tensor([limits] * 50, dtype=torch.int32)
        selection = found[limits] = NodeSelection(50, SIZES[0])
        for level in range(depth + 1):
            select_draft_nodes(selection, *drafts.call(level))
    first, *others = found.values()
    for other in others[:2]:
        same(first, other)
    for other in others[3:]:
        same(others[2], other)
    assert others[2].enabled.sum() == 50  # the roots


def test_an_action_limits_a_draft() -> None:
    """What an action cache keeps, slot by slot; looked-up tokens may reach below its depth."""
    sizes = SelectionSizes(3, 2, 8, 3)
    actions = torch.tensor([[4, 1, 2, 0], [8, 0, 1, 3]], dtype=torch.int32)
    _, limits = action_cache_step(torch.eye(2), actions, ActionCache(2))
    rule = believing(sizes, tail=np.full((17, 3), 2.0)).repeat(2, 1)
    looked_up = LookedUp(
        torch.tensor([5, 5]), torch.tensor([3, 3]), torch.tensor([[50, 51, 52]] * 2)
    )
    selection, roots = NodeSelection(2, sizes), torch.tensor([7, 8])
    for level in range(3):
        ids = torch.arange(9 if level else 3).view(-1, 3) + 10 * (level + 1)
        log_probs = torch.tensor([-0.5, -1.0, -1.5]).expand_as(ids)
        select_draft_nodes(
            selection, rule, level, roots, *(each.repeat(2, 1, 1) for each in (ids, log_probs)),
            looked_up, limits,
        )  # fmt: skip
    assert selection.record[:, 0].tolist() == [2, 1]
    assert selection.row_ids[0].tolist() == [7, 10, 11, 20, 7, 7, 7, 7]
    assert selection.row_ids[1].tolist() == [8, 10, 50, 51, 52, 8, 8, 8]
    assert selection.row_levels[1].tolist() == [0, 1, 1, 2, 3, 1, 1, 1]
    assert selection.logits[1, 1:3].tolist() == [CONSTANTS["least_logit"]] * 2


def believing(sizes: SelectionSizes, **parts: object) -> torch.Tensor:
    """Return a rule that believes the draft, and that rows and passes cost nothing."""
    match, depth = CONSTANTS["longest_match"] + 1, sizes.depth
    defaults = {
        "confidence": 1.0, "agree": np.zeros(match), "disagree": np.zeros(match),
        "tail": np.full((match, sizes.lookup_tokens), -30.0), "price": np.zeros(sizes.rows),
        "pass_price": np.zeros(depth), "ratio": np.ones(depth), "gain": np.ones(depth),
    }  # fmt: skip
    return stack_rules([pack_rule(sizes, defaults | parts)])


def test_survivals_are_those_of_float64() -> None:
    """Within what fixed point and linear steps between entries of the tables may be off."""
    sizes = SelectionSizes(32, 0, 33)
    source = np.random.default_rng(0)
    worst = 0.0
    for bias, slope, surplus in source.normal(size=(40, 3)) * (2.0, 0.5, 0.5) + (0.0, 1.0, 0.0):
        rule = believing(sizes, bias=bias, confidence=slope, surplus=surplus)
        scores = -np.exp(source.uniform(math.log(1e-3), math.log(11.0), (1, 1, 32)))
        selection = NodeSelection(1, sizes)
        ids = torch.arange(32)[None, None]
        log_probs = torch.from_numpy(scores.astype(np.float32))
        select_draft_nodes(selection, rule, 0, torch.zeros(1, dtype=torch.int64), ids, log_probs)
        confidence = np.clip(scores - np.log1p(-np.exp(scores)), -12, 8)
        logit = bias + slope * confidence + surplus * np.maximum(confidence, 0.0)
        expected = 1 / (1 + np.exp(-logit[0, 0]))
        found = 1 / (1 + np.exp(-selection.logits[0].numpy() / 2.0 ** CONSTANTS["logit_bits"]))
        worst = max(worst, np.abs(found - expected).max())
        total = selection.record[0, 5].item() / 2.0 ** CONSTANTS["survival_bits"]
        assert total == pytest.approx(expected.sum(), abs=32 * 2e-3)
    assert worst < 2e-3


def test_tables_are_those_of_float64() -> None:
    confidences, survivals = C.selection_tables()
    logits = (np.arange(len(survivals)) - 512) / 32
    assert np.abs(survivals / 2.0**20 - 1 / (1 + np.exp(-logits))).max() < 2.0**-20
    bits = CONSTANTS["least_score_bits"] + (np.arange(len(confidences)) << 18)
    below = bits.astype(np.int32).view(np.float32).astype(np.float64)
    expected = np.clip(-below - np.log1p(-np.exp(-below)), -12, 8)
    assert np.abs(confidences / 2.0**12 - expected).max() < 2.0**-12


def draft(selection: NodeSelection, rule: torch.Tensor, *levels: list, **options: object) -> None:
    """Draft levels of (tokens, log-probabilities), each a list for every expanded node."""
    for level, children in enumerate(levels):
        ids = torch.tensor([[[token for token, _ in each] for each in children]])
        log_probs = torch.tensor([[[value for _, value in each] for each in children]])
        select_draft_nodes(selection, rule, level, torch.tensor([7]), ids, log_probs, **options)


def test_a_tree_by_hand() -> None:
    sizes = SelectionSizes(2, 1, 5)
    selection = NodeSelection(1, sizes)
    log = math.log
    draft(
        selection,
        # The third and fourth row cost more than any of what is left is worth.
        believing(sizes, price=[0.0, 0.1, 0.2, 0.3, 0.9]),
        [[(11, log(0.6)), (12, log(0.3))]],
        [[(21, log(0.9)), (22, log(0.05))], [(31, log(0.5)), (32, log(0.4))]],
    )
    assert selection.record[0, :6].tolist()[:5] == [2, 1, 3, 0, 0]
    assert selection.row_ids[0].tolist() == [7, 11, 12, 21, 7]
    assert selection.row_parents[0].tolist() == [0, 0, 0, 1, 0]
    assert selection.row_levels[0].tolist() == [0, 1, 1, 2, 1]
    assert selection.row_nodes[0].tolist() == [-1, 0, 1, 2, -1]
    assert selection.enabled[0].tolist() == [True, True, True, True, False]
    expected = torch.eye(5, dtype=torch.bool)
    expected[:, 0] = expected[3, 1] = True
    assert torch.equal(selection.ancestors[0], expected)
    assert selection.frontier[0].tolist() == [[2, 4], [21, 31], [0, 1]]
    assert selection.record[0, 5] / 2**20 == pytest.approx(0.6 + 0.3 + 0.54, abs=2e-3)


def test_a_lookup_that_leaves_the_draft() -> None:
    sizes = SelectionSizes(2, 1, 6, 4)
    selection = NodeSelection(1, sizes)
    tail = np.full((17, 4), 2.0)
    looked_up = LookedUp(
        torch.tensor([5]), torch.tensor([3]), torch.tensor([[12, 50, 51, 0]], dtype=torch.int64)
    )
    draft(
        selection,
        believing(sizes, tail=tail, price=[0.0, 0.1, 0.2, 0.3, 0.4, 0.5]),
        [[(11, -0.5), (12, -0.9)]],
        [[(21, -5.0), (22, -6.0)], [(31, -5.0), (32, -6.0)]],
        lookup=looked_up,
    )
    assert selection.record[0, 2:5].tolist() == [2, 2, 1]
    assert selection.row_ids[0].tolist() == [7, 11, 12, 50, 51, 7]
    assert selection.row_parents[0].tolist() == [0, 0, 0, 2, 3, 0]
    assert selection.row_nodes[0].tolist() == [-1, 0, 1, 7, 8, -1]
    assert selection.lookup_nodes[0].tolist() == [1, -1]


def test_a_stopped_draft_stays() -> None:
    sizes = SelectionSizes(2, 3, 8)
    selection = NodeSelection(1, sizes)
    rule = believing(sizes, pass_price=[9.0] * 3, price=[0.01 * row for row in range(8)])
    draft(selection, rule, [[(1, -0.1), (2, -3.0)]])
    assert selection.record[0, 1] == 1
    before = {name: tensor.clone() for name, tensor in selection.tensors.items()}
    ids, log_probs = torch.ones(1, 2, 2, dtype=torch.int64), torch.zeros(1, 2, 2)
    select_draft_nodes(selection, rule, 1, torch.tensor([7]), ids, log_probs)
    assert all(torch.equal(tensor, before[name]) for name, tensor in selection.tensors.items())
    draft(selection, rule, [[(3, -0.1), (4, -3.0)]])
    assert selection.row_ids[0, 1] == 3


def test_a_level_that_was_left_out() -> None:
    selection = NodeSelection(1, SelectionSizes(2, 2, 4))
    rule = believing(selection.sizes)
    draft(selection, rule, [[(1, -0.1), (2, -3.0)]])
    ids, log_probs = torch.ones(1, 2, 2, dtype=torch.int64), torch.zeros(1, 2, 2)
    with pytest.raises(ValueError, match="level must be 1, the next of slot 0, got 2"):
        select_draft_nodes(selection, rule, 2, torch.tensor([7]), ids, log_probs)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"level": 3}, ValueError, "level must be in 0..2, got 3"),
        ({"rule": torch.zeros(1, 3, dtype=torch.int32)}, ValueError, "rule must be contiguous"),
        ({"rule": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "rule must be torch.int32"),
        ({"roots": torch.zeros(3, dtype=torch.int64)}, ValueError, r"roots .* shape \(2,\)"),
        ({"token_ids": torch.zeros(2, 1, 3, dtype=torch.int64)}, ValueError, "token_ids"),
        ({"log_probs": torch.zeros(2, 1, 2).double()}, TypeError, "log_probs must be torch.float"),
        ({"log_probs": torch.zeros(2, 2, 1).transpose(1, 2)[:, :, ::2]}, ValueError, "log_probs"),
        ({"limits": torch.zeros(2, 4)}, TypeError, "limits must be torch.int32, got torch.float32"),
        ({"limits": torch.ones(2, 3).int()}, ValueError, r"limits .* shape \(2, 4\), got .*2, 3"),
        ({"limits": torch.ones(1, 4).int()}, ValueError, r"limits .* shape \(2, 4\), got .*1, 4"),
        ({"limits": torch.ones(4, 2).int().T}, ValueError, r"limits must be contiguous .*\(1, 2\)"),
    ],
    ids=str,
)
def test_bad_arguments(change: dict, error: type, message: str) -> None:
    sizes = SelectionSizes(2, 2, 4)
    selection = NodeSelection(2, sizes)
    arguments = {
        "rule": believing(sizes).expand(2, -1).contiguous(), "level": 0,
        "roots": torch.zeros(2, dtype=torch.int64),
        "token_ids": torch.zeros(2, 1, 2, dtype=torch.int64), "log_probs": torch.zeros(2, 1, 2),
    }  # fmt: skip
    with pytest.raises(error, match=message):
        select_draft_nodes(selection, **(arguments | change))
    assert not any(tensor.any() for tensor in selection.tensors.values())


def test_the_operator_takes_each_tensor_in_its_own_list() -> None:
    """As many in all, but one among the tables: the others would be taken for their neighbours."""
    sizes = SelectionSizes(2, 2, 4)
    selection, none = NodeSelection(1, sizes), torch.zeros(1, dtype=torch.int64)
    *tensors, keys = selection.tensors.values()
    ids, log_probs = torch.zeros(1, 1, 2, dtype=torch.int64), torch.zeros(1, 1, 2)
    drafted = [none, ids, log_probs, *selection.no_lookup]
    with pytest.raises(ValueError, match="there must be 23 tensors"):
        torch.ops.eaglerl.select_draft_nodes(
            tensors, [keys, *selection.tables], believing(sizes), list(sizes), 0, drafted
        )


def test_a_rule_that_would_overflow() -> None:
    sizes = SelectionSizes(2, 2, 4)
    for name in ("confidence", "bias", "price", "pass_price", "ratio", "gain", "most_levels"):
        rule = believing(sizes)
        rule[0, C.selection_rule_layout(list(sizes))[name]] = -(2**31)
        with pytest.raises(ValueError, match="of rule must be in"):
            draft(NodeSelection(1, sizes), rule, [[(1, -0.1), (2, -3.0)]])


def test_state_that_anyone_may_write_to() -> None:
    """Whatever the state holds, nothing outside of it is read or written."""
    for seed in range(60):
        drafts = random_drafts(seed, SIZES[seed % 5], 20, limited=seed % 2 == 1)
        selection = NodeSelection(20, drafts.sizes)
        generator = torch.Generator().manual_seed(seed)
        for level in range(drafts.sizes.depth + 1):
            for tensor in (selection.frontier, selection.lookup_nodes, selection.pool_parents):
                noise = torch.randint(-(2**31), 2**31 - 1, tensor.shape, generator=generator)
                tensor.copy_(noise)
            selection.record[:, 4] = 2**31 - 1
            if drafts.limits is not None:  # others than at the level before
                drafts.limits = drafts.limits.roll(1, 0)
            select_draft_nodes(selection, *drafts.call(level))
        rows = torch.arange(drafts.sizes.rows)
        assert ((selection.row_parents < rows) | (rows == 0)).all()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"nonsense": 1}, "parts must be among"),
        ({"price": [0.0]}, r"price must have shape \(4,\), got \(1,\)"),
        ({"price": [0.0, 0.2, 0.1, 0.3]}, "price must not fall"),
        ({"bias": math.nan}, "bias must be finite"),
    ],
    ids=str,
)
def test_bad_rules(parts: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        believing(SelectionSizes(2, 2, 4), **parts)
    with pytest.raises(ValueError, match="agree is missing"):
        pack_rule(SelectionSizes(2, 2, 4), {})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, (1, 1, 2)), ValueError, "slots must be at least 1, got 0"),
        ((1, (33, 1, 2)), ValueError, "top_k must be in 1..32, got 33"),
        ((1, (1, 32, 2)), ValueError, "depth must be in 0..31, got 32"),
        ((1, (1, 1, 257)), ValueError, "rows must be in 1..256, got 257"),
        ((1, (1, 1, 2, 65)), ValueError, "lookup_tokens must be in 0..64, got 65"),
        ((1, (1.5, 1, 2)), TypeError, "top_k must be an int"),
        ((True, (1, 1, 2)), TypeError, "slots must be an int"),
    ],
    ids=str,
)
def test_bad_sizes(arguments: tuple, error: type, message: str) -> None:
    slots, sizes = arguments
    with pytest.raises(error, match=message):
        NodeSelection(slots, SelectionSizes(*sizes))


def test_torch_compile_takes_it() -> None:
    sizes = SelectionSizes(2, 1, 4)
    mine, expected = NodeSelection(1, sizes), NodeSelection(1, sizes)
    rule = believing(sizes)
    ids, log_probs = torch.tensor([[[1, 2]]]), torch.tensor([[[-0.1, -3.0]]])

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(rule: torch.Tensor, ids: torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
        select_draft_nodes(mine, rule, 0, ids[:, 0, 0], ids, log_probs)
        return mine.row_ids + 0

    found = compiled(rule, ids, log_probs)
    select_draft_nodes(expected, rule, 0, ids[:, 0, 0], ids, log_probs)
    assert torch.equal(found, expected.row_ids)
