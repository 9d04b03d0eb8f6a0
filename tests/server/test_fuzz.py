"""Requests by chance: answered in the right form, or refused with a reason, and never a crash."""

import json
import socket
from collections import Counter
from contextlib import suppress

import httpx
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from .connecting import serving
from .requests_of_chance import Requests
from .tiny import PATIENCE, greedy_text, tiny_service, wait_until

IDLE = {"active": 0, "waiting": 0, "live": 0}
#: Everything that docs/serving.md names.
STATUSES = {200, 400, 403, 404, 405, 408, 413, 429, 503}
FEW, MANY = 60, 1000
FEW_RAW, MANY_RAW = 40, 400


@pytest.fixture(scope="module")
def fuzzed():
    """A server with little patience, and its service."""
    service = tiny_service()
    limits = {"header_seconds": 0.3, "body_seconds": 0.3, "idle_seconds": 0.3}
    with serving(service, **limits) as (host, port, _):
        yield (host, port), service


def check_error(content: dict) -> None:
    error = content["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["code"] != "internal_error"


def check_answer(path: str, content: dict) -> None:
    kind = ChatCompletion if "chat" in path else Completion
    kind.model_validate(content)
    usage = content["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert [choice["index"] for choice in content["choices"]] == [*range(len(content["choices"]))]
    assert all(choice["finish_reason"] in ("stop", "length") for choice in content["choices"])


def check_stream(path: str, text: str) -> None:
    events = [event for event in text.split("\n\n") if event]
    if path.startswith("live"):
        assert events[-1] == "event: end\ndata: {}"
        return
    assert events[-1] == "data: [DONE]"
    kind = ChatCompletionChunk if "chat" in path else Completion
    for event in events[:-1]:
        content = json.loads(event.removeprefix("data: "))
        assert "error" not in content
        if kind is Completion:
            # The reference's type is that of the end; OpenAI's chunks before it have null.
            for choice in content["choices"]:
                choice["finish_reason"] = choice["finish_reason"] or "stop"
        kind.model_validate(content)


def check_well(address: tuple[str, int], service) -> None:
    """All is free again, and the next answer is right."""
    wait_until(lambda: service.engine.load == IDLE)
    url = f"http://{address[0]}:{address[1]}"
    assert httpx.get(f"{url}/health", timeout=PATIENCE).status_code == 200
    body = {"model": "tiny", "prompt": "hello", "max_tokens": 10, "temperature": 0}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=PATIENCE).json()
    assert answer["choices"][0]["text"] == greedy_text("hello", 10)


@pytest.mark.parametrize(
    ("seed", "count"), [(0, FEW), pytest.param(1, MANY, marks=pytest.mark.slow)]
)
def test_requests_of_chance(fuzzed, seed: int, count: int) -> None:
    address, service = fuzzed
    drawn = Requests(seed)
    told: Counter[int] = Counter()
    with httpx.Client(base_url=f"http://{address[0]}:{address[1]}", timeout=PATIENCE) as client:
        for _ in range(count):
            path, content = drawn.encoded()
            headers = {"Content-Type": "application/json"}
            response = client.post(f"/{path}", content=content, headers=headers)
            told[response.status_code] += 1
            assert response.status_code in STATUSES, (path, content, response.text)
            if response.status_code != 200:
                check_error(response.json())
                assert response.status_code not in (408, 429, 503), response.text
            elif response.headers["content-type"].startswith("text/event-stream"):
                check_stream(path, response.text)
            else:
                check_answer(path, response.json())
    # Both sides are tried.
    assert told[200] > count / 6
    assert told[400] > count / 6
    check_well(address, service)


@pytest.mark.parametrize(
    ("seed", "count"), [(2, FEW_RAW), pytest.param(3, MANY_RAW, marks=pytest.mark.slow)]
)
def test_bytes_of_chance(fuzzed, seed: int, count: int) -> None:
    address, service = fuzzed
    drawn = Requests(seed)
    told: Counter[int] = Counter()
    for _ in range(count):
        said = drawn.raw()
        with socket.create_connection(address, timeout=PATIENCE) as client:
            heard = b""
            with suppress(ConnectionResetError, BrokenPipeError):
                client.sendall(said)
                while piece := client.recv(65536):
                    heard += piece
        if not heard:
            # It was closed while it was still being written to.
            told[0] += 1
            continue
        status = int(heard.split()[1])
        told[status] += 1
        assert status in STATUSES, (said, heard)
        assert b"internal_error" not in heard
        assert b"Internal Server Error" not in heard
    assert told[0] < count / 4
    assert told[200] > 0
    assert told[400] > count / 6
    check_well(address, service)
