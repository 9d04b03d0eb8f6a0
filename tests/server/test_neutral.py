"""What asks for nothing is as good as absent, what asks for more is refused by name."""

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from .tiny import NAME

CHAT = {
    "model": NAME,
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 6,
    "temperature": 0,
}
TEXT = {"model": NAME, "prompt": "hello hello", "max_tokens": 6, "temperature": 0}

#: What clients send without asking for anything: OpenAI's reference, vLLM, llama.cpp, LangChain,
#: LiteLLM, Open WebUI, aider.
NEUTRAL: list[dict[str, Any]] = [
    {"tools": []},
    {"tools": None, "tool_choice": None},
    {"tool_choice": "none"},
    {"tool_choice": "auto"},
    {"functions": [], "function_call": "none"},
    {"parallel_tool_calls": True},
    {"parallel_tool_calls": False},
    {"response_format": None},
    {"response_format": []},
    {"response_format": {}},
    {"response_format": {"type": "text"}},
    {"response_format": {"type": "text", "json_schema": None}},
    {"logit_bias": {}},
    {"logit_bias": {"5": 0}},
    {"presence_penalty": 0, "frequency_penalty": 0.0},
    {"repetition_penalty": 1.0},
    {"repetition_penalty": 1},
    {"min_p": 0},
    {"min_p": 0.0, "top_k": -1},
    {"top_k": 0},
    {"best_of": 1},
    {"use_beam_search": False, "length_penalty": 1.0, "early_stopping": False},
    {"stop_token_ids": [], "ignore_eos": False, "min_tokens": 0, "bad_words": []},
    {"skip_special_tokens": True, "spaces_between_special_tokens": True},
    {"include_stop_str_in_output": False, "truncate_prompt_tokens": None},
    {"guided_json": None, "guided_regex": "", "structured_outputs": None, "grammar": ""},
    {"chat_template_kwargs": {}, "documents": None, "mm_processor_kwargs": None},
    {"reasoning_effort": None},
    {"reasoning_effort": "none"},
    {"reasoning": {"effort": None}},
    {"thinking": {"type": "disabled"}},
    {"verbosity": None},
    {"verbosity": "medium"},
    {"prompt_cache_key": "a", "safety_identifier": "b", "user": "c"},
    {"prompt_cache_options": {"mode": "implicit"}, "prompt_cache_retention": "24h"},
    {"metadata": {"a": "b"}, "store": False},
    {"store": None, "metadata": None, "user": None, "service_tier": None},
    {"service_tier": "auto"},
    {"prediction": {"type": "content", "content": "hello"}},
    {"modalities": ["text"], "audio": None},
    {"modalities": None, "web_search_options": None, "moderation": None},
    {"stop": None, "seed": None, "n": None, "stream": None, "stream_options": None},
    {"stop": [], "stream_options": {}, "stream": False},
    {"stream_options": {"include_usage": False}},
    {"stream_options": {"include_usage": None, "continuous_usage_stats": False}},
    {"top_p": None, "logprobs": None, "max_completion_tokens": None, "mode": None},
    {"n": 1, "top_p": 1},
    {"cache_control": {"type": "ephemeral"}},
    {"cache_prompt": True, "id_slot": -1, "n_keep": 0, "mirostat": 0, "mirostat_tau": 5.0},
    {"repeat_penalty": 1.0, "repeat_last_n": 64, "typical_p": 1.0, "tfs_z": 1.0},
    {"dry_multiplier": 0.0, "dry_base": 1.75, "xtc_probability": 0.0, "dynatemp_range": 0.0},
    {"priority": 0, "request_id": "x", "cache_salt": "s", "keep_alive": "5m"},
    {"return_token_ids": False, "kv_transfer_params": None, "vllm_xargs": {}},
    {"some_new_field": None},
    {"some_new_field": False},
    {"some_new_field": {"inner": [], "text": ""}},
]

#: What would change the answer.
ASKED_FOR: list[dict[str, Any]] = [
    {"tools": [{"type": "function", "function": {"name": "f"}}]},
    {"tool_choice": "required"},
    {"tool_choice": {"type": "function", "function": {"name": "f"}}},
    {"functions": [{"name": "f"}]},
    {"function_call": {"name": "f"}},
    {"response_format": {"type": "json_object"}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}},
    {"logit_bias": {"5": -101}},
    {"logit_bias": {"a": 1}},
    {"logit_bias": {"257": 1}},
    {"logit_bias": {"-1": 1}},
    {"presence_penalty": 2.5},
    {"frequency_penalty": -2.5},
    {"repetition_penalty": 0},
    {"min_p": 1.5},
    {"best_of": 2},
    {"best_of": True},
    {"use_beam_search": True},
    {"stop_token_ids": [5]},
    {"ignore_eos": True},
    {"min_tokens": 3},
    {"bad_words": ["a"]},
    {"skip_special_tokens": False},
    {"add_generation_prompt": False},
    {"guided_json": {"type": "object"}},
    {"grammar": "root ::= x"},
    {"reasoning_effort": "high"},
    {"thinking": {"type": "enabled", "budget_tokens": 5}},
    {"verbosity": "low"},
    {"store": True},
    {"modalities": ["text", "audio"]},
    {"audio": {"voice": "a"}},
    {"web_search_options": {"search_context_size": "low"}},
    {"mirostat": 2},
    {"typical_p": 0.5},
    {"n_predict": 10},
    {"some_new_field": 1},
    {"some_new_field": "a"},
]


def ask(client: TestClient, body: dict[str, Any]):
    path = "completions" if "prompt" in body else "chat/completions"
    return client.post(f"/v1/{path}", json=body)


def content(response) -> str:
    assert response.status_code == 200, response.text
    choice = response.json()["choices"][0]
    return choice["text"] if "text" in choice else choice["message"]["content"]


