"""A native cycle that is limited decides as one that was made so small."""

import numpy as np
import pytest

from eaglerl._ext import C

WIDTH, DEPTH, ROWS, LOOKUP = 4, 3, 24, 5
LIMITS = [(4, 3, 24, 5), (2, 3, 24, 5), (4, 1, 24, 5), (3, 2, 6, 2), (1, 0, 2, 0), (4, 3, 1, 0)]
WIDTHS = (1, 2, 3, 4)


def learning_cycle(sizes: tuple[int, int, int, int]) -> C.OnlineCycle:
    top_k, depth, rows, lookup = sizes
    shared = C.OnlineAcceptance(DEPTH, 1.0)
    cost = C.OnlineCost(64, WIDTHS)
    return C.make_learning_cycle(shared, top_k, depth, rows, lookup, cost, WIDTHS.index(top_k))


def decode(cycle: C.OnlineCycle, sizes: tuple[int, int, int, int], seed: int) -> list[object]:
    """Run made-up cycles; return what was decided."""
    top_k, depth, _, _ = sizes
    source = np.random.default_rng(seed)
    decided: list[object] = []
    for _ in range(60):
        match, context = int(source.integers(0, 4)), int(source.integers(1, 500))
        looked_up = source.integers(0, 5, LOOKUP if match else 0).tolist()
        drafts, tokens = cycle.plan(context, match, len(looked_up), 1)
        decided.append((drafts, tokens))
        # As many numbers are drawn whatever is decided, so that both see the same ones.
        steps = source.exponential(1.0, (DEPTH + 1, WIDTH, WIDTH))
        level, agree = 0, source.random(DEPTH + 1) < 0.5
        scores = -np.sort(steps[0, 0, :top_k]).astype(np.float32)
        held = [0 if looked_up and agree[0] else -1]
        while drafts:
            nodes = np.array(held) if looked_up else None
            goes_on = cycle.score(scores, level, context, match, len(looked_up), nodes)
            decided.append((goes_on, *map(np.ndarray.tolist, cycle.survival())))
            if not goes_on or level == depth:
                break
            begin = 0 if level == 0 else top_k + (level - 1) * top_k**2
            best = np.sort(scores[begin:])[::-1][:top_k]
            level += 1
            children = best[:, None] - np.sort(steps[level, :top_k, :top_k], axis=1)
            scores = np.concatenate([scores, children.ravel()]).astype(np.float32)
            held.append(-1)
        rows = 1 + tokens
        if drafts:
            nodes, lookup = cycle.select()
            decided.append((nodes.tolist(), lookup))
            rows = 1 + len(nodes) + max(0, lookup - sum(place >= 0 for place in held))
        emitted = source.integers(0, 5, int(source.integers(1, 4))).tolist()
        accepted = list(range(1, min(rows, len(emitted))))
        cycle.observe_planned(accepted, emitted, looked_up, rows, 0.01 * (1 + rows / 8), 0.002)
    return decided


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_as_if_made_so(limits: tuple[int, int, int, int], seed: int) -> None:
    small, large = learning_cycle(limits), learning_cycle((WIDTH, DEPTH, ROWS, LOOKUP))
    large.limit(*limits, WIDTHS.index(limits[0]))
    decided = decode(small, limits, seed)
    found = decode(large, limits, seed)
    # The larger one keeps numbers for more looked-up tokens, of which none is offered.
    assert repr(decided) == repr(found)
    assert any(entry[0] for entry in decided if len(entry) == 2) or limits[2] == 1


def test_a_limit_may_be_lifted() -> None:
    sizes = (WIDTH, DEPTH, ROWS, LOOKUP)
    cycle, other = learning_cycle(sizes), learning_cycle(sizes)
    cycle.limit(1, 0, 2, 0, 0)
    cycle.limit(*sizes, WIDTHS.index(WIDTH))
    assert repr(decode(cycle, sizes, 1)) == repr(decode(other, sizes, 1))


def test_what_was_scored_before_a_limit_is_gone() -> None:
    cycle = learning_cycle((WIDTH, DEPTH, ROWS, LOOKUP))
    cycle.plan(10, 0, 0, 1)
    cycle.score(-np.arange(4, dtype=np.float32), 0, 10, 0, 0, None)
    cycle.limit(2, 1, 4, 0, 1)
    with pytest.raises(ValueError, match=r"score\(\) must be called first"):
        cycle.select()
    with pytest.raises(ValueError, match=r"plan\(\) must be called first"):
        cycle.observe_planned([], [1], [], 1, 0.1, 0.0)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ((5, 3, 24, 5, 0), "top_k must be in 1..4, got 5"),
        ((0, 3, 24, 5, 0), "top_k must be in 1..4, got 0"),
        ((4, 4, 24, 5, 0), "max_depth must be in 0..3, got 4"),
        ((4, 3, 25, 5, 0), "max_rows must be in 1..24, got 25"),
        ((4, 3, 24, 6, 0), "lookup_tokens must be in 0..5, got 6"),
        ((4, 3, 24, 5, 4), "width must be in 0..3, got 4"),
        ((4, 3, 24, 5, -1), "width must be in 0..3, got -1"),
    ],
)
def test_refused(limits: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        learning_cycle((WIDTH, DEPTH, ROWS, LOOKUP)).limit(*limits)
