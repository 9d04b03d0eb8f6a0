"""Requests that are decoded together: each gets what it gets alone, and none harms another."""

import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest

from eaglerl.eagle3 import ConstantPolicy, FusedPolicy, TreeParams
from eaglerl.server import Limits, Mode, Modes, Service, auto_mode, standard_modes
from eaglerl.server.tasks import WithdrawnError

from .connecting import serving, unread_request
from .tiny import (
    NAME,
    PATIENCE,
    Slow,
    byte_tokenizer,
    greedy_text,
    tiny_decoder,
    tiny_service,
    wait_until,
)

IDLE = {"active": 0, "waiting": 0, "live": 0}


def body(prompt: str, tokens: int = 25, **fields: object) -> dict[str, Any]:
    return {"model": NAME, "prompt": prompt, "max_tokens": tokens, "temperature": 0, **fields}


def auto_service(*more_modes: Mode, **limits: object) -> Service:
    """A service with the joint policy for its default mode."""
    from eaglerl.policies.auto_policy import make_auto_policy

    decoder = tiny_decoder()
    auto = auto_mode(make_auto_policy(decoder.draft_head.config.draft_vocab_size))
    modes = Modes([auto, *standard_modes(), *more_modes], "auto")
    return Service(decoder, modes, model_name=NAME, limits=Limits(**limits))


#: Requests of every kind: lengths, samplers, processors, stop texts, log-probabilities, modes.
REQUESTS: list[dict[str, Any]] = [
    body("the first of them"),
    body("sampled", temperature=0.9, seed=5),
    body("x" * 300, 12, mode="plain"),
    body("penalties", 30, presence_penalty=0.7, frequency_penalty=0.3, logit_bias={"3": -5}),
    body("several", 15, n=3, temperature=1.0, seed=9, mode="tree-lookup"),
    body("stops", 60, stop=["ri", "er"], logprobs=2),
    body("repeats itself, repeats itself", 40, mode="lookup", repetition_penalty=1.2),
    body("a large tree", 20, mode="tree:80/3/6", temperature=0.7, top_p=0.9, top_k=9, seed=1),
]


class _Client:
    """Asks one server, whole or in a stream, and joins the pieces."""

    def __init__(self, address: str) -> None:
        self._url = f"{address}/v1/completions"
        self._client = httpx.Client(timeout=PATIENCE)

    def ask(self, request: dict[str, Any]) -> list[tuple]:
        response = self._client.post(self._url, json=request)
        assert response.status_code == 200, response.text
        return [
            (choice["text"], choice["finish_reason"], choice["logprobs"])
            for choice in response.json()["choices"]
        ]


@pytest.fixture(scope="module")
def asked() -> Iterator[tuple[_Client, Service]]:
    """A server that decodes up to eight answers together."""
    service = auto_service(max_batch=8, queue_size=200, prefix_cache_tokens=2000)
    with serving(service) as (host, port, _):
        yield _Client(f"http://{host}:{port}"), service


@pytest.fixture(scope="module")
def alone(asked) -> list[list[tuple]]:
    """What every request gets while there is no other."""
    client, _ = asked
    return [client.ask(request) for request in REQUESTS]


@pytest.mark.parametrize("seed", range(3))
def test_every_request_gets_what_it_gets_alone(asked, alone, seed: int) -> None:
    client, service = asked
    draw = random.Random(seed)
    jobs = [place for place in range(len(REQUESTS)) for _ in range(4)]
    draw.shuffle(jobs)
    delays = [draw.random() * 0.3 for _ in jobs]
    most = []

    def ask(job: tuple[int, float]) -> tuple[int, list[tuple]]:
        place, delay = job
        time.sleep(delay)
        found = client.ask(REQUESTS[place])
        most.append(service.engine.answers)
        return place, found

    with ThreadPoolExecutor(len(jobs)) as pool:
        found = list(pool.map(ask, zip(jobs, delays, strict=True)))
    assert max(most) > 2
    for place, answer in found:
        assert answer == alone[place], REQUESTS[place]
    wait_until(lambda: service.engine.load == IDLE)


