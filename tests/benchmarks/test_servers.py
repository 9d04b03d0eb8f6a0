"""The parts of the comparison of servers that need none of them."""

import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks" / "peers"))

import compare_servers  # noqa: E402
import server_processes  # noqa: E402
import server_tables  # noqa: E402
from server_load import read_stream, run_load  # noqa: E402
from server_processes import Runner, Server, choose_runners, request_body  # noqa: E402
from server_records import Load, LoadRecords, StreamedAnswer  # noqa: E402

from .fake_server import FakeServer  # noqa: E402


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as fake:
        thread = threading.Thread(target=fake.serve_forever, daemon=True)
        thread.start()
        yield fake
        fake.shutdown()


def bodies(*counts: int) -> dict[str, dict]:
    return {f"q{i}": {"prompt": [count]} for i, count in enumerate(counts)}


def test_clients_send_the_next_request_when_one_has_ended(server: FakeServer) -> None:
    answers, seconds = run_load(server.server_port, bodies(3, 1, 2, 4, 5), 2, timeout=30)
    assert list(answers) == ["q0", "q1", "q2", "q3", "q4"]
    assert [answer.tokens for answer in answers.values()] == [3, 1, 2, 4, 5]
    assert [answer.text for answer in answers.values()] == ["a " * n for n in (3, 1, 2, 4, 5)]
    assert server.most == 2
    for answer in answers.values():
        assert len(answer.arrivals) == answer.tokens
        assert list(answer.arrivals) == sorted(answer.arrivals)
        assert 0.5 * server.pause < answer.arrivals[0]
        assert answer.sent + answer.arrivals[-1] <= seconds
    # The first two at once, each later one behind an earlier one.
    sent = [answer.sent for answer in answers.values()]
    assert max(sent[:2]) < min(sent[2:])


def test_an_error_and_a_hanging_server_are_told(server: FakeServer) -> None:
    with pytest.raises(RuntimeError, match=r"the server answered .*400 no prompt"):
        run_load(server.server_port, bodies(1, 0), 2, timeout=30)
    server.pause = 5.0
    with pytest.raises(RuntimeError, match=r"took more than 0 s"):
        run_load(server.server_port, bodies(1), 1, timeout=0.2)


def test_a_stream_is_read_wherever_it_is_cut() -> None:
    text = "größer "
    events = [
        {"choices": [{"text": text}]},
        {"choices": [{"text": "b", "finish_reason": "stop"}]},
        {"choices": [], "usage": {"completion_tokens": 3}},
    ]
    body = b"".join(b"data: " + json.dumps(e).encode() + b"\r\n\r\n" for e in events)
    body += b": a comment\n\ndata: [DONE]\n\n"
    half = len(body) // 2
    chunks = b"".join(
        f"{len(part):x};x=y\r\n".encode() + part + b"\r\n" for part in (body[:half], body[half:])
    )
    for head, content in (
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", chunks + b"0\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", body),
    ):
        whole = head + content
        for step in (1, 7, len(whole)):
            pieces = [
                (10.0 + start, whole[start : start + step]) for start in range(0, len(whole), step)
            ]
            found = read_stream(pieces, sent=9.0, began=8.0)
            assert (found.text, found.tokens, found.sent) == (text + "b", 3, 1.0)
            assert len(found.arrivals) == 2
    cached = body.replace(
        b'"completion_tokens": 3',
        b'"completion_tokens": 3, "prompt_tokens": 9, '
        b'"prompt_tokens_details": {"cached_tokens": 2}',
    )
    with pytest.raises(RuntimeError, match="read only 7 of the prompt's 9 tokens"):
        read_stream([(0.0, b"HTTP/1.1 200 OK\r\n\r\n" + cached)], 0.0, 0.0)
    for broken in (body[:-8], body.replace(b"usage", b"other")):
        with pytest.raises(RuntimeError, match="a stream must have text, usage and an end"):
            read_stream([(0.0, b"HTTP/1.1 200 OK\r\n\r\n" + broken)], 0.0, 0.0)


def test_servers_start_pause_and_end(tmp_path: Path) -> None:
    command = [sys.executable, Path(__file__).parent / "fake_server.py"]
    one = Server("fake", command, tmp_path / "fake.log")
    one.start()
    try:
        run_load(one.port, bodies(1), 1, timeout=30)
        one.pause()
        with pytest.raises(RuntimeError, match="took more than"):
            run_load(one.port, bodies(1), 1, timeout=0.3)
        one.resume()
        run_load(one.port, bodies(2), 1, timeout=30)
        one.pause()
    finally:
        one.close()
    with pytest.raises(OSError, match=r"[Cc]onn"):
        run_load(one.port, bodies(1), 1, timeout=30)
    broken = Server("broken", [sys.executable, "-c", "print('no model')"], tmp_path / "b.log")
    with pytest.raises(RuntimeError, match=r"(?s)broken ended with 0.*no model"):
        broken.start()
    broken.close()


def load(
    runner: str, number: int, repeat: int, seconds: float, *texts: str, tokens: int = 11
) -> Load:
    return Load(
        runner=runner,
        concurrency=number,
        repeat=repeat,
        session=0,
        seconds=seconds,
        answers=tuple(
            StreamedAnswer(
                question=f"q{i}", text=text, tokens=tokens, sent=0.0, arrivals=(0.5, 0.7, 1.5)
            )
            for i, text in enumerate(texts)
        ),
    )


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    first, second = load("x", 1, 0, 2.0, "a"), load("x", 4, 0, 2.0, "a")
    with LoadRecords(tmp_path, {"threads": 2}) as records:
        records.add(first)
    with LoadRecords(tmp_path, {"threads": 2}) as records:
        assert (records.session, records.loads) == (1, {first.key: first})
        records.add(second)
    with LoadRecords(tmp_path, {"threads": 2}) as records:
        assert records.loads == {first.key: first, second.key: second}
    with pytest.raises(ValueError, match="threads 2, and this would be 1"):
        LoadRecords(tmp_path, {"threads": 1})


