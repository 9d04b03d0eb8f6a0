"""Penalties and biases: the text of a naive loop over transformers' own logits."""

from collections.abc import Callable

import pytest
import torch

from .tiny import NAME, tiny_parts

PROMPT = "hello hello"
TOKENS = 30


def naive(change: Callable[[torch.Tensor, list[int], list[int]], None]) -> str:
    """Greedy decoding; `change` alters (V,) logits, given the prompt and the answer so far."""
    model, tokenizer, _ = tiny_parts()
    prompt, answer = tokenizer(PROMPT).input_ids, []
    with torch.no_grad():
        for _ in range(TOKENS):
            logits = model(torch.tensor([prompt + answer])).logits[0, -1]
            change(logits, prompt, answer)
            answer.append(int(logits.argmax()))
    return tokenizer.decode(answer)


def penalise(presence: float, frequency: float):
    def change(logits: torch.Tensor, prompt: list[int], answer: list[int]) -> None:
        for token in {*answer}:
            logits[token] -= presence + frequency * answer.count(token)

    return change


def repeat(factor: float):
    def change(logits: torch.Tensor, prompt: list[int], answer: list[int]) -> None:
        for token in {*prompt, *answer}:
            logits[token] *= factor if logits[token] < 0 else 1 / factor

    return change


def bias(biases: dict[str, float]):
    def change(logits: torch.Tensor, prompt: list[int], answer: list[int]) -> None:
        for token, value in biases.items():
            logits[int(token)] += value

    return change


@pytest.mark.parametrize("mode", ["plain", "tree-lookup"])
@pytest.mark.parametrize(
    ("fields", "change"),
    [
        ({"presence_penalty": 1.5}, penalise(1.5, 0)),
        ({"frequency_penalty": 0.7}, penalise(0, 0.7)),
        ({"presence_penalty": -0.5, "frequency_penalty": 2}, penalise(-0.5, 2)),
        ({"repetition_penalty": 1.3}, repeat(1.3)),
        ({"logit_bias": {"65": 100, "66": -100}}, bias({"65": 100, "66": -100})),
        ({"logit_bias": {"65": 3.5, "97": -2}}, bias({"65": 3.5, "97": -2})),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_the_text_is_that_of_a_naive_loop(client, mode: str, fields, change) -> None:
    body = {"model": NAME, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "mode": mode}
    response = client.post("/v1/completions", json=body | fields)
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["text"] == naive(change)


def test_min_p_of_one_leaves_the_likeliest_alone(client) -> None:
    body = {"model": NAME, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 2}
    response = client.post("/v1/completions", json=body | {"min_p": 1})
    assert response.json()["choices"][0]["text"] == naive(lambda *_: None)