def test_the_joint_policy_decides_for_those_that_ask_for_it(asked) -> None:
    client, service = asked
    batch = service.batch._open()
    joined: list[bool] = []
    join = batch.session.policies.join

    def noting(slot: int, policy: object = None) -> None:
        joined.append(policy is None)
        join(slot, policy)

    batch.session.policies.join = noting
    try:
        for mode in ("auto", "plain", "tree:6/2/4", "lookup", "tree-lookup"):
            client.ask(body("hello", 5, mode=mode))
    finally:
        batch.session.policies.join = join
    assert joined == [True, False, False, False, False]


def test_hundreds_of_cancelled_requests_leave_nothing(asked) -> None:
    client, service = asked
    address = client._url.removesuffix("/v1/completions")
    process = psutil.Process()
    draw = random.Random(0)

    def cancel(index: int) -> None:
        request = body(f"cancelled {index} " * draw.randint(1, 20), 800, stream=index % 2 == 0)
        with unread_request(address, "/v1/completions", request | {"n": 1 + index % 3}):
            time.sleep(draw.random() * 0.05)

    def hundred() -> None:
        with ThreadPoolExecutor(12) as pool:
            list(pool.map(cancel, range(100)))
        wait_until(lambda: service.engine.load == IDLE)
        assert service.engine.answers == 0
        session = service.batch._open().session
        assert session.slots == 8
        # The engine counts a request no more before it closes it. What leaves during a cycle has
        # its slot until the end of the cycle, and then its rows go.
        wait_until(lambda: not service.batch._receivers)
        wait_until(lambda: session.free_slots == 8)
        wait_until(lambda: session.cache.lengths == [0] * 8)

    hundred()
    threads, memory = process.num_threads(), process.memory_info().rss
    for _ in range(3):
        hundred()
    # asyncio's pool grows to its six threads by and by; one that every request left would be 300.
    assert process.num_threads() <= threads + 6
    assert process.memory_info().rss - memory < 30e6
    assert client.ask(REQUESTS[0]) == client.ask(REQUESTS[0])


class _Broken:
    """A policy that fails after some cycles."""

    def __init__(self, cycles: int = 3) -> None:
        self.cycles = cycles

    def reset(self) -> None:
        self.left = self.cycles

    def choose(self, state: object) -> TreeParams:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("this policy is broken")
        return TreeParams(4, 1, 3)

    def observe(self, result: object) -> None:
        pass


class _Stepping:
    """Lets a batch's steps through one by one, and counts them."""

    def __init__(self, service: Service) -> None:
        self.steps = 0
        self.gate = threading.Semaphore(0)
        advance = service.batch.advance

        def one_by_one() -> bool:
            assert self.gate.acquire(timeout=PATIENCE)
            self.steps += 1
            return advance()

        self._load = lambda: service.engine.load
        service.batch.advance = one_by_one
        service.stepping = self

    def until(self, active: int, waiting: int) -> None:
        """Let steps through until so many requests are at work and wait."""

        def reached() -> bool:
            if self._load() == {"active": active, "waiting": waiting, "live": 0}:
                return True
            self.gate.release()
            return False

        wait_until(reached)


