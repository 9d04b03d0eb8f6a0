"""The thread that decodes: turns, a bounded queue, and nothing after a withdrawal."""

import itertools
import threading
import time

import pytest
from fastapi.testclient import TestClient

from eaglerl.server import create_app
from eaglerl.server.admission import Admission, Request
from eaglerl.server.engine import Engine
from eaglerl.server.tasks import BusyError, StoppedError, WithdrawnError

from .tiny import NAME, PATIENCE, tiny_service, wait_until


class FakeTask(Request):
    """A request that decodes in its own turns, in cycles that each wait to be let through."""

    def __init__(
        self,
        cycles: int = 1000,
        *,
        held: bool = False,
        log: list | None = None,
        tokens: int = 0,
        answers: int = 1,
    ) -> None:
        super().__init__(tokens=tokens, answers=answers)
        self.left = cycles
        self.done = 0
        self.log = log
        self.closed: list[Exception | None] = []
        self.inside = threading.Event()
        self.gate = threading.Event()
        if not held:
            self.gate.set()

    def begin(self) -> None:
        pass

    @property
    def ready(self) -> bool:
        return True

    def advance(self) -> bool:
        self.inside.set()
        assert self.gate.wait(PATIENCE)
        self.done += 1
        self.left -= 1
        if self.log is not None:
            self.log.append(self)
        return self.left == 0

    def close(self, error: Exception | None) -> None:
        self.closed.append(error)


def new_engine(
    *, queue_size: int = 4, max_batch: int = 1, max_tokens: int = 100, live_sessions: int = 1
) -> Engine:
    admission = Admission(queue_size=queue_size, max_batch=max_batch, max_tokens=max_tokens)
    return Engine(admission, live_sessions=live_sessions)


@pytest.fixture
def engine():
    engine = new_engine(queue_size=2)
    engine.start()
    yield engine
    engine.stop()


IDLE = {"active": 0, "waiting": 0, "live": 0}


def test_a_withdrawn_task_does_no_further_cycle(engine: Engine) -> None:
    task = FakeTask(held=True)
    engine.submit(task)
    assert task.inside.wait(PATIENCE)
    engine.withdraw(task)
    task.gate.set()
    wait_until(lambda: engine.load == IDLE)
    assert task.done == 1
    assert [type(error) for error in task.closed] == [WithdrawnError]


def test_completions_come_one_after_another_and_live_ones_in_between(engine: Engine) -> None:
    log: list[FakeTask] = []
    first, second, live = (FakeTask(5, log=log) for _ in range(3))
    blocker = FakeTask(1, held=True)
    engine.submit(blocker)
    assert blocker.inside.wait(PATIENCE)
    engine.submit(first)
    engine.submit(second)
    engine.attach(live)
    blocker.gate.set()
    wait_until(lambda: engine.load == IDLE)
    assert [task for task in log if task is not live] == [first] * 5 + [second] * 5
    places = [place for place, task in enumerate(log) if task is live]
    assert all(after - before == 2 for before, after in itertools.pairwise(places))
    assert all(task.closed == [None] for task in (first, second, live, blocker))


def test_the_queue_is_bounded_and_places_are_free_again(engine: Engine) -> None:
    active, *waiting = (FakeTask(held=True) for _ in range(3))
    live = FakeTask(held=True)
    engine.submit(active)
    assert active.inside.wait(PATIENCE)
    for task in waiting:
        engine.submit(task)
    engine.attach(live)
    with pytest.raises(BusyError, match="2 requests are waiting"):
        engine.submit(FakeTask())
    with pytest.raises(BusyError, match="1 live sessions"):
        engine.attach(FakeTask())
    for task in (*waiting, live, active):
        engine.withdraw(task)
        task.gate.set()
    wait_until(lambda: engine.load == IDLE)
    assert [task.done for task in waiting] == [0, 0]
    engine.submit(last := FakeTask(3))
    wait_until(lambda: last.closed == [None])


def test_a_failure_is_told_and_the_next_task_goes_on(engine: Engine) -> None:
    class Broken(FakeTask):
        def advance(self) -> bool:
            raise RuntimeError("broken")

    broken, whole = Broken(), FakeTask(2)
    engine.submit(broken)
    engine.submit(whole)
    wait_until(lambda: whole.closed == [None])
    assert [str(error) for error in broken.closed] == ["broken"]


def test_stopping_closes_all_and_takes_nothing_more() -> None:
    engine = new_engine()
    engine.start()
    active, waiting = FakeTask(held=True), FakeTask()
    engine.submit(active)
    assert active.inside.wait(PATIENCE)
    engine.submit(waiting)
    engine.stop_soon()
    active.gate.set()
    engine.stop()
    for task in (active, waiting):
        assert [type(error) for error in task.closed] == [StoppedError]
    with pytest.raises(StoppedError):
        engine.submit(FakeTask())


def test_a_client_is_told_that_there_is_no_place() -> None:
    service = tiny_service(queue_size=0, live_sessions=0, max_batch=1)
    with TestClient(create_app(service)) as client:
        blocker = FakeTask(held=True)
        service.engine.submit(blocker)
        assert blocker.inside.wait(PATIENCE)
        body = {"model": NAME, "prompt": "a", "max_tokens": 2}
        response = client.post("/v1/completions", json=body)
        assert response.status_code == 429
        assert response.headers["Retry-After"] == "1"
        assert response.json()["error"]["type"] == "rate_limit_error"
        live = client.post("/live/sessions", json={"prompt": "a", "modes": ["plain"]})
        assert live.status_code == 429
        service.engine.withdraw(blocker)
        blocker.gate.set()
        wait_until(lambda: service.engine.load == IDLE)
        assert client.post("/v1/completions", json=body).status_code == 200
        service.engine.stop_soon()
        assert client.post("/v1/completions", json=body).status_code == 503


class BusyTask(FakeTask):
    """Computes for some time in every step."""

    def __init__(self, seconds: float, cycles: int, log: list) -> None:
        super().__init__(cycles, log=log)
        self.seconds = seconds

    def advance(self) -> bool:
        end = time.thread_time() + self.seconds
        while time.thread_time() < end:
            pass
        return super().advance()


def test_long_steps_take_no_more_than_their_share_of_the_time() -> None:
    engine = new_engine(max_batch=2)
    engine.start()
    log: list[FakeTask] = []
    long, short, later = BusyTask(0.1, 6, log), BusyTask(0.01, 30, log), BusyTask(0.01, 10, log)
    engine.submit(long)
    engine.submit(short)
    engine.submit(later)
    wait_until(lambda: engine.load == IDLE)
    engine.stop()
    # Of two at work each has had half of the time, so one long step is worth ten short ones.
    between = [len([*group]) for task, group in itertools.groupby(log) if task is short]
    assert all(5 <= steps <= 15 for steps in between[1:-1])
    # Who comes late has no claim on the time before, and the others have none on its.
    assert log.index(later) > max(place for place, task in enumerate(log) if task is short)


def test_a_stop_comes_between_two_steps() -> None:
    engine = new_engine()
    engine.start()
    task = BusyTask(0.05, 10_000, [])
    engine.submit(task)
    wait_until(lambda: task.done > 0)
    assert engine.healthy
    started = time.monotonic()
    engine.stop()
    assert time.monotonic() - started < 10
    assert not engine.healthy
    assert [type(error) for error in task.closed] == [StoppedError]


@pytest.mark.parametrize("name", ["queue_size", "live_sessions", "max_batch", "max_tokens"])
def test_fewer_than_none(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least"):
        new_engine(**{name: -1})
