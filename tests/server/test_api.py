"""The OpenAI-compatible API: answers, fields, and errors in OpenAI's shape."""

import json
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eaglerl.eagle3 import NO_DRAFT, TreeParams
from eaglerl.server import Modes, Service, create_app, standard_modes

from .tiny import NAME, tiny_decoder, tiny_service

CHAT = {"model": NAME, "messages": [{"role": "user", "content": "hello"}]}
TEXT = {"model": NAME, "prompt": "hello hello"}
MODES = ["plain", "best-constant", "lookup", "tree-lookup", "tree:8/2/4"]


def post(client: TestClient, path: str, body: Any, **headers: str) -> httpx.Response:
    return client.post(f"/v1/{path}", json=body, headers=headers)


def chunks(response: httpx.Response) -> list[dict]:
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def error_of(response: httpx.Response) -> dict:
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    return error


class TestAnswers:
    @pytest.mark.parametrize("mode", MODES)
    def test_every_mode_writes_the_targets_own_text(self, client, mode: str) -> None:
        decoder = tiny_decoder()
        ids = decoder.tokenizer(TEXT["prompt"]).input_ids
        expected = decoder.generate([ids], NO_DRAFT, max_new_tokens=40).sequences[0, len(ids) :]
        body = TEXT | {"model": f"{NAME}:{mode}", "max_tokens": 40, "temperature": 0}
        answer = post(client, "completions", body).json()
        assert answer["choices"][0]["text"] == decoder.tokenizer.decode(expected)
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"] == {
            "prompt_tokens": 11,
            "completion_tokens": 40,
            "total_tokens": 51,
            "prompt_tokens_details": {"cached_tokens": 0},
        }
        speculative = answer["speculative"]
        assert speculative["mode"] == mode
        assert speculative["accepted_tokens"] + speculative["cycles"] >= 39
        assert speculative["drafted_tokens"] + speculative["cycles"] == speculative["verified_rows"]

    def test_the_mode_may_be_a_field_of_its_own(self, client) -> None:
        answer = post(client, "completions", TEXT | {"mode": "plain", "max_tokens": 3}).json()
        assert answer["speculative"]["mode"] == "plain"
        assert answer["speculative"]["drafted_tokens"] == 0

    def test_a_conversation_goes_through_the_template(self, client) -> None:
        decoder = tiny_decoder()
        ids = decoder.tokenizer("s:be brief\nu:hello\na:").input_ids
        expected = decoder.generate([ids], TreeParams(4, 1, 3), max_new_tokens=20).sequences
        messages = [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "hello"}]},
        ]
        body = CHAT | {"messages": messages, "max_completion_tokens": 20, "temperature": 0}
        answer = post(client, "chat/completions", body).json()
        message = answer["choices"][0]["message"]
        assert message["role"] == "assistant"
        assert message["content"] == decoder.tokenizer.decode(expected[0, len(ids) :])

    @pytest.mark.parametrize("path", ["completions", "chat/completions"])
    def test_a_stream_adds_up_to_the_whole_answer(self, client, path: str) -> None:
        body = (TEXT if path == "completions" else CHAT) | {"max_tokens": 30, "seed": 5}
        whole = post(client, path, body).json()
        options = {"stream": True, "stream_options": {"include_usage": True}}
        response = post(client, path, body | options)
        assert response.headers["content-type"].startswith("text/event-stream")
        *parts, last = chunks(response)
        assert len(parts) > 3
        choices = [part["choices"][0] for part in parts]
        if path == "completions":
            text = "".join(choice["text"] for choice in choices)
            assert text == whole["choices"][0]["text"]
        else:
            assert choices[0]["delta"] == {"role": "assistant", "content": ""}
            text = "".join(choice["delta"].get("content", "") for choice in choices)
            assert text == whole["choices"][0]["message"]["content"]
        assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * (len(choices) - 1)
        assert choices[-1]["finish_reason"] == whole["choices"][0]["finish_reason"]
        assert parts[-1]["speculative"]["cycles"] == whole["speculative"]["cycles"]
        assert all(part["usage"] is None for part in parts)
        assert last["choices"] == []
        assert last["usage"] == whole["usage"]
        assert len({part["id"] for part in [*parts, last]}) == 1

    def test_without_asking_there_is_no_usage_in_a_stream(self, client) -> None:
        parts = chunks(post(client, "completions", TEXT | {"stream": True, "max_tokens": 4}))
        assert all("usage" not in part for part in parts)

    def test_a_stop_text_is_not_part_of_the_answer(self, client) -> None:
        body = TEXT | {"max_tokens": 60, "temperature": 0}
        whole = post(client, "completions", body).json()["choices"][0]["text"]
        stop = whole[20:23]
        answer = post(client, "completions", body | {"stop": [stop, "never"]}).json()
        choice = answer["choices"][0]
        assert choice["text"] == whole[: whole.find(stop)]
        assert choice["finish_reason"] == "stop"
        streamed = chunks(post(client, "completions", body | {"stop": stop, "stream": True}))
        assert "".join(part["choices"][0]["text"] for part in streamed) == choice["text"]

    def test_the_end_token_ends_the_answer(self) -> None:
        decoder = tiny_decoder()
        ids = decoder.tokenizer(TEXT["prompt"]).input_ids
        text = decoder.generate([ids], max_new_tokens=9).sequences[0, len(ids) :].tolist()
        decoder.target.generation_config.eos_token_id = text[8]
        service = Service(decoder, Modes(standard_modes(), "plain"), model_name=NAME)
        with TestClient(create_app(service)) as client:
            answer = post(client, "completions", TEXT | {"temperature": 0}).json()
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert answer["usage"]["completion_tokens"] == text.index(text[8]) + 1

    def test_a_seed_repeats_the_draws(self, client) -> None:
        body = TEXT | {"max_tokens": 30, "temperature": 1.5, "top_p": 0.9}
        answers = [
            post(client, "completions", body | {"seed": seed}).json()["choices"][0]["text"]
            for seed in (1, 1, 2)
        ]
        assert answers[0] == answers[1] != answers[2]

    def test_models_are_listed_with_their_modes(self, client) -> None:
        names = [model["id"] for model in client.get("/v1/models").json()["data"]]
        assert names[0] == NAME
        assert {f"{NAME}:plain", f"{NAME}:tree-lookup"} <= {*names}
        for name in (NAME, f"{NAME}:plain", f"{NAME}:tree:8/2/4"):
            assert client.get(f"/v1/models/{name}").json()["id"] == name
        assert client.get(f"/v1/models/{NAME}:lookup").json()["object"] == "model"
        assert error_of(client.get("/v1/models/other"))["code"] == "model_not_found"


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "status", "parameter"),
        [
            ({"model": "gpt-5"}, 404, "model"),
            ({"model": f"{NAME}:fastest"}, 400, "model"),
            ({"mode": "fastest"}, 400, "mode"),
            ({"mode": "tree-999-3-4"}, 400, "mode"),
            ({"mode": "tree-16-1-2"}, 400, "mode"),
            ({"model": f"{NAME}:plain", "mode": "lookup"}, 400, "mode"),
            ({"n": 0}, 400, "n"),
            ({"n": 129}, 400, "n"),
            ({"max_tokens": 0}, 400, "max_tokens"),
            ({"max_tokens": "7"}, 400, "max_tokens"),
            ({"temperature": -1}, 400, "temperature"),
            ({"temperature": 2.5}, 400, "temperature"),
            ({"temperature": True}, 400, "temperature"),
            ({"top_p": 0}, 400, "top_p"),
            ({"seed": 2**64}, 400, "seed"),
            ({"stop": ""}, 400, "stop"),
            ({"stop": ["a"] * 5}, 400, "stop"),
            ({"stream_options": {"include_usage": True}}, 400, None),
            ({"presence_penalty": 2.5}, 400, "presence_penalty"),
            ({"tools": [{"type": "function"}]}, 400, "tools"),
            ({"logprobs": 5}, 400, "logprobs"),
            ({"top_logprobs": 2}, 400, "top_logprobs"),
            ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs"),
            ({"no_such_field": 1}, 400, "no_such_field"),
            ({"messages": []}, 400, "messages"),
            ({"messages": [{"role": "user"}]}, 400, "messages.0.content"),
            ({"messages": [{"role": "assistant", "content": "I"}]}, 400, "messages"),
            ({"messages": [{"role": "user", "content": "x" * 1100}]}, 413, "messages"),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_a_field_that_cannot_be_served(self, client, change, status, parameter) -> None:
        response = post(client, "chat/completions", CHAT | change)
        assert response.status_code == status
        error = error_of(response)
        place = error["param"] or ""
        assert place == (parameter or "") or place.startswith(f"{parameter}.")

    @pytest.mark.parametrize(
        "prompt", [[], "", [0, 9999], [-1], ["a", "b"], [[1], [2]], [1.5], None, {}]
    )
    def test_a_prompt_that_cannot_be_read(self, client, prompt) -> None:
        response = post(client, "completions", TEXT | {"prompt": prompt})
        assert response.status_code == 400
        assert error_of(response)["param"].startswith("prompt")

    def test_known_fields_at_their_defaults_are_taken(self, client) -> None:
        fields = {"n": 1, "presence_penalty": 0.0, "user": "me", "logprobs": False, "tools": None}
        response = post(client, "chat/completions", CHAT | fields | {"max_tokens": 2})
        assert response.status_code == 200

    def test_unknown_paths_and_methods(self, client) -> None:
        for response in (client.get("/nowhere"), client.get("/static/../app.py")):
            assert response.status_code == 404
            assert error_of(response)["type"] == "not_found_error"
        assert client.get("/v1/completions").status_code == 405
        assert error_of(client.get("/v1/completions"))["type"] == "invalid_request_error"

    @given(st.binary(max_size=200))
    @settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_bodies_of_noise(self, client, body: bytes) -> None:
        headers = {"Content-Type": "application/json"}
        response = client.post("/v1/completions", content=body, headers=headers)
        assert response.status_code == 400
        error_of(response)

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=4)
                | st.dictionaries(
                    st.sampled_from(["model", "messages", "role", "content", "stop", "x"]), inner
                )
            ),
            max_leaves=12,
        )
    )
    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_bodies_of_any_json(self, client, body: Any) -> None:
        headers = {"Content-Type": "application/json"}
        response = client.post("/v1/chat/completions", content=json.dumps(body), headers=headers)
        assert response.status_code in (400, 404, 413)
        error_of(response)

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"[" * 100_000,
            b'{"model": "tiny", "prompt": "\\ud800", "max_tokens": 1}',
            b'{"model": "tiny", "prompt": "a", "\\ud800": 1}',
            b'{"model": "tiny", "prompt": "a", "temperature": NaN}',
            b'{"model": "tiny", "prompt": "a", "seed": 1' + b"0" * 5000 + b"}",
            b'{"model": "tiny", "prompt": "\xff"}',
        ],
        ids=["empty", "deep", "half a pair", "half a pair as a key", "nan", "huge", "not utf-8"],
    )
    def test_malformed_bodies(self, client, body: bytes) -> None:
        headers = {"Content-Type": "application/json"}
        response = client.post("/v1/completions", content=body, headers=headers)
        assert response.status_code == 400
        error_of(response)

    def test_another_content_type_is_not_taken_for_json(self, client) -> None:
        headers = {"Content-Type": "text/plain"}
        response = client.post("/v1/completions", content=json.dumps(TEXT), headers=headers)
        assert response.status_code == 400

    @pytest.mark.parametrize("told", [True, False], ids=["told", "in parts"])
    def test_a_body_that_is_too_large(self, told: bool) -> None:
        with TestClient(create_app(tiny_service(max_body_bytes=2000))) as client:
            parts = [b'{"prompt": "', *[b"x" * 500] * 5, b'"}']
            content = b"".join(parts) if told else iter(parts)
            response = client.post("/v1/completions", content=content)
            assert response.status_code == 413
            assert error_of(response)["code"] == "body_too_large"
            assert post(client, "completions", TEXT | {"max_tokens": 1}).status_code == 200


