"""The acceptance policy: its parts against naive loops, a planted rule, its file, live decoding."""

import numpy as np
import pytest
import torch

from eaglerl.actions import ActionSpace
from eaglerl.cost.cost_table import CostTable
from eaglerl.eagle3.policy import NO_DRAFT, DraftProgress, SelectingPolicy, StepResult, TreeParams
from eaglerl.eagle3.tree.prompt_lookup import Lookup
from eaglerl.fitting.fit_acceptance import AcceptanceOptions
from eaglerl.policies.acceptance_model import (
    LOOKUP_INPUTS,
    POOL_INPUTS,
    STOP_INPUTS,
    AcceptanceModel,
    accepted_lengths,
    stop_features,
)
from eaglerl.policies.acceptance_policy import PRIOR_TOKENS, AcceptancePolicy
from eaglerl.policies.baselines import best_constant
from eaglerl.policies.candidates import Candidates, lookup_features, pool_features, trace_candidates
from eaglerl.policies.small_net import SmallNet, fit_net
from eaglerl.traces.recording import RecordOptions, record
from eaglerl.traces.simulation import simulate, total
from eaglerl.traces.token_paths import pool_ranks
from eaglerl.traces.trace_set import Trace

from ..fitting.fitted import fit_acceptance
from ..traces.test_oracle import COST
from ..traces.tiny import made_up_trace, tiny_decoder, tiny_prompts

K, D = 2, 2
POOL = K + D * K**2


def random_net(inputs: int, seed: int) -> SmallNet:
    draw = np.random.default_rng(seed)
    shapes = ((inputs, 5), (5, 5), (5, 1))
    return SmallNet(
        tuple(draw.standard_normal(shape).astype(np.float32) for shape in shapes),
        tuple(draw.standard_normal(shape[1]).astype(np.float32) for shape in shapes),
    )


def random_model(seed: int = 0) -> AcceptanceModel:
    return AcceptanceModel(
        top_k=K,
        max_depth=D,
        max_rows=8,
        lookup_tokens=4,
        pool_net=random_net(POOL_INPUTS, seed),
        lookup_net=random_net(LOOKUP_INPUTS, seed + 1),
        stop_weights=np.random.default_rng(seed).standard_normal((D, STOP_INPUTS)).astype("f4"),
        rate=0.9,
    )


def random_candidates(count: int, seed: int = 0) -> Candidates:
    """Scores as a draft gives them, and looked-up tokens that follow the pool for a while."""
    draw = np.random.default_rng(seed)
    scores = np.empty((count, POOL), dtype=np.float32)
    looked_up = np.full((count, D + 1), -1)
    for row in range(count):
        scores[row, :K] = -np.sort(draw.random(K))
        begin, end = 0, K
        for _ in range(D):
            frontier = sorted(range(begin, end), key=lambda i: (-scores[row, i], i))[:K]
            for rank, node in enumerate(frontier):
                children = scores[row, node] - np.sort(draw.random(K))
                place = end + rank * K
                scores[row, place : place + K] = children
            begin, end = end, end + K * K
        node_parent = naive_parents(scores[row])
        node = int(draw.integers(-1, POOL))
        path = []
        while node >= 0:
            path.append(node)
            node = node_parent[node]
        looked_up[row, : len(path)] = path[::-1]
    match = np.where(looked_up[:, 0] >= 0, draw.integers(2, 20, count), draw.integers(0, 3, count))
    return Candidates(
        top_k=K,
        depth=D,
        scores=scores,
        context_length=draw.integers(5, 300, count),
        match_length=match,
        lookup_nodes=looked_up,
        success=draw.random(count),
        lookups=draw.integers(0, 20, count),
    )


def naive_parents(scores: np.ndarray) -> list[int]:
    parents = [-1] * K
    begin, end = 0, K
    for _ in range(D):
        frontier = sorted(range(begin, end), key=lambda i: (-scores[i], i))[:K]
        for node in frontier:
            parents += [node] * K
        begin, end = end, end + K * K
    return parents


