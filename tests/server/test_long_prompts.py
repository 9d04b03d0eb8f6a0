"""A prompt that takes long to read: others have their turn, and it can be given up on the way."""

import threading
from collections.abc import Iterator

import httpx
import pytest
from fastapi.testclient import TestClient

from eaglerl.server import Service, create_app
from eaglerl.server.completion import PROMPT_ROWS

from .connecting import serving, unread_request
from .tiny import NAME, PATIENCE, greedy_text, tiny_service, wait_until

IDLE = {"active": 0, "waiting": 0, "live": 0}
PROMPT = "long " * 180
CHUNKS = len(PROMPT) // PROMPT_ROWS


class _Reading:
    """Lets the parts of a prompt through one by one."""

    def __init__(self, service: Service) -> None:
        self.parts = 0
        self.gate = threading.Semaphore(0)
        self._forward = service.decoder.target.forward
        service.decoder.target.forward = self._slowly

    def _slowly(self, rows, *args):
        if len(rows) >= PROMPT_ROWS:
            self.parts += 1
            assert self.gate.acquire(timeout=PATIENCE)
        return self._forward(rows, *args)


@pytest.fixture
def reading() -> Iterator[tuple[str, Service, _Reading]]:
    """A served model that stops in every part of a long prompt."""
    service = tiny_service()
    held = _Reading(service)
    with serving(service) as (host, port, _):
        yield f"http://{host}:{port}", service, held
        held.gate.release(1000)


def body(prompt: str, tokens: int, **fields: object) -> dict:
    return {"model": NAME, "prompt": prompt, "max_tokens": tokens, "temperature": 0, **fields}


def test_others_are_answered_between_its_parts(reading) -> None:
    address, service, held = reading
    answers: list[httpx.Response] = []

    def ask_long() -> None:
        request = body(PROMPT, 8)
        answers.append(httpx.post(f"{address}/v1/completions", json=request, timeout=PATIENCE))

    long = threading.Thread(target=ask_long)
    long.start()
    wait_until(lambda: held.parts == 1)
    done: list[str] = []

    def ask_short() -> None:
        request = body("short", 3)
        response = httpx.post(f"{address}/v1/completions", json=request, timeout=PATIENCE)
        done.append(response.json()["choices"][0]["text"])

    short = threading.Thread(target=ask_short)
    short.start()
    live = {"prompt": "a", "modes": ["plain"], "max_tokens": 2}
    lively = threading.Thread(
        target=lambda: done.append(
            httpx.post(f"{address}/live/sessions", json=live, timeout=PATIENCE).text
        )
    )
    lively.start()
    wait_until(lambda: service.engine.load == {"active": 1, "waiting": 1, "live": 1})
    # Some parts are enough for all of the others' steps.
    while service.engine.load != {"active": 1, "waiting": 0, "live": 0}:
        before = held.parts
        assert before < CHUNKS
        held.gate.release()
        wait_until(lambda before=before: held.parts > before)
    held.gate.release(1000)
    for thread in (long, short, lively):
        thread.join(PATIENCE)
    assert greedy_text("short", 3) in done
    assert answers[0].json()["choices"][0]["text"] == greedy_text(PROMPT, 8)
    assert answers[0].json()["usage"]["prompt_tokens"] == len(PROMPT)
    assert held.parts == CHUNKS


@pytest.mark.parametrize("kind", ["stream", "whole", "live"])
def test_who_goes_while_it_is_read_leaves_the_rest_unread(
    reading, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, service, held = reading
    path, content = "/v1/completions", body(PROMPT, 8, stream=kind == "stream")
    if kind == "live":
        path = "/live/sessions"
        content = {"prompt": PROMPT, "modes": ["plain", "lookup"], "chat": False, "max_tokens": 9}
    withdraw, gone = service.engine.withdraw, threading.Event()

    def noting_it(task: object) -> None:
        withdraw(task)
        gone.set()

    monkeypatch.setattr(service.engine, "withdraw", noting_it)
    with unread_request(address, path, content):
        wait_until(lambda: held.parts == 1)
        assert not gone.is_set()
    # The part at work is the last one.
    assert gone.wait(PATIENCE)
    held.gate.release()
    wait_until(lambda: service.engine.load == IDLE)
    assert held.parts == 1


def test_a_stop_comes_after_the_part_at_work() -> None:
    service = tiny_service()
    held = _Reading(service)
    with TestClient(create_app(service)) as client:
        told: list[httpx.Response] = []
        asking = threading.Thread(
            target=lambda: told.append(client.post("/v1/completions", json=body(PROMPT, 8)))
        )
        asking.start()
        wait_until(lambda: held.parts == 1)
        service.engine.stop_soon()
        held.gate.release()
        asking.join(PATIENCE)
        assert told[0].status_code == 503
        assert told[0].json()["error"]["code"] == "server_stopping"
    assert held.parts == 1
