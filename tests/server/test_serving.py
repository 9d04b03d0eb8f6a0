"""A real server under load: many clients, clients that go, failures, memory."""

import gc
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
from fastapi.testclient import TestClient

from eaglerl.server import Mode, Service, create_app

from .connecting import unread_request
from .tiny import NAME, PATIENCE, greedy_text, tiny_service, wait_until

LONG = {"model": NAME, "prompt": "on and on", "max_tokens": 900, "temperature": 0, "mode": "slow"}
IDLE = {"active": 0, "waiting": 0, "live": 0}


def body(prompt: str, tokens: int, **fields: object) -> dict:
    return {"model": NAME, "prompt": prompt, "max_tokens": tokens, "temperature": 0, **fields}


def test_eight_clients_at_once_get_what_each_would_get_alone(served) -> None:
    address, service = served
    prompts = [f"client number {index}" for index in range(8)]
    modes = ["plain", "best-constant", "lookup", "tree-lookup"] * 2
    expected = [greedy_text(prompt, 25) for prompt in prompts]

    def ask(job: tuple[str, str]) -> str:
        prompt, mode = job
        url = f"{address}/v1/completions"
        response = httpx.post(url, json=body(prompt, 25, mode=mode), timeout=PATIENCE)
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]["text"]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, zip(prompts, modes, strict=True))) == expected
    # An answer is sent a moment before its place is free.
    wait_until(lambda: service.engine.load == IDLE)


@pytest.mark.parametrize("kind", ["stream", "whole", "live"])
def test_a_client_that_goes_leaves_the_decoder_free(served, kind: str) -> None:
    address, service = served
    path, content = "/v1/completions", LONG | {"stream": kind == "stream"}
    if kind == "live":
        path = "/live/sessions"
        content = {"prompt": "on", "modes": ["plain", "lookup"], "paused": True}
    with unread_request(address, path, content) as client:
        # It is counted while its answer, 4 s long or without end, is under way.
        wait_until(lambda: service.engine.load != IDLE)
        if kind != "whole":
            assert client.recv(12) == b"HTTP/1.1 200"
    wait_until(lambda: service.engine.load == IDLE)
    again = httpx.post(f"{address}/v1/completions", json=body("x", 2), timeout=PATIENCE)
    assert again.status_code == 200


class _Broken:
    def reset(self) -> None:
        pass

    def choose(self, state: object) -> None:
        raise RuntimeError("this policy is broken")

    def observe(self, result: object) -> None:
        pass


def test_a_failure_is_one_requests_own() -> None:
    service = tiny_service(Mode("broken", "Fails.", _Broken))
    with TestClient(create_app(service)) as client:
        for fields in ({}, {"stream": True}):
            response = client.post("/v1/completions", json=body("a", 5, mode="broken", **fields))
            assert "this policy" not in response.text
            assert '"code":"internal_error"' in response.text
            assert response.status_code == (200 if fields else 500)
        live = client.post("/live/sessions", json={"prompt": "a", "modes": ["broken"]})
        assert '"code":"internal_error"' in live.text
        assert client.post("/v1/completions", json=body("a", 5)).status_code == 200
        wait_until(lambda: service.engine.load == IDLE)


def test_memory_stays_flat_over_500_requests(service: Service, client: TestClient) -> None:
    process = psutil.Process()

    def hundred_requests() -> None:
        for index in range(100):
            mode = ("plain", "best-constant", "lookup", "tree-lookup")[index % 4]
            fields = {"mode": mode, "stream": index % 2 == 0, "stop": "zz"}
            request = body(f"request {index}", 4, **fields)
            assert client.post("/v1/completions", json=request).status_code == 200
            if index % 10 == 0:
                assert client.post("/v1/completions", content=b"{").status_code == 400
                live = {"prompt": "a", "modes": ["plain", "lookup"], "max_tokens": 3}
                assert client.post("/live/sessions", json=live).status_code == 200

    def growth() -> int:
        gc.collect()
        before = process.memory_info().rss
        for _ in range(5):
            hundred_requests()
        gc.collect()
        return process.memory_info().rss - before

    hundred_requests()
    # 10 KB a request: the smallest thing that a request has is a session's caches, 400 KB here; an
    # allocator's own growth stays below this. On a busy machine 4 to 11 MB came once in a hundred
    # of 900 requests, and nothing in the others; what requests lose is lost in every round.
    assert any(growth() < 500 * 10_000 for _ in range(2))
    wait_until(lambda: service.engine.load == IDLE)