def test_parents_levels_and_looked_up_tokens() -> None:
    candidates = random_candidates(30)
    assert candidates.levels.tolist() == [0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    parents = candidates.parents()
    looked_up = candidates.looked_up()
    for row in range(30):
        assert parents[row].tolist() == naive_parents(candidates.scores[row])
        lookup = [node for node in candidates.lookup_nodes[row] if node >= 0]
        assert np.flatnonzero(looked_up[row]).tolist() == sorted(lookup)
        assert candidates.lookup_levels()[row] == len(lookup)


def test_early_predictions_do_not_depend_on_later_rounds() -> None:
    whole, other = random_candidates(20), random_candidates(20, seed=1)
    early = whole.at_depth(1)
    scores = np.concatenate((early.scores, other.scores[:, early.scores.shape[1] :]), axis=1)
    changed = Candidates(
        **{name: getattr(whole, name) for name in whole.__dataclass_fields__} | {"scores": scores}
    ).at_depth(1)
    model = random_model()
    for one, two in ((early, changed),):
        first, second = model.survival(one), model.survival(two)
        np.testing.assert_array_equal(first.pool, second.pool)
        np.testing.assert_array_equal(first.lookup, second.lookup)


def test_feature_widths() -> None:
    candidates = random_candidates(5)
    model = random_model()
    survival = model.survival(candidates)
    plan = model.plan(candidates, survival, COST, 1.0)
    assert pool_features(candidates, candidates.parents()).shape == (5, POOL, POOL_INPUTS)
    assert lookup_features(candidates, 4).shape == (5, 4, LOOKUP_INPUTS)
    assert stop_features(candidates, survival, plan).shape == (5, STOP_INPUTS)


def test_a_node_never_survives_without_its_parent() -> None:
    candidates = random_candidates(40)
    survival = random_model().survival(candidates)
    for row in range(40):
        parents = naive_parents(candidates.scores[row])
        for node, parent in enumerate(parents):
            assert parent < 0 or survival.pool[row, node] <= survival.pool[row, parent]
        inside = (candidates.lookup_nodes[row] >= 0).sum()
        lookup = survival.lookup[row]
        assert (lookup[:inside] == 0).all()
        assert (np.diff(lookup[inside:]) <= 0).all()
        if inside and inside < 4:
            assert lookup[inside] <= survival.pool[row, candidates.lookup_nodes[row, inside - 1]]
        if not candidates.match_length[row]:
            assert (lookup == 0).all()


def test_plans_by_trying_every_number_of_rows() -> None:
    candidates = random_candidates(25)
    model = random_model()
    survival = model.survival(candidates)
    plan = model.plan(candidates, survival, COST, 0.9)
    for row in range(25):
        best = sorted([*survival.pool[row], *survival.lookup[row]], reverse=True)
        context = int(candidates.context_length[row])
        values = [
            1 + sum(best[: rows - 1]) - 0.9 * float(COST.verify_seconds(rows, context))
            for rows in range(1, model.max_rows + 1)
        ]
        assert plan.value[row] == pytest.approx(max(values), rel=1e-5)
        assert plan.rows[row] == 1 + int(np.argmax(values))


def test_accepted_lengths_by_walking_the_tree() -> None:
    candidates = random_candidates(60, seed=3)
    model = random_model()
    survival = model.survival(candidates)
    plan = model.plan(candidates, survival, COST, 0.4)
    draw = np.random.default_rng(0)
    paths = random_candidates(60, seed=4).lookup_nodes
    accepted = draw.integers(0, 5, 60)
    for row in range(60):
        # Accepted looked-up tokens stand where the true path stands.
        true = min(int(accepted[row]), D + 1)
        if draw.random() < 0.7:
            paths[row, :true] = candidates.lookup_nodes[row, :true]
    lengths = accepted_lengths(plan, POOL, paths, candidates.lookup_nodes, accepted, 4)
    for row in range(60):
        chosen = set(plan.order[row, : plan.rows[row] - 1].tolist())
        inside = (candidates.lookup_nodes[row] >= 0).sum()
        length = 1
        for level in range(4):
            by_tree = level <= D and paths[row, level] >= 0 and paths[row, level] in chosen
            by_lookup = level >= inside and accepted[row] > level and POOL + level in chosen
            if not (by_tree or by_lookup):
                break
            length += 1
        assert lengths[row] == length
    assert len(set(lengths.tolist())) > 2


def test_one_cycle_is_scored_like_a_batch() -> None:
    candidates = random_candidates(15, seed=6)
    model = random_model()
    policy = AcceptancePolicy(model, COST)
    assert isinstance(policy, SelectingPolicy)
    survival = model.survival(candidates)
    plan = model.plan(candidates, survival, COST, policy.rate)
    for row in range(15):
        policy._success, policy._lookups = candidates.success[row], candidates.lookups[row]
        match = int(candidates.match_length[row])
        progress = DraftProgress(
            top_k=K,
            depth=D,
            scores=candidates.scores[row],
            context_length=int(candidates.context_length[row]),
            lookup=Lookup(match, (1, 2, 3, 4) if match else ()),
            lookup_nodes=candidates.lookup_nodes[row] if match else None,
        )
        policy.choose(None)
        selection = policy.select(progress)
        chosen = plan.order[row, : plan.rows[row] - 1]
        assert sorted(selection.nodes) == sorted(chosen[chosen < POOL])
        outside = chosen[chosen >= POOL]
        assert selection.lookup_tokens == (outside.max() - POOL + 1 if len(outside) else 0)
        assert selection.choose_total_tokens(progress) == plan.rows[row]
        assert not policy.should_continue(progress)


def test_the_net_learns_a_probability() -> None:
    draw = np.random.default_rng(0)
    x = draw.standard_normal((20_000, 3)).astype(np.float32) * [1.0, 5.0, 0.1] + [0.0, 2.0, 1.0]
    truth = 1 / (1 + np.exp(-(x[:, 0] + 0.3 * (x[:, 1] - 2))))
    net = fit_net(x.astype(np.float32), draw.random(20_000) < truth, steps=600)
    # 20,000 draws determine a logit of four numbers to some hundredths.
    assert np.abs(net(x[:2000].astype(np.float32)) - truth[:2000]).mean() < 0.03
    again = fit_net(x.astype(np.float32), draw.random(20_000) < truth, steps=3)
    assert again.inputs == 3


def planted_trace(seed: int, positions: int = 120) -> Trace:
    """The draft is right as far as its scores are above -1, and says so: sure or hopeless."""
    draw = np.random.default_rng(seed)
    base = made_up_trace(positions, seed=seed, top_ks=(K,), max_depth=D)
    scores = np.empty((positions, POOL), dtype=np.float32)
    path = np.full((positions, 1, D + 1), -1, dtype=np.int16)
    for position in range(positions):
        right = int(draw.integers(0, D + 2))
        scores[position] = -8 - draw.random(POOL) - np.r_[0, 0, [1] * 4, [2] * 4]
        node = 0
        for level in range(right):
            scores[position, node] = -0.01 * (level + 1)
            path[position, 0, level] = node
            node = K + level * K**2
    ranks = pool_ranks(scores, path[:, 0], K, D)[:, None]
    changes = {"scores": {K: scores.astype(np.float16)}, "path": path, "ranks": ranks}
    changes |= {"lookup_match": np.zeros(positions, dtype=np.uint8)}
    return Trace(**{name: getattr(base, name) for name in Trace.__dataclass_fields__} | changes)


# Rows that cost enough to make a wrong one worse than a right one is good.
COSTLY = CostTable("made up", "float32", (1, 8), (1.0, 4.5), (0.0, 0.0), (2,), (0.02,), (0.05,))


def test_it_finds_a_planted_rule() -> None:
    grid = ActionSpace.grid(range(2, 9), (0, 1, 2), (K,)).with_no_draft()
    training = [planted_trace(seed) for seed in range(20)]
    test = [planted_trace(seed) for seed in range(100, 106)]
    options = AcceptanceOptions(top_k=K, max_depth=D, max_rows=8, lookup_tokens=0, steps=400)
    policy = AcceptancePolicy(fit_acceptance(training, COSTLY, options), COSTLY)
    reached = total(simulate(policy, test, COSTLY)).tokens_per_second
    constant = total(
        simulate(best_constant(training, grid, COSTLY), test, COSTLY)
    ).tokens_per_second
    # Who knew beforehand how far the draft is right would verify just that; all passes are needed
    # to see it, one more than the draft is right for.
    seconds = tokens = 0.0
    for trace in test:
        position = 0
        while position < len(trace):
            right = int((trace.path[position, 0] >= 0).sum())
            passes = min(right, D)
            seconds += COSTLY.verify_seconds(1 + right, 0) + COSTLY.draft_seconds(passes, K, 0)
            step = min(1 + right, len(trace) - position)
            tokens, position = tokens + step, position + step
    assert reached >= 0.95 * tokens / seconds
    assert reached > 1.05 * constant


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory):
    decoder = tiny_decoder()
    options = RecordOptions(top_ks=(2,), max_depth=2, max_new_tokens=40, slots=4)
    traces = record(decoder, tiny_prompts(8), tmp_path_factory.mktemp("traces"), options=options)
    chosen = AcceptanceOptions(top_k=2, max_depth=2, max_rows=12, lookup_tokens=6, steps=200)
    return decoder, traces, fit_acceptance(traces, COST, chosen)