@pytest.mark.parametrize("base", [CHAT, TEXT], ids=["chat", "text"])
def test_what_asks_for_nothing_changes_nothing(client, base) -> None:
    expected = content(ask(client, base))
    for fields in NEUTRAL:
        assert content(ask(client, base | fields)) == expected, fields


@pytest.mark.parametrize("base", [CHAT, TEXT], ids=["chat", "text"])
def test_what_would_change_the_answer_is_refused_by_name(client, base) -> None:
    for fields in ASKED_FOR:
        response = ask(client, base | fields)
        assert response.status_code == 400, fields
        error = response.json()["error"]
        assert error["param"].split(".")[0] in fields, error
        assert error["type"] == "invalid_request_error"
    error = ask(client, CHAT | {"add_special_tokens": True}).json()["error"]
    assert error["param"] == "add_special_tokens"
    for fields in (
        {"echo": True},
        {"suffix": "end"},
        {"logprobs": 6},
        {"logprobs": True},
        {"add_special_tokens": False},
    ):
        error = ask(client, TEXT | fields).json()["error"]
        assert [error["param"]] == [*fields]
    for fields in ({"echo": False}, {"suffix": ""}, {"suffix": None}, {"logprobs": False}):
        assert content(ask(client, TEXT | fields)) == content(ask(client, TEXT))


#: A turn of the assistant, as a client may send back what it was given.
TURNS: list[dict[str, Any]] = [
    {"content": "hi", "refusal": None},
    {"content": "hi", "refusal": None, "annotations": [], "audio": None, "function_call": None},
    {"content": "hi", "tool_calls": []},
    {"content": "hi", "tool_calls": None, "reasoning_content": None, "reasoning": ""},
    {"content": "hi", "provider_specific_fields": {"refusal": None}},
    {"content": "hi", "name": "tiny", "id": "msg_1"},
    {"content": "hi", "cache_control": {"type": "ephemeral"}},
    {"content": [{"type": "text", "text": "hi"}]},
    {"content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]},
    {"content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]},
    {"content": [{"type": "text", "text": "hi", "annotations": [{"a": 1}], "logprobs": None}]},
    {"content": [{"type": "refusal", "refusal": "hi"}]},
    {"content": None, "refusal": "hi"},
    {"content": "", "refusal": "hi"},
]


def conversation(turn: dict[str, Any]) -> list[dict[str, Any]]:
    question = {"role": "user", "content": "hello"}
    return [question, {"role": "assistant"} | turn, question]


def test_turns_come_back_in_whatever_form(client) -> None:
    expected = content(ask(client, CHAT | {"messages": conversation(TURNS[0])}))
    for turn in TURNS:
        assert content(ask(client, CHAT | {"messages": conversation(turn)})) == expected, turn
    silent = content(ask(client, CHAT | {"messages": conversation({"content": ""})}))
    for turn in ({"content": None}, {}, {"content": []}, {"content": None, "tool_calls": []}):
        assert content(ask(client, CHAT | {"messages": conversation(turn)})) == silent, turn


@pytest.mark.parametrize(
    ("turn", "parameter"),
    [
        ({"content": "a", "tool_calls": [{"id": "a"}]}, "messages.1.tool_calls"),
        ({"content": "a", "function_call": {"name": "f"}}, "messages.1.function_call"),
        ({"content": "a", "audio": {"id": "a"}}, "messages.1.audio"),
        ({"role": "tool", "content": "a", "tool_call_id": "a"}, "messages.1.role"),
        ({"role": "user", "content": None}, "messages.1.content"),
        ({"role": "user", "content": 5}, "messages.1.content"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]},
            "messages.1.content.0.type",
        ),
        ({"role": "user", "content": [{"type": "text"}]}, "messages.1.content.0.text"),
        ({"role": "user", "content": ["a"]}, "messages.1.content.0"),
        ({"content": "\ud800"}, "messages.1.content.0.text"),
    ],
)
def test_turns_that_are_not_text_are_refused_by_name(client, turn, parameter: str) -> None:
    response = client.post(
        "/v1/chat/completions",
        # Half a surrogate pair can be written as JSON's escape alone.
        content=json.dumps(CHAT | {"messages": conversation(turn)}),
        headers={"Content-Type": "application/json"},
    )
    assert response.status_code == 400
    assert response.json()["error"]["param"] == parameter


@pytest.mark.parametrize("fields", [{}, {"logprobs": True, "top_logprobs": 2}, {"n": 2}])
def test_every_answer_can_be_sent_back(client, fields) -> None:
    whole = ask(client, CHAT | fields).json()
    streamed = client.post("/v1/chat/completions", json=CHAT | fields | {"stream": True}).text
    deltas = [
        json.loads(line.removeprefix("data: "))["choices"][0]["delta"]
        for line in streamed.split("\n\n")
        if line.startswith("data: {")
    ]
    joined = {"role": "assistant", "content": ""}
    for delta in deltas:
        joined["content"] += delta.get("content") or ""
    turns = [choice["message"] for choice in whole["choices"]]
    turns += [joined, *({"role": "assistant"} | delta for delta in deltas)]
    for turn in turns:
        response = ask(client, CHAT | {"messages": conversation(turn)})
        assert response.status_code == 200, response.text


def test_null_in_a_live_request_is_its_default(client) -> None:
    fields = {"temperature": None, "seed": None, "paused": None, "chat": None, "top_p": None}
    request = {"prompt": "a", "modes": ["plain"], "max_tokens": 2}
    told = [client.post("/live/sessions", json=request | more) for more in ({}, fields)]
    assert [response.status_code for response in told] == [200, 200]
    assert told[0].text.count("event: ") == told[1].text.count("event: ")