@pytest.fixture(scope="module")
def guarded():
    """A client of a server with a key, which answers under local names."""
    app = create_app(tiny_service(), api_key="sécret", hosts=["localhost", "::1"])
    with TestClient(app, base_url="http://localhost") as client:
        yield client


class TestKeyAndHost:
    @pytest.mark.parametrize(
        "header", [None, "", "Bearer", "Bearer wrong", "Bearer sécret2", "Basic sécret", "sécret"]
    )
    @pytest.mark.parametrize("path", ["/v1/models", "/live/info"])
    def test_a_wrong_key(self, guarded, path: str, header: str | None) -> None:
        headers = {} if header is None else {"Authorization": header.encode()}
        response = guarded.get(path, headers=headers)
        assert response.status_code == 401
        assert error_of(response)["code"] == "invalid_api_key"

    def test_the_right_key(self, guarded) -> None:
        headers = {"Authorization": "Bearer sécret".encode()}
        assert guarded.get("/v1/models", headers=headers).status_code == 200

    def test_the_page_itself_needs_none(self, guarded) -> None:
        assert guarded.get("/").status_code == 200
        assert guarded.get("/static/app.js").status_code == 200

    @pytest.mark.parametrize(
        ("host", "status"),
        [
            ("localhost:8000", 200),
            ("LOCALHOST", 200),
            ("[::1]:8000", 200),
            ("evil.example", 403),
            ("localhost.evil.example", 403),
            ("", 403),
        ],
    )
    def test_a_local_server_answers_under_local_names(self, guarded, host, status) -> None:
        assert guarded.get("/", headers={"Host": host}).status_code == status

    def test_an_empty_key_is_no_key(self) -> None:
        with pytest.raises(ValueError, match="api_key must not be empty"):
            create_app(tiny_service(), api_key=" ")
