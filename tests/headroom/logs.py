"""Logs of steps with a known truth: acceptance is drawn, and speeds follow in closed form."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from eaglerl.headroom.cost_curve import CostCurve
from eaglerl.headroom.step_log import StepLine, Steps, make_steps

LEVELS = 5
#: Seconds of verifying a row more, and of drafting a token.
PLAIN, ROW, PASS = 0.030, 0.002, 0.001
COST = CostCurve(
    "made up",
    [(rows, 1, 0, PLAIN + ROW * (rows - 1)) for rows in range(1, 400)],
    [(1, 0, PASS)],
    by_rows_alone=True,
)

Draw = Callable[[np.random.Generator, int], np.ndarray]


def drawn_lines(
    draw: Draw, *, requests: int = 30, steps: int = 60, seed: int = 0, levels: int = LEVELS
) -> list[StepLine]:
    """Return steps whose tokens are accepted with the drafted probabilities.

    `draw` takes a generator and the number of levels, and returns the probability of each.
    """
    generator = np.random.default_rng(seed)
    lines = []
    for request in range(requests):
        position = 1
        for _ in range(steps):
            probabilities = draw(generator, levels)
            right = generator.random(levels) < probabilities
            accepted = int(np.logical_and.accumulate(right).sum())
            lines.append(
                StepLine(
                    request=f"request {request}",
                    position=position,
                    context=20 + position,
                    logprobs=tuple(np.log(probabilities).tolist()),
                    accepted=accepted,
                )
            )
            position += 1 + accepted
    return lines


def steps_of(lines: Sequence[StepLine]) -> Steps:
    """Return lines as arrays."""
    return make_steps(lines, [line.request for line in lines])


def always(probability: float) -> Draw:
    """Every token is accepted with the same probability."""
    return lambda generator, levels: np.full(levels, probability)


def either(low: float, high: float) -> Draw:
    """Each step is hard or easy, as its probabilities say."""
    return lambda generator, levels: np.full(levels, low if generator.random() < 0.5 else high)


def length_of(probability: float, level: int) -> float:
    """Return the mean tokens of a chain: 1 + q + ... + q^level."""
    return (1.0 - probability ** (level + 1)) / (1.0 - probability)


def speed_of(probability: float, level: int) -> float:
    """Return the tokens per second of a chain by `COST`."""
    return length_of(probability, level) / (PLAIN + (ROW + PASS) * level)


def write_log(path: Path, lines: Sequence[StepLine]) -> None:
    """Write lines as an engine would."""
    rows = [json.dumps(line.model_dump(exclude_none=True)) for line in lines]
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