def test_live_decoding_keeps_the_targets_text(fitted) -> None:
    decoder, _, model = fitted
    policy = AcceptancePolicy(model, COST)
    arguments = {"max_new_tokens": 80, "eos_token_id": []}
    rows = set()
    for prompt in tiny_prompts(3, seed=9):
        expected = decoder.generate(list(prompt.token_ids), NO_DRAFT, **arguments).sequences
        output = decoder.generate(list(prompt.token_ids), policy, **arguments)
        assert torch.equal(output.sequences, expected)
        rows |= {cycle.rows for cycle in output.per_sequence[0].cycles}
    assert len(rows) > 1


def test_live_cycles_are_those_on_the_trace(fitted) -> None:
    decoder, traces, model = fitted
    # The rate is the same in both, though the live clock differs from the cost table.
    for trace in traces[:4]:
        policies = [AcceptancePolicy(model, COST) for _ in range(2)]
        expected = simulate(policies[0], [trace], COST)[0]
        output = decoder.generate(
            trace.prompt_ids.tolist(), policies[1],
            max_new_tokens=len(trace) + 1 + 12, eos_token_id=[],
        )  # fmt: skip
        found: dict[tuple[int, int, int], int] = {}
        emitted = 0
        for cycle in output.per_sequence[0].cycles:
            if emitted >= len(trace):
                break
            kind = (cycle.rows, cycle.params.depth, cycle.params.top_k)
            found[kind] = found.get(kind, 0) + 1
            emitted += len(cycle.token_ids)
        assert found == expected.trees


