"""The computed order of completion against machines that are simulated pass by pass."""

import itertools
import random

import pytest

from eaglerl.distributed.completion_order import in_order_of_completion


def simulated(passes: list[int], slots: int) -> list[int]:
    waiting, running, order = list(enumerate(passes)), {}, []
    while waiting or running:
        while waiting and len(running) < slots:
            index, left = waiting.pop(0)
            running[index] = left
        running = {index: left - 1 for index, left in running.items()}
        order += [index for index, left in running.items() if not left]
        running = {index: left for index, left in running.items() if left}
    return order


@pytest.mark.parametrize("seed", range(50))
def test_it_is_that_of_a_machine(seed: int) -> None:
    draw = random.Random(seed)
    slots, longest = draw.randint(1, 8), draw.choice((1, 3, 20))
    passes = [draw.randint(1, longest) for _ in range(draw.randint(0, 40))]
    order = list(in_order_of_completion(enumerate(passes), slots))
    assert order == simulated(passes, slots)


def test_items_without_an_end() -> None:
    order = in_order_of_completion(((index, 3 - index % 3) for index in itertools.count()), 2)
    assert list(itertools.islice(order, 30)) == simulated([3, 2, 1] * 20, 2)[:30]
