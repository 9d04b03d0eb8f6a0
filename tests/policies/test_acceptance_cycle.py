"""`CycleScorer` against `AcceptanceModel` in float64: random models and drafts, ties, bad input."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eaglerl._ext import C, build_info
from eaglerl.cost.cost_table import CostTable
from eaglerl.eagle3.policy import DraftProgress
from eaglerl.eagle3.tree.prompt_lookup import NO_LOOKUP, Lookup
from eaglerl.policies.acceptance_cycle import CycleScorer
from eaglerl.policies.acceptance_model import (
    LOOKUP_INPUTS,
    POOL_INPUTS,
    STOP_INPUTS,
    AcceptanceModel,
    Survival,
    stop_features,
)
from eaglerl.policies.candidates import Candidates, lookup_features, pool_features
from eaglerl.policies.small_net import SmallNet

UNIT = 2.0**-24  # of float32: the largest relative error of one rounding
# What a longer tree costs goes up and down, as what is measured does.
COST = CostTable(
    "made up", "float32", (1, 3, 5, 12, 64), (0.9, 0.8, 1.4, 1.3, 3.0), (1e-4, 1e-4, 2e-4, 3e-4, 0),
    (1, 2, 3, 4, 5), (0.1,) * 5, (0.1,) * 5,
)  # fmt: skip


def random_net(draw: np.random.Generator, inputs: int, hidden: int) -> SmallNet:
    shapes = ((inputs, hidden), (hidden, hidden), (hidden, 1))
    return SmallNet(
        tuple((draw.standard_normal(s) / np.sqrt(s[0])).astype(np.float32) for s in shapes),
        tuple(draw.standard_normal(s[1]).astype(np.float32) for s in shapes),
    )


def random_model(draw: np.random.Generator, *, hidden: int | None = None) -> AcceptanceModel:
    depth, lookup = int(draw.integers(4)), int(draw.integers(7))
    widths = [int(draw.integers(1, 40)) if hidden is None else hidden for _ in range(2)]
    return AcceptanceModel(
        top_k=int(draw.integers(1, 6)),
        max_depth=depth,
        max_rows=int(draw.integers(1, 40)),
        lookup_tokens=lookup,
        pool_net=random_net(draw, POOL_INPUTS, widths[0]),
        lookup_net=random_net(draw, LOOKUP_INPUTS, widths[1]) if lookup else None,
        stop_weights=draw.standard_normal((depth, STOP_INPUTS)).astype(np.float32),
        rate=1.0,
    )


def random_draft(draw: np.random.Generator, model: AcceptanceModel) -> Candidates:
    """One draft, in part of equal scores, and looked-up tokens that follow it for a while."""
    width, depth = model.top_k, model.max_depth
    parents: list[int] = [-1] * width
    scores = list(-np.sort(draw.integers(0, 4, width) / 2))
    begin, end = 0, width
    for _ in range(depth):
        frontier = sorted(range(begin, end), key=lambda i: (-scores[i], i))[:width]
        for node in frontier:
            gains = draw.integers(0, 3, width) / 2 if draw.random() < 0.5 else draw.random(width)
            scores += list(scores[node] - np.sort(gains))
            parents += [node] * width
        begin, end = end, end + width**2
    match = int(draw.integers(0, 20)) if model.lookup_tokens else 0
    node, path = int(draw.integers(-1, len(scores))) if match else -1, []
    while node >= 0:
        path.insert(0, node)
        node = parents[node]
    path = path[: model.lookup_tokens]
    return Candidates(
        top_k=width,
        depth=depth,
        scores=np.array([scores], dtype=np.float32),
        context_length=draw.integers(5, 3000, 1),
        match_length=np.array([match]),
        lookup_nodes=np.array([path + [-1] * (depth + 1 - len(path))]),
        success=draw.random(1),
        lookups=draw.integers(0, 20, 1),
    )


def progress_of(candidates: Candidates, lookup_tokens: int) -> DraftProgress:
    match = int(candidates.match_length[0])
    return DraftProgress(
        top_k=candidates.top_k,
        depth=candidates.depth,
        scores=candidates.scores[0],
        context_length=int(candidates.context_length[0]),
        lookup=Lookup(match, tuple(range(lookup_tokens))) if match else NO_LOOKUP,
        lookup_nodes=candidates.lookup_nodes[0] if match else None,
    )


def widened(model: AcceptanceModel) -> AcceptanceModel:
    """The same model in float64."""

    def wide(net: SmallNet) -> SmallNet:
        return SmallNet(
            tuple(w.astype(np.float64) for w in net.weights),
            tuple(b.astype(np.float64) for b in net.biases),
        )

    lookup_net = None if model.lookup_net is None else wide(model.lookup_net)
    return replace(model, pool_net=wide(model.pool_net), lookup_net=lookup_net)


def probability_error(net: SmallNet, x: np.ndarray) -> float:
    """Bound of what float32 makes of a float64 net's probabilities, whatever order it sums in.

    A sum of n products is wrong by n units of the sum of their sizes (Higham, Accuracy and
    Stability of Numerical Algorithms, 3.1). SiLU passes at most 1.1 times the error of its argument
    on, and adds what an exponential is wrong by: its argument's rounding, and some units.
    """
    x = x.astype(np.float64)
    error = UNIT * np.abs(x)
    for index, (weight, bias) in enumerate(zip(net.weights, net.biases, strict=True)):
        sizes = np.abs(x) @ np.abs(weight) + np.abs(bias)
        error = error @ np.abs(weight) + (weight.shape[0] + 2) * UNIT * sizes
        x = x @ weight + bias
        own = (8 + 2 * np.abs(x)) * UNIT
        if index < 2:
            x = x / (1 + np.exp(-x))
            error = 1.1 * error + own * np.abs(x)
    # The slope of the sigmoid is at most 1/4.
    return float((error / 4 + own).max())


def survival_error(model: AcceptanceModel, candidates: Candidates) -> float:
    """Bound for the survivals of one draft: a product adds up what its factors are wrong by."""
    error = probability_error(model.pool_net, pool_features(candidates, candidates.parents()))
    if model.lookup_net is None:
        return error
    inputs = lookup_features(candidates, model.lookup_tokens)
    return error + model.lookup_tokens * (probability_error(model.lookup_net, inputs) + 2 * UNIT)


def stop_margin(
    model: AcceptanceModel, candidates: Candidates, survival: Survival, plan, error: float
) -> tuple[float, float]:
    """What another round is worth, and how wrong that can be if survivals are by `error`."""
    features = stop_features(candidates, survival, plan)[0]
    figures = features[1:11]
    width, rows = candidates.top_k, int(plan.rows[0])
    wrong = error * np.array([width, 1, 1, width, 0, rows, 0, 0, 0, 1], dtype=np.float64)
    # Of the ratio figures[0] / (figures[3] + 0.05), whose divisor may itself be wrong.
    divisor = max(figures[3] + 0.05 - wrong[3], 0.04)
    wrong[4] = (wrong[0] + figures[4] * wrong[3]) / divisor
    first, second = np.triu_indices(10)
    sizes = np.abs(figures) + wrong
    products = sizes[first] * wrong[second] + wrong[first] * sizes[second]
    weights = model.stop_weights[candidates.depth].astype(np.float64)
    return float(features @ weights), float(np.abs(weights[1:]) @ np.r_[wrong, products]) + 1e-9


def compare(model: AcceptanceModel, whole: Candidates, rate: float) -> tuple[int, int]:
    """Judge a draft pass by pass; how often a decision was beyond rounding, and went on."""
    exact = widened(model)
    scorer = CycleScorer(model, COST)
    scorer.begin(float(whole.success[0]), int(whole.lookups[0]))
    clear = went_on = 0
    for depth in range(model.max_depth + 1):
        candidates = whole.at_depth(depth)
        progress = progress_of(candidates, model.lookup_tokens)
        survival = exact.survival(candidates)
        error = survival_error(exact, candidates)
        assert error < 1e-3
        scorer.score(progress, rate)
        pool, lookup = scorer.survival()
        np.testing.assert_allclose(pool, survival.pool[0], rtol=0, atol=error)
        np.testing.assert_allclose(lookup, survival.lookup[0], rtol=0, atol=error)

        # The tree must be the best one, but for others that are as good within rounding.
        plan = exact.plan(candidates, survival, COST, rate)
        selection = scorer.select()
        size = len(progress.scores)
        inside = candidates.lookup_levels()[0]
        tail = np.arange(max(inside, 0), max(inside, selection.lookup_tokens)) + size
        chosen = np.concatenate((selection.nodes, tail)).astype(np.int64)
        joined = np.concatenate((survival.pool[0], survival.lookup[0]))
        rows = 1 + len(chosen)
        if not (joined[plan.order[0, : plan.rows[0] - 1]] == 0).any():
            reached = (
                1 + joined[chosen].sum() - rate * COST.verify_seconds(rows, progress.context_length)
            )
            assert len(set(chosen)) == len(chosen)
            assert rows <= model.max_rows
            assert reached >= plan.value[0] - 2 * model.max_rows * error - 1e-9
        if depth < model.max_depth and rows == plan.rows[0]:
            worth, doubt = stop_margin(exact, candidates, survival, plan, error)
            if abs(worth) > doubt:
                assert scorer.should_continue() == (worth > 0)
                clear += 1
                went_on += worth > 0
    assert not scorer.should_continue()
    return clear, went_on


@pytest.mark.parametrize("isa", C.available_isas())
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**63), rate=st.floats(0.0, 8.0))
def test_it_scores_as_the_model_does(isa: str, seed: int, rate: float) -> None:
    used = build_info()["isa"]
    C.set_isa(isa)
    try:
        draw = np.random.default_rng(seed)
        model = random_model(draw)
        compare(model, random_draft(draw, model), rate)
    finally:
        C.set_isa(used)


def test_decisions_are_compared_beyond_rounding() -> None:
    clear = went_on = 0
    for seed in range(40):
        draw = np.random.default_rng(seed)
        model = replace(random_model(draw, hidden=24), max_depth=3)
        weights = draw.standard_normal((3, STOP_INPUTS)).astype(np.float32)
        model = replace(model, stop_weights=weights)
        found = compare(model, random_draft(draw, model), 1.0)
        clear, went_on = clear + found[0], went_on + found[1]
    assert clear > 100
    assert 20 < went_on < clear - 20


def test_scoring_again_or_late_changes_nothing() -> None:
    for seed in range(20):
        draw = np.random.default_rng(seed)
        model = random_model(draw)
        whole = random_draft(draw, model)
        scorers = [CycleScorer(model, COST) for _ in range(2)]
        for scorer in scorers:
            scorer.begin(float(whole.success[0]), int(whole.lookups[0]))
        for depth in range(model.max_depth + 1):
            progress = progress_of(whole.at_depth(depth), model.lookup_tokens)
            scorers[0].score(progress, 2.0)
            scorers[0].score(progress, 0.7)
        scorers[1].score(progress, 0.7)
        for one, two in zip(scorers[0].survival(), scorers[1].survival(), strict=True):
            np.testing.assert_array_equal(one, two)
        one, two = (scorer.select() for scorer in scorers)
        np.testing.assert_array_equal(one.nodes, two.nodes)
        assert one.lookup_tokens == two.lookup_tokens


def constant_net(inputs: int, logit: float) -> SmallNet:
    shapes = ((inputs, 3), (3, 3), (3, 1))
    biases = (np.zeros(3, "f4"), np.zeros(3, "f4"), np.array([logit], "f4"))
    return SmallNet(tuple(np.zeros(shape, "f4") for shape in shapes), biases)


def fixed_model(**changes) -> AcceptanceModel:
    model = AcceptanceModel(
        top_k=2,
        max_depth=2,
        max_rows=9,
        lookup_tokens=3,
        pool_net=constant_net(POOL_INPUTS, 0.0),
        lookup_net=constant_net(LOOKUP_INPUTS, 40.0),
        stop_weights=np.zeros((2, STOP_INPUTS), "f4"),
        rate=1.0,
    )
    return replace(model, **changes)


PROGRESS = DraftProgress(
    2, 1, np.arange(6, dtype=np.float32) * -0.5 - 0.1, 20, Lookup(4, (5, 6, 7)), np.array([1, -1])
)


@pytest.mark.parametrize("rows", range(2, 10))
def test_equal_survivals_keep_their_order(rows: int) -> None:
    # Every candidate survives with 1/2, and so do the looked-up tokens after the pool.
    cost = CostTable("", "", (1, rows, 20), (1.0, 1.0, 99.0), (0.0,) * 3, (2,), (0.1,), (0.1,))
    scorer = CycleScorer(fixed_model(), cost)
    scorer.begin(0.5, 3)
    scorer.score(PROGRESS, 1.0)
    pool, lookup = scorer.survival()
    assert pool.tolist() == [0.5] * 6
    assert lookup.tolist() == [0.0, 0.5, 0.5]
    selection = scorer.select()
    assert selection.nodes.tolist() == list(range(min(rows - 1, 6)))
    # After six of the pool comes the first looked-up token that it lacks, which is the second.
    assert selection.lookup_tokens == {8: 2, 9: 3}.get(rows, 0)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"top_k": 0}, ValueError, "top_k of the model must be at least 1, got 0"),
        ({"max_rows": 2.0}, TypeError, "max_rows of the model must be an int, got 2.0"),
        ({"max_depth": True}, TypeError, "max_depth of the model must be an int"),
        ({"lookup_tokens": -1}, ValueError, "lookup_tokens of the model must be at least 0"),
        ({"max_rows": 65}, ValueError, r"rows must lie in 1\.\.64, got 65"),
        (
            {"stop_weights": np.zeros((3, STOP_INPUTS), "f4")},
            ValueError,
            r"stop_weights of the model must have shape \(2, 66\), got \(3, 66\)",
        ),
        (
            {"stop_weights": np.zeros((2, STOP_INPUTS))},
            TypeError,
            "stop_weights of the model must be a float32 array, got float64",
        ),
        (
            {"stop_weights": [[0.0] * STOP_INPUTS] * 2},
            TypeError,
            "stop_weights of the model must be a float32 array, got list",
        ),
        (
            {"pool_net": constant_net(LOOKUP_INPUTS, 0.0)},
            ValueError,
            r"pool_net.weights\[0\] of the model must have shape \(14, 3\), got \(13, 3\)",
        ),
        (
            {"lookup_net": constant_net(LOOKUP_INPUTS, np.nan)},
            ValueError,
            r"lookup_net.biases\[2\] of the model must be finite",
        ),
    ],
)
def test_invalid_models_are_refused(changes, error, message) -> None:
    with pytest.raises(error, match=message):
        CycleScorer(fixed_model(**changes), COST)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"scores": PROGRESS.scores[:5]}, ValueError, r"scores .* shape \(6,\), got shape \(5,\)"),
        ({"scores": PROGRESS.scores.astype("f8")}, TypeError, "scores .* float32, .* float64"),
        ({"scores": [0.0] * 6}, TypeError, "scores must be an array of float32, got list"),
        ({"scores": np.zeros(12, "f4")[::2]}, ValueError, r"scores .* strides \(8,\)"),
        ({"depth": 3}, ValueError, "depth must be from 0 to the model's 2, got 3"),
        ({"lookup_nodes": np.array([1])}, ValueError, r"lookup_nodes .* shape \(2,\)"),
        ({"lookup_nodes": np.array([1.0, 2.0])}, TypeError, "lookup_nodes .* int64"),
        ({"lookup_nodes": np.array([2, -1])}, ValueError, r"lookup_nodes\[0\] = 2 is neither"),
        ({"lookup_nodes": np.array([1, 6])}, ValueError, r"lookup_nodes\[1\] = 6 is neither"),
        ({"lookup_nodes": np.array([-1, 3])}, ValueError, r"lookup_nodes\[1\] = 3 is neither"),
        ({"lookup_nodes": np.array([-2, -1])}, ValueError, r"lookup_nodes\[0\] = -2 is neither"),
    ],
)
def test_invalid_drafts_are_refused(changes, error, message) -> None:
    scorer = CycleScorer(fixed_model(), COST)
    scorer.begin(0.5, 0)
    with pytest.raises(error, match=message):
        scorer.score(replace(PROGRESS, **changes), 1.0)
    scorer.score(PROGRESS, 1.0)
    assert scorer.survival()[0].tolist() == [0.5] * 6


def test_nothing_is_decided_before_something_was_scored() -> None:
    scorer = CycleScorer(fixed_model(), COST)
    for ask in (scorer.should_continue, scorer.select, scorer.survival):
        with pytest.raises(ValueError, match=r"score\(\) must be called first"):
            ask()


def test_weights_that_overflow_are_reported() -> None:
    net = constant_net(POOL_INPUTS, 0.0)
    huge = np.full((POOL_INPUTS, 3), 3e38, "f4")
    second = np.array([[3e38, -3e38, 0]] * 3, "f4")
    last = np.array([[1], [1], [1]], "f4")
    net = SmallNet((huge, second, last), net.biases)
    scorer = CycleScorer(fixed_model(pool_net=net), COST)
    scorer.begin(0.5, 0)
    with pytest.raises(ValueError, match="a probability is not a number"):
        scorer.score(replace(PROGRESS, scores=-PROGRESS.scores), 1.0)
    with pytest.raises(ValueError, match=r"score\(\) must be called first"):
        scorer.should_continue()
