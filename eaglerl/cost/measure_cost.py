"""Measure the cost table of a machine with live decoding cycles."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from eaglerl.cost.cost_check import why_unusable
from eaglerl.cost.cost_table import CostTable
from eaglerl.cost.fit_cost import CycleSample, fit_cost_table
from eaglerl.eagle3.decoder import SpeculativeDecoder
from eaglerl.eagle3.head.cached_draft import CachedDraft
from eaglerl.eagle3.head.packed_draft import products_dtype
from eaglerl.eagle3.policy import NO_DRAFT, TreeParams
from eaglerl.eagle3.sampling import GreedyVerifier

TOTAL_TOKENS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64)
TOP_KS = (1, 2, 4, 8)
DEPTHS = (0, 1, 2, 4, 7)

# Most runs of the whole plan while the table is unusable.
_ATTEMPTS = 3
# Cycles at the start that are not counted, while caches and buffers warm up.
_WARM_UP = 12


def calibration_trees(
    total_tokens: Sequence[int], top_ks: Sequence[int], depths: Sequence[int]
) -> list[TreeParams]:
    """Return trees that cover every T, and every pair of D and K, several times.

    Raises:
        ValueError: no pair of D and K allows one of the T.
    """
    # Verifying the root alone is measured most often, because all costs are compared with it.
    trees = [NO_DRAFT] * 8 if 1 in total_tokens else []
    pairs = [(depth, top_k) for top_k in top_ks for depth in depths]
    for total in total_tokens:
        fitting = [(d, k) for d, k in pairs if total - 1 <= k + d * k**2]
        if not fitting:
            raise ValueError(f"total_tokens={total} is more than any of the trees can hold")
        if total > 1:
            trees += [TreeParams(total, *fitting[i * len(fitting) // 4]) for i in range(4)]
    for depth, top_k in pairs:
        pool = top_k + depth * top_k**2
        totals = [total for total in total_tokens if 1 < total <= pool + 1]
        trees += [TreeParams(totals[i * len(totals) // 2], depth, top_k) for i in range(2)]
    return trees


def calibrate(
    decoder: SpeculativeDecoder,
    prompt_ids: Sequence[int],
    *,
    machine: str,
    total_tokens: Sequence[int] = TOTAL_TOKENS,
    top_ks: Sequence[int] = TOP_KS,
    depths: Sequence[int] = DEPTHS,
    passes: int = 8,
    longest_context: int = 512,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
    again: Callable[[str], None] | None = None,
) -> CostTable:
    """Measure all kinds of cycle in live decoding, and fit the table.

    Every pass measures the kinds in a new random order, so that a change of the machine's speed
    affects all of them. If the table is unusable, the measurement is extended, at most twice:
    medians of more cycles are less disturbed.

    Args:
        decoder: target, head and precision of the draft's matrix products.
        prompt_ids: the prompt; a sequence that reaches `longest_context` starts over.
        machine: description of the machine, stored in the table.
        total_tokens: T to measure, ascending from 1.
        top_ks: K to measure, ascending.
        depths: D to measure.
        passes: number of measurements of every kind.
        longest_context: longest context to measure.
        seed: seed of the order.
        progress: called with the fraction done, which starts over when the measurement is extended.
        again: called with the reason when the measurement is extended.

    Returns:
        The table, with the error of its fit.

    Raises:
        ValueError: an argument is out of range, no tree allows one of the T, the decoder has no
            draft head, or the machine was too busy for a usable table.
    """
    draft = _check_calibration(decoder, prompt_ids, passes, longest_context)
    trees = calibration_trees(total_tokens, top_ks, depths)
    draw = random.Random(seed)
    samples: list[CycleSample] = []
    for left in reversed(range(_ATTEMPTS)):
        plan = [tree for _ in range(passes) for tree in draw.sample(trees, len(trees))]
        warm_up = [draw.choice(trees) for _ in range(_WARM_UP)]
        measured = _measure(decoder, prompt_ids, [*warm_up, *plan], longest_context, progress)
        samples += measured[_WARM_UP:]
        table, why = _fit(samples, machine, products_dtype(draft))
        if table is not None:
            return table
        if left and again is not None:
            again(why)
    raise ValueError(
        f"no usable cost table from {len(samples)} cycles: {why}. Something else kept the machine "
        "busy: measure again while nothing else runs, or with more passes (eaglerl calibrate "
        f"--passes {2 * passes})"
    )


def _check_calibration(
    decoder: SpeculativeDecoder, prompt_ids: Sequence[int], passes: int, longest_context: int
) -> CachedDraft:
    """Check the arguments of `calibrate`, and return the decoder's draft."""
    if decoder.draft_runner is None:
        raise ValueError("decoder must have a draft head, got one without")
    if passes < 3:
        raise ValueError(f"passes must be at least 3, got {passes}")
    if not len(prompt_ids) < longest_context <= decoder.target.max_positions - 64:
        raise ValueError(
            f"longest_context must lie between the prompt's {len(prompt_ids)} tokens and "
            f"{decoder.target.max_positions - 64}, got {longest_context}"
        )
    return decoder.draft_runner


def _fit(
    samples: Sequence[CycleSample], machine: str, draft_dtype: str
) -> tuple[CostTable | None, str]:
    """Return the table, or the reason why there is no usable one."""
    try:
        table = fit_cost_table(samples, machine=machine, draft_dtype=draft_dtype)
    except ValueError as problem:
        return None, str(problem)
    why = why_unusable(table)
    return (table, "") if why is None else (None, why)


def _measure(
    decoder: SpeculativeDecoder,
    prompt_ids: Sequence[int],
    trees: Sequence[TreeParams],
    longest_context: int,
    progress: Callable[[float], None] | None,
) -> list[CycleSample]:
    """Measure one cycle with each of the trees, in order."""
    samples: list[CycleSample] = []
    session = None
    for tree in trees:
        if session is None or len(session.token_ids) >= longest_context:
            if session is not None:
                session.close()
            session = decoder.new_session(GreedyVerifier(), longest_context + 128)
            session.prefill(list(prompt_ids))
            # Not a sample: the head's first pass of a sequence processes the whole prompt.
            session.step(TreeParams(2, 0, 1))
        context = len(session.token_ids)
        result = session.step(tree)
        samples.append(CycleSample(tree, context, result.draft_seconds, result.verify_seconds))
        if progress is not None:
            progress(len(samples) / len(trees))
    if session is not None:
        session.close()
    return samples