class _Tasks:
    """Submits requests to an engine without a web server, and keeps their events."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.events: list[list] = []

    def stop(self) -> None:
        """Stop the engine, whatever it waits for."""
        self.service.batch.__dict__.pop("advance", None)
        self.service.engine.stop_soon()
        if hasattr(self.service, "stepping"):
            self.service.stepping.gate.release(100)
        self.service.engine.stop()

    def submit(self, prompt: str, tokens: int, mode: str = "plain", **options: Any) -> Any:
        from eaglerl.server.completion import CompletionRequest

        told: list = []
        self.events.append(told)
        request = CompletionRequest(
            self.service,
            self.service.modes.get(mode),
            byte_tokenizer()(prompt).input_ids,
            told.append,
            max_new_tokens=tokens,
            **({"temperature": 0} | options),
        )
        self.service.engine.submit(request)
        return request


@pytest.fixture
def tasks() -> Iterator[_Tasks]:
    service = tiny_service(Mode("broken", "Fails.", _Broken), max_batch=4)
    service.engine.start()
    tasks = _Tasks(service)
    yield tasks
    tasks.stop()


def texts(events: Sequence) -> str:
    return "".join(event.text for event in events if type(event).__name__ == "Piece")


def test_a_long_prompt_holds_up_no_other(tasks: _Tasks) -> None:
    """While it is read, chunk by chunk, every step brings the others a token."""
    stepping = _Stepping(tasks.service)
    short = tasks.submit("ab", 500)
    stepping.gate.release()
    wait_until(lambda: len(tasks.events[0]) > 0)
    tasks.submit("long " * 180, 5)
    second = tasks.submit("later", 500)
    before = len(tasks.events[0])
    # The step at work began before they came. Then 15 chunks of 64 rows; the prompt that came later
    # is read between two of them.
    for step in range(1, 18):
        stepping.gate.release()
        wait_until(lambda step=step: len(tasks.events[0]) == before + step)
        if step == 3:
            wait_until(lambda: tasks.events[2])
    wait_until(lambda: tasks.events[1])
    assert stepping.steps == 18
    for request in (short, second):
        tasks.service.engine.withdraw(request)
    stepping.gate.release(1000)
    wait_until(lambda: tasks.service.engine.load == IDLE)


def test_one_that_fails_does_so_alone(tasks: _Tasks) -> None:
    requests = [
        tasks.submit(f"request {mode}", 20, mode)
        for mode in ("plain", "broken", "best-constant", "broken", "lookup")
    ]
    wait_until(lambda: tasks.service.engine.load == IDLE)
    assert [str(request.failure) for request in requests if request.failure] == (
        ["this policy is broken"] * 2
    )
    for request, events in zip(requests, tasks.events, strict=True):
        name = type(events[-1]).__name__
        assert name == ("Failed" if request.failure else "Finished")
        assert len(texts(events)) == (20 if name == "Finished" else len(texts(events)))


def test_what_all_share_may_fail_and_the_next_ones_go_on(tasks: _Tasks) -> None:
    batch = tasks.service.batch
    session = batch._open().session
    forward = tasks.service.decoder.target.forward

    def failing(*_: object) -> None:
        raise MemoryError("the pass has failed")

    requests = [tasks.submit(f"request {index}", 900, "plain") for index in range(3)]
    wait_until(lambda: all(texts(events) for events in tasks.events))
    tasks.service.decoder.target.forward = failing
    wait_until(lambda: tasks.service.engine.load == IDLE)
    tasks.service.decoder.target.forward = forward
    assert {str(request.failure) for request in requests} == {"the pass has failed"}
    after = tasks.submit("hello", 9)
    wait_until(lambda: tasks.service.engine.load == IDLE)
    assert after.failure is None
    assert len(texts(tasks.events[-1])) == 9
    # With caches and policies that know nothing of it.
    assert batch._open().session is not session


def test_a_step_that_raises_ends_all_and_the_engine_goes_on(tasks: _Tasks) -> None:
    batch = tasks.service.batch
    requests = [tasks.submit(f"request {index}", 900, "plain") for index in range(3)]
    wait_until(lambda: all(texts(events) for events in tasks.events))

    def failing() -> None:
        raise RuntimeError("the batch is broken")

    batch._open().step = failing
    wait_until(lambda: tasks.service.engine.load == IDLE)
    assert {str(request.failure) for request in requests} == {"the batch is broken"}
    after = tasks.submit("hello", 9)
    wait_until(lambda: tasks.service.engine.load == IDLE)
    assert after.failure is None


def test_more_answers_than_slots_wait_in_their_order(tasks: _Tasks) -> None:
    first = tasks.submit("many", 10, answers=9, temperature=1.0, seed=3)
    second = tasks.submit("one", 10)
    wait_until(lambda: tasks.service.engine.load == IDLE)
    assert first.over
    assert second.over
    ends = [event.index for event in tasks.events[0] if type(event).__name__ == "AnswerEnd"]
    assert sorted(ends) == list(range(9))
    assert tasks.events[0][-1].completion_tokens == 90


def test_tokens_in_flight_are_bounded() -> None:
    service = tiny_service(max_batch=8, max_tokens_in_flight=100, queue_size=20)
    service.engine.start()
    tasks = _Tasks(service)
    stepping = _Stepping(service)
    for _ in range(5):
        tasks.submit("0123456789", 30)
    stepping.until(active=2, waiting=3)
    assert service.engine.usage == 0.8
    with pytest.raises(ValueError, match="never fits"):
        tasks.submit("0123456789", 91)
    most = 0
    while service.engine.load != IDLE:
        stepping.gate.release()
        most = max(most, service.engine.answers)
        time.sleep(0.001)
    assert most == 2
    assert all(len(texts(events)) == 30 for events in tasks.events[:5])
    tasks.stop()


def test_what_never_fits_is_refused_at_once() -> None:
    service = tiny_service(max_tokens_in_flight=100)
    with serving(service) as (host, port, _):
        url = f"http://{host}:{port}/v1/completions"
        response = httpx.post(url, json=body("0123456789", 91), timeout=PATIENCE)
        assert response.status_code == 413
        error = response.json()["error"]
        assert error["param"] == "max_tokens"
        assert error["message"] == (
            "the prompt has 10 tokens; with max_tokens=91 that is more than the 100 of all answers "
            "together"
        )
        assert httpx.post(url, json=body("0123456789", 90), timeout=PATIENCE).status_code == 200


class _Fused(FusedPolicy):
    """A fused policy that is never asked here; it is told apart by its kind."""

    def __init__(self) -> None:
        pass


def test_what_cannot_join_the_batch_takes_turns_with_it() -> None:
    """A fused policy gets a generation of its own; this one cannot decode, and fails there."""
    service = tiny_service(Mode("own", "Alone.", _Fused), max_batch=4)
    service.engine.start()
    tasks = _Tasks(service)
    beside, fused = tasks.submit("hello", 200), tasks.submit("hello", 20, "own")
    wait_until(lambda: service.engine.load == IDLE)
    assert isinstance(fused.failure, Exception)
    assert beside.failure is None
    assert not service.batch._receivers
    service.engine.stop()


def test_without_a_batch_all_take_turns() -> None:
    service = tiny_service(max_batch=3)
    service.batch = service.engine._batch = None
    service.engine.start()
    tasks = _Tasks(service)
    requests = [tasks.submit(f"request {i}", 20, answers=2, mode="lookup") for i in range(5)]
    most = 0
    while service.engine.load != IDLE:
        most = max(most, service.engine.answers)
    assert most == 3
    for index, request in enumerate(requests):
        assert request.failure is None
        assert texts(tasks.events[index]) != ""
        pieces = ["", ""]
        for event in tasks.events[index]:
            if type(event).__name__ == "Piece":
                pieces[event.index] += event.text
        assert pieces == [greedy_text(f"request {index}", 20)] * 2
    service.engine.stop()


def test_stopping_ends_all_that_are_decoded_and_all_that_wait() -> None:
    service = tiny_service(
        Mode("slow", "Takes its time.", lambda: Slow(TreeParams(8, 2, 2))), max_batch=3
    )
    service.engine.start()
    tasks = _Tasks(service)
    for index in range(6):
        tasks.submit(f"request {index}", 900, "slow")
    wait_until(lambda: all(texts(events) for events in tasks.events[:3]))
    service.engine.stop()
    assert service.engine.load == IDLE
    for events in tasks.events:
        assert type(events[-1]).__name__ == "Failed"
        assert "shutting down" in str(events[-1].error)
    session = service.batch._open().session
    assert session.free_slots == 3


def test_a_withdrawn_answer_frees_its_slot_for_the_next(tasks: _Tasks) -> None:
    stepping = _Stepping(tasks.service)
    requests = [tasks.submit(f"request {index}", 500) for index in range(6)]
    stepping.until(active=4, waiting=2)
    tasks.service.engine.withdraw(requests[1])
    stepping.until(active=4, waiting=1)
    tasks.service.engine.withdraw(requests[5])
    stepping.until(active=4, waiting=0)
    for place in (1, 5):
        assert isinstance(tasks.events[place][-1].error, WithdrawnError)
    for request in requests:
        tasks.service.engine.withdraw(request)
    stepping.gate.release(100)
    wait_until(lambda: tasks.service.engine.load == IDLE)


def test_a_policy_of_a_mode_serves_one_answer_at_a_time() -> None:
    """Policies of a mode that cannot fork are made for as many answers as run at once."""
    made: list[ConstantPolicy] = []

    def make() -> ConstantPolicy:
        made.append(ConstantPolicy(TreeParams(4, 1, 3)))
        return made[-1]

    service = tiny_service(Mode("counted", "Counted.", make), max_batch=3)
    service.engine.start()
    tasks = _Tasks(service)
    for index in range(9):
        tasks.submit(f"request {index}", 10, "counted")
    wait_until(lambda: service.engine.load == IDLE)
    assert 1 <= len(made) <= 3
    assert all(len(texts(events)) == 10 for events in tasks.events)
    service.engine.stop()
