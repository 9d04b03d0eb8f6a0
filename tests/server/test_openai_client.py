"""OpenAI's own client talks to a real server."""

import openai
import pytest

from .tiny import NAME, PATIENCE, greedy_text

MESSAGES = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}
TEMPLATED = "u:hello\na:"


@pytest.fixture(scope="module")
def api(served):
    address, _ = served
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", timeout=PATIENCE) as client:
        yield client


def test_chat(api) -> None:
    answer = api.chat.completions.create(
        model=f"{NAME}:tree-lookup", messages=MESSAGES, max_completion_tokens=30, temperature=0
    )
    assert answer.choices[0].message.content == greedy_text(TEMPLATED, 30)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 30
    assert answer.model_extra["speculative"]["mode"] == "tree-lookup"


def test_streamed_chat(api) -> None:
    stream = api.chat.completions.create(
        model=NAME,
        messages=MESSAGES,
        max_tokens=30,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"mode": "lookup"},
    )
    *chunks, last = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == greedy_text(TEMPLATED, 30)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert chunks[-1].model_extra["speculative"]["mode"] == "lookup"
    assert last.usage.total_tokens == len(TEMPLATED) + 30


def test_completions(api) -> None:
    options = {"model": NAME, "prompt": "once", "max_tokens": 20, "temperature": 0}
    expected = greedy_text("once", 20)
    assert api.completions.create(**options).choices[0].text == expected
    stream = api.completions.create(**options, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == expected


def test_several_answers_with_logprobs(api) -> None:
    options = {"model": NAME, "messages": MESSAGES, "max_tokens": 10, "seed": 3, "n": 2}
    answer = api.chat.completions.create(**options, logprobs=True, top_logprobs=2)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].message.content != answer.choices[1].message.content
    assert answer.system_fingerprint
    for choice in answer.choices:
        assert len(choice.logprobs.content) == 10
        for token in choice.logprobs.content:
            assert token.logprob <= token.top_logprobs[0].logprob <= 0
            assert len(token.top_logprobs) == 2
    texts = ["", ""]
    for chunk in api.chat.completions.create(**options, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in answer.choices]


def test_an_answer_can_be_sent_back_as_it_came(api) -> None:
    first = api.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=5)
    messages = [*MESSAGES, first.choices[0].message, *MESSAGES]
    again = api.chat.completions.create(model=NAME, messages=messages, max_tokens=5)
    assert again.usage.prompt_tokens > first.usage.prompt_tokens


def test_models(api) -> None:
    assert f"{NAME}:plain" in [model.id for model in api.models.list()]


def test_errors_are_those_of_the_client(api) -> None:
    with pytest.raises(openai.NotFoundError, match="model must be tiny"):
        api.chat.completions.create(model="gpt-5", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError) as refused:
        api.chat.completions.create(model=NAME, messages=MESSAGES, tools=[TOOL])
    assert refused.value.param == "tools"
