"""The deployment of Ray Serve: it answers, streams, uses both nodes, and stops with care."""

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import typer

from eaglerl.distributed.cluster import Cluster

from .conftest import PATIENCE

pytest.importorskip("ray", reason="the extra ray is not installed")

from ray import serve
from ray.serve.config import HTTPOptions

from eaglerl import serve_ray

QUESTION = {"messages": [{"role": "user", "content": "Why?"}], "model": "target", "temperature": 0}


@pytest.fixture(scope="module")
def start(cluster: Cluster, tiny_folders: SimpleNamespace) -> Iterator[Callable[[], str]]:
    """Deploy the application, with a replica on each node; give its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve.start(proxy_location="HeadOnly", http_options=HTTPOptions(host="127.0.0.1", port=port))

    def run() -> str:
        model, draft = str(tiny_folders.target), str(tiny_folders.head)
        settings = {"model": model, "draft": draft, "threads": "1", "max_ongoing_requests": "3"}
        application = serve_ray.build(settings)
        serve.run(application, name="eaglerl")
        return f"http://127.0.0.1:{port}"

    yield run
    serve.shutdown()


@pytest.fixture(scope="module")
def url(start: Callable[[], str]) -> str:
    return start()


def post(url: str, **fields: object) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json=QUESTION | fields, timeout=PATIENCE)


def metric(url: str, line: str) -> set[float]:
    """What replicas say of a metric: of requests at once, each takes three before the next one."""

    def ask(_: int) -> float:
        text = httpx.get(f"{url}/metrics", timeout=PATIENCE).text
        return float(re.search(rf"^{re.escape(line)} (.+)$", text, re.MULTILINE)[1])

    with ThreadPoolExecutor(8) as pool:
        return {*pool.map(ask, range(8))}


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.mark.slow
def test_both_replicas_answer(url: str) -> None:
    # An odd number: each replica has its own share.
    with ThreadPoolExecutor(17) as pool:
        answers = [*pool.map(lambda _: post(url, max_tokens=300), range(17))]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["choices"][0]["message"]["content"] for answer in answers}) == 1
    seen: set[float] = set()

    def all_seen() -> bool:
        seen.update(metric(url, 'vllm:generation_tokens_total{model_name="target"}'))
        return 0 not in seen and sum(seen) == 17 * 300

    wait_until(all_seen)


@pytest.mark.slow
def test_it_streams(url: str) -> None:
    whole = post(url, max_tokens=60).json()["choices"][0]["message"]["content"]
    body = QUESTION | {"max_tokens": 60, "stream": True}
    where = f"{url}/v1/chat/completions"
    with httpx.stream("POST", where, json=body, timeout=PATIENCE) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    deltas = [json.loads(line)["choices"][0]["delta"] for line in lines[:-1]]
    assert len(deltas) > 5
    assert "".join(delta.get("content") or "" for delta in deltas) == whole


@pytest.mark.slow
def test_errors_have_openais_shape(url: str) -> None:
    answer = post(url, max_tokens=-1)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "max_tokens"


@pytest.mark.slow
def test_a_request_ends_when_its_client_disconnects(url: str) -> None:
    body = QUESTION | {"max_tokens": 8000, "stream": True}
    where = f"{url}/v1/chat/completions"
    with httpx.stream("POST", where, json=body, timeout=PATIENCE) as response:
        for line, _ in zip(response.iter_lines(), range(8), strict=False):
            assert "[DONE]" not in line
    ended = 'vllm:request_success_total{finished_reason="abort",model_name="target"}'
    wait_until(lambda: 1 in metric(url, ended))


@pytest.mark.slow
def test_answers_are_finished_when_it_stops(
    start: Callable[[], str], url: str, cache: Path
) -> None:
    lines: list[str] = []
    begun = threading.Event()

    def read() -> None:
        body = QUESTION | {"max_tokens": 3000, "stream": True}
        where = f"{url}/v1/chat/completions"
        with httpx.stream("POST", where, json=body, timeout=PATIENCE) as response:
            for line in response.iter_lines():
                lines.append(line)
                begun.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(PATIENCE)
    before = len(lines)
    serve.delete("eaglerl")
    reader.join(PATIENCE)
    assert "data: [DONE]" in lines
    assert len(lines) > before
    # What both replicas have learned of the same models on the same machine, once they have ended.
    wait_until(lambda: len([*(cache / "costs").glob("batch-of-*-learned-*")]) == 1)


class TestSettings:
    def test_arguments_come_before_the_environment(self, monkeypatch):
        monkeypatch.setenv("EAGLERL_PRECISION", "int8")
        monkeypatch.setenv("EAGLERL_QUEUE_SIZE", "7")
        monkeypatch.setenv("EAGLERL_POLICIES", "a:b")
        settings = serve_ray.read_settings({"precision": "float32", "plain": "true"})
        assert (settings.precision, settings.queue_size, settings.plain) == ("float32", 7, True)
        assert settings.policies == [Path("a"), Path("b")]

    def test_the_application_is_built_when_it_is_asked_for(self, cluster: Cluster, monkeypatch):
        assert isinstance(serve_ray.app, serve.Application)
        monkeypatch.setenv("EAGLERL_REPLICAS", "none")
        with pytest.raises(ValueError, match="replicas must be a whole number from 1, got 'none'"):
            _ = serve_ray.app
        with pytest.raises(AttributeError, match="no attribute 'other'"):
            _ = serve_ray.other

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"quick": "1"}, "an argument must be one of .* got 'quick'"),
            ({"port": "1"}, "got 'port'"),
            ({"replicas": "0"}, "replicas must be a whole number from 1, got '0'"),
            ({"queue_size": "many"}, "queue_size: .* got 'many'"),
            ({"tree": "8/2"}, "three whole numbers"),
        ],
    )
    def test_wrong_ones_are_refused(self, given, message):
        # typer's for a tree, as on the command line.
        with pytest.raises((ValueError, typer.BadParameter), match=message):
            serve_ray.build(given)
