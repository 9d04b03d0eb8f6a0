"""Which requests wait, and in which order their answers begin."""

import random
from collections import deque

import pytest

from eaglerl.server.admission import Admission, Request
from eaglerl.server.tasks import BusyError


class Asked(Request):
    """A request that decodes nothing."""

    ready = False

    def begin(self) -> None:
        pass

    def advance(self) -> bool:
        return False

    def close(self, error: Exception | None) -> None:
        pass


def taken(admission: Admission) -> list[Asked]:
    """All requests of which an answer begins now, one for each answer."""
    found = []
    while (request := admission.take()) is not None:
        found.append(request)
    return found


def test_answers_begin_in_order_as_far_as_there_are_slots() -> None:
    admission = Admission(queue_size=9, max_batch=3, max_tokens=1000)
    first, second, third = Asked(answers=2), Asked(answers=3), Asked()
    for request in (first, second, third):
        admission.add(request)
    assert taken(admission) == [first, first, second]
    # The second has begun: it does not wait, and the third does not overtake its other answers.
    assert (len(admission.active), admission.waiting, admission.answers) == (2, 1, 3)
    first.running -= 1
    assert taken(admission) == [second]
    first.running -= 1
    assert first.over
    admission.remove(first)
    second.running -= 1
    assert taken(admission) == [second, third]
    assert (len(admission.active), admission.waiting) == (2, 0)


def test_a_large_request_is_not_overtaken() -> None:
    admission = Admission(queue_size=9, max_batch=8, max_tokens=100)
    small, large, later = Asked(tokens=60), Asked(tokens=90), Asked(tokens=10)
    for request in (small, large, later):
        admission.add(request)
    # The last one would fit, and after it another, and the large one would never begin.
    assert taken(admission) == [small]
    assert admission.tokens == 60
    admission.remove(small)
    assert taken(admission) == [large, later]
    assert admission.tokens == 100


def test_what_never_fits_is_refused() -> None:
    admission = Admission(queue_size=9, max_batch=8, max_tokens=100)
    with pytest.raises(ValueError, match="an answer of 101 tokens"):
        admission.add(Asked(tokens=101))
    admission.add(Asked(tokens=100, answers=50))
    assert len(taken(admission)) == 1


def test_the_queue_counts_those_that_cannot_begin_at_once() -> None:
    admission = Admission(queue_size=1, max_batch=2, max_tokens=100)
    # The thread has not taken any of them yet.
    for _ in range(3):
        admission.add(Asked(tokens=50))
    with pytest.raises(BusyError, match="the queue is full"):
        admission.add(Asked(tokens=50))
    assert len(taken(admission)) == 2
    with pytest.raises(BusyError, match="1 requests are waiting"):
        admission.add(Asked(tokens=1))
    none = Admission(queue_size=0, max_batch=1, max_tokens=100)
    # Its first answer begins at once, so it does not wait; whoever comes then does.
    none.add(Asked(answers=5))
    with pytest.raises(BusyError):
        none.add(Asked())


@pytest.mark.parametrize("seed", range(20))
def test_it_keeps_its_limits_and_its_order(seed: int) -> None:
    draw = random.Random(seed)
    admission = Admission(queue_size=5, max_batch=4, max_tokens=100)
    order: list[Asked] = []
    begun: list[Asked] = []
    for _ in range(200):
        if draw.random() < 0.5:
            request = Asked(tokens=draw.randint(1, 100), answers=draw.choice([1, 1, 2, 9]))
            try:
                admission.add(request)
                order.extend([request] * request.unbegun)
            except BusyError:
                assert admission.waiting >= 1
        elif admission.active:
            request = draw.choice(admission.active)
            if draw.random() < 0.2:
                admission.remove(request)
                order = [
                    each
                    for place, each in enumerate(order)
                    if each is not request or place < len(begun)
                ]
            elif request.running:
                request.running -= 1
                if request.over:
                    admission.remove(request)
        begun.extend(taken(admission))
        assert begun == order[: len(begun)]
        assert admission.answers <= 4
        assert admission.tokens <= 100
        # As much as possible is decoded.
        assert admission.waiting == 0 or admission.answers
    left = deque(admission)
    while left:
        request = left.popleft()
        admission.remove(request)
        begun.extend(taken(admission))
    assert not [*admission]