def test_the_rate_follows_the_cost_table_and_not_the_clock(fitted) -> None:
    model = fitted[2]
    quick, slow = (AcceptancePolicy(model, COST) for _ in range(2))
    before = quick.rate
    for tree, tokens in (
        (TreeParams(5, 2, 2), 3),
        (TreeParams(4, 1, 2), 1),
        (TreeParams(1, 0, 2), 2),
    ):
        for policy, clock in ((quick, 1e-3), (slow, 10.0)):
            policy.observe(
                StepResult(
                    token_ids=(7,) * tokens, params=tree, accepted=tokens - 1,
                    draft_seconds=clock, verify_seconds=clock, features=torch.zeros(3),
                    context_length=50 + tokens, rows=tree.total_tokens,
                )
            )  # fmt: skip
    # Even a cycle that verifies the root alone has drafted.
    seconds = sum(
        COST.verify_seconds(rows, 50) + COST.draft_seconds(depth, 2, 50)
        for rows, depth in ((5, 2), (4, 1), (1, 0))
    )
    expected = (PRIOR_TOKENS + 6) / (PRIOR_TOKENS / before + seconds)
    assert quick.rate == pytest.approx(expected, rel=1e-12)
    assert slow.rate == quick.rate


def test_candidates_of_traces_know_only_the_past(fitted) -> None:
    _, traces, _ = fitted
    candidates = trace_candidates(traces, 2, 2)
    start = 0
    for trace in traces:
        success, count = 0.5, 0
        for position in range(len(trace)):
            assert candidates.success[start + position] == pytest.approx(success)
            assert candidates.lookups[start + position] == count
            if trace.lookup_match[position]:
                success = 0.8 * success + 0.2 * (trace.lookup_accepted[position] > 0)
                count += 1
        start += len(trace)
    with pytest.raises(ValueError, match="top_k=3 and depth=2 are not in the trace"):
        trace_candidates(traces, 3, 2)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="top_k must be one of"):
        AcceptancePolicy(
            random_model(), CostTable("", "", (1, 9), (1, 2), (0, 0), (7,), (1,), (1,))
        )
    with pytest.raises(ValueError, match="rows must lie in"):
        AcceptancePolicy(
            random_model(), CostTable("", "", (1, 4), (1, 2), (0, 0), (2,), (1,), (1,))
        )
    with pytest.raises(ValueError, match="max_rows must be an int of at least 2, got 1"):
        AcceptanceOptions(max_rows=1)
    with pytest.raises(ValueError, match="at least one trace"):
        fit_acceptance([], COST)
    with pytest.raises(ValueError, match="at most the 12 looked-up tokens of the trace, got 13"):
        fit_acceptance([planted_trace(0)], COSTLY, AcceptanceOptions(2, 2, 8, 13))
    with pytest.raises(ValueError, match="ridge must be positive, got 0"):
        AcceptanceOptions(ridge=0)
