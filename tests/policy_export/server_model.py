"""A made-up server of SGLang for its controller: known acceptance, known seconds, overlap."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

GRAPHS = [1, 2, 4, 8, 16, 32, 64]


@dataclass
class Worker:
    """What AdaptiveController needs of a worker: EAGLEWorkerV2's two methods and its attribute."""

    speculative_num_steps: int
    captured: dict[int, list[int] | None] = field(default_factory=dict)
    switches: int = 0

    def build_adaptive_runtime_state(
        self,
        speculative_num_steps: int,
        speculative_num_draft_tokens: int,
        cuda_graph_bs: list[int] | None = None,
    ) -> tuple[int, int]:
        self.captured[speculative_num_steps] = cuda_graph_bs
        return speculative_num_steps, speculative_num_draft_tokens

    def apply_runtime_state(self, state: tuple[int, int]) -> None:
        steps, tokens = state
        assert tokens == steps + 1
        self.switches += steps != self.speculative_num_steps
        self.speculative_num_steps = steps


class Server:
    """Runs decode batches as the scheduler does.

    With overlap the result of a batch is processed after the next one was launched. `now` is the
    time at which the last processed batch ended; `tokens` counts what was to be expected of the
    batches, so that luck counts nothing.
    """

    def __init__(
        self, seconds: Callable[[int, int], float], *, overlap: bool = True, seed: int = 0
    ) -> None:
        self.seconds, self.overlap = seconds, overlap
        self.draw = random.Random(seed)
        self.now = 0.0
        self.tokens = 0.0
        self.survivals: Sequence[float] = ()
        self._running: deque[tuple[int, int]] = deque()

    def run(self, controller: Any, worker: Worker, batch: int, batches: int) -> float:
        """Return the tokens per second of so many batches of one size."""
        before, began = self.tokens, self.now
        for _ in range(batches):
            controller.activate_step_by_batch(batch)
            self._running.append((batch, worker.speculative_num_steps))
            if len(self._running) > self.overlap:
                self._process(controller)
        return (self.tokens - before) / (self.now - began)

    def drain(self, controller: Any) -> None:
        """Process what still runs."""
        while self._running:
            self._process(controller)

    def _process(self, controller: Any) -> None:
        batch, steps = self._running.popleft()
        counts = [self._accepted(steps) for _ in range(batch)]
        self.now += self.seconds(batch, steps)
        self.tokens += batch * (1 + sum(self.survivals[:steps]))
        controller.on_verify_complete(counts, batch_size=batch)

    def _accepted(self, steps: int) -> int:
        survived = self.draw.random()
        return sum(survived < survival for survival in self.survivals[:steps])

    def best(self, batch: int, tiers: Sequence[int]) -> float:
        """Return the tokens per second of the best constant tier."""
        return max(
            batch * (1 + sum(self.survivals[:steps])) / self.seconds(batch, steps)
            for steps in tiers
        )


def like_a_gpu(batch: int, steps: int) -> float:
    """Seconds of a step where up to 200 rows take as long as one."""
    rows = batch * (steps + 1)
    return 0.01 * (1 + 0.04 * steps + max(0, rows - 200) / 400 + rows / 2000)


def like_experts(batch: int, steps: int) -> float:
    """Seconds of a step where each row reads experts of its own, until all are read."""
    rows = batch * (steps + 1)
    return 0.01 * (1 + 0.05 * steps + min(1.5, 0.12 * (rows - 1) ** 0.8) + rows / 1500)


def like_a_cpu(batch: int, steps: int) -> float:
    """Seconds of a step where every row costs, so that nothing pays in a large batch."""
    rows = batch * (steps + 1)
    return 0.01 * (1 + 0.15 * (steps > 0) + 0.06 * steps + 0.07 * (rows - 1))


def geometric(first: float, count: int = 7) -> list[float]:
    """Survivals of tokens that are each accepted as often as the first."""
    return [first**i for i in range(1, count + 1)]