def test_what_is_missing_is_measured_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runners = [Runner("eaglerl", "native", "auto"), Runner("vLLM", "float32")]
    asked: list[tuple[str, int]] = []

    def measure(runner: Runner, server: object, questions: dict, number: int, **_: object):
        asked.append((runner.name, number))
        return list(load(runner.name, number, 0, 1.0, *questions).answers), 1.0

    monkeypatch.setattr(compare_servers, "measure", measure)
    servers = dict.fromkeys((runner.server for runner in runners), None)
    prompts = {1: {"q0": [1]}, 4: {"q0": [1], "q1": [2]}}
    with LoadRecords(tmp_path, {}) as records:
        records.add(load("vLLM float32", 1, 0, 1.0, "a"))
        tasks = compare_servers.missing_tasks(runners, [*prompts], 1, records)
        compare_servers.measure_all(servers, tasks, prompts, records, count=8, warm_up=[])
        assert not compare_servers.missing_tasks(runners, [*prompts], 1, records)
        assert asked == [
            ("eaglerl native auto", 1), ("vLLM float32", 4), ("eaglerl native auto", 4),
        ]  # fmt: skip
        assert len(records.loads) == 4
        assert len(records.loads["vLLM float32", 4, 0].answers) == 2


def test_questions_are_of_all_files() -> None:
    prompts = {f"{file}/{n}": [n] for file in "abc" for n in range(5)}
    found = compare_servers.questions_at(prompts, 2, fewest=5, rounds=2)
    assert list(found) == ["a/0", "b/0", "c/0", "a/1", "b/1"]
    assert len(compare_servers.questions_at(prompts, 4, fewest=5, rounds=3)) == 12
    with pytest.raises(ValueError, match="16 requests at once need 32 questions, got 15"):
        compare_servers.questions_at(prompts, 16, fewest=5, rounds=2)


def test_figures() -> None:
    mine, other = "eaglerl native plain", "vLLM float32"
    loads = {
        one.key: one
        for one in (
            load(mine, 1, 0, 2.0, "a", "b"),
            load(mine, 1, 1, 1.0, "a", "b"),
            load(other, 1, 0, 4.0, "a", "c"),
            load(other, 1, 1, 4.0, "a", "c"),
            load(other, 4, 0, 11.0, "a"),
        )
    }
    lines = server_tables.markdown(loads, [mine, other, "llama.cpp Q4_1"], mine).splitlines()
    assert "| eaglerl native plain | 16.5 |  |" in lines
    assert "| vLLM float32 | 5.5 | 1.0 |" in lines
    assert "| vLLM float32 | 3.00 (2.00 to 4.00) |  |" in lines
    assert "1 request at once, 2 questions; milliseconds:" in lines
    times = "500 | 500 | 100 | 100 | 500 | 800"
    assert f"| vLLM float32 | 5.5 | {times} | 1 of 2 |" in lines
    assert f"| eaglerl native plain | 16.5 | {times} | 2 of 2 |" in lines
    # Of two gaps, between which the quantile lies.
    assert f"| vLLM float32 | 1.0 | {times.replace('800', '794')} |  |" in lines
    assert not any("llama" in line for line in lines)


def test_requests_and_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for runner in server_processes.RUNNERS:
        body = request_body(runner, [1, 2], 7)
        assert (body["prompt"], body["max_tokens"], body["temperature"]) == ([1, 2], 7, 0)
        assert body.get("cache_prompt") is (False if runner.engine == "llama.cpp" else None)
    (auto,) = choose_runners(["eaglerl int8 auto"])
    assert request_body(auto, [1], 7)["model"] == "smollm2-135m-instruct:auto"
    with pytest.raises(ValueError, match="fits none of"):
        choose_runners(["TGI"])
    monkeypatch.setattr(server_processes, "environment", lambda folder, *_: folder / "bin")
    monkeypatch.setattr(server_processes, "prepare_model", lambda **_: tmp_path / "float32")
    monkeypatch.setattr(server_processes, "build", lambda folder: folder / "llama.cpp")
    monkeypatch.setattr(server_processes, "retyped", lambda file, *_: file)
    arguments = (tmp_path, tmp_path / "model", server_processes.RUNNERS, 2, 16)
    servers = server_processes.make_servers(*arguments)
    assert [server.name for server in servers.values()] == [
        "eaglerl native", "eaglerl int8", "eaglerl bfloat16", "vLLM float32", "vLLM bfloat16",
        "llama.cpp Q4_1", "llama.cpp Q8_0",
    ]  # fmt: skip
    texts = {name: " ".join(map(str, server.command)) for name, server in servers.items()}
    assert f"{server_processes.MOST_AT_ONCE} 16" in texts["eaglerl", "int8"]
    assert "--precision bfloat16" in texts["eaglerl", "bfloat16"]
    assert "--weights bf16" in texts["eaglerl", "bfloat16"]
    assert "--no-enable-prefix-caching" in texts["vLLM", "float32"]
    assert "-np 16 -c 32768 --cache-ram 0" in texts["llama.cpp", "Q4_1"]
