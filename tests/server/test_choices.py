"""Several answers, log-probabilities, seeds: as OpenAI's reference has them."""

import json
from typing import Any

import pytest
import torch

from eaglerl.eagle3 import SpeculativeDecoder
from eaglerl.eagle3.target.make_target import make_target
from eaglerl.server.completion import derived_seed
from eaglerl.server.service import _fingerprint
from eaglerl.server.text import TokenTexts

from ..eagle3.tiny import tiny_model
from .tiny import NAME, tiny_decoder, tiny_parts

CHAT = {"model": NAME, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 20}
TEXT = {"model": NAME, "prompt": "hello hello", "max_tokens": 20}


def ask(client, body: dict[str, Any]) -> dict[str, Any]:
    path = "completions" if "prompt" in body else "chat/completions"
    response = client.post(f"/v1/{path}", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def streamed(client, body: dict[str, Any]) -> list[dict[str, Any]]:
    path = "completions" if "prompt" in body else "chat/completions"
    lines = client.post(f"/v1/{path}", json=body | {"stream": True}).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


class TestSeveralAnswers:
    def test_they_are_drawn_by_seeds_of_their_own(self, client) -> None:
        body = TEXT | {"seed": 5, "temperature": 1.2}
        whole = ask(client, body | {"n": 3})
        assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
        texts = [choice["text"] for choice in whole["choices"]]
        assert len({*texts}) == 3
        # Each is what a request of its own with that seed gets, the first with the request's.
        for index, text in enumerate(texts):
            alone = ask(client, body | {"seed": derived_seed(5, index)})
            assert alone["choices"][0]["text"] == text
        assert derived_seed(5, 0) == 5
        assert derived_seed(None, 2) is None
        assert len({derived_seed(seed, index) for seed in range(50) for index in range(50)}) == 2500
        assert ask(client, body | {"n": 3})["choices"] == whole["choices"]

    def test_all_of_their_tokens_count(self, client) -> None:
        usage = ask(client, CHAT | {"n": 4, "temperature": 0})["usage"]
        prompt = usage["prompt_tokens"]
        # Others have asked the same before.
        assert usage.pop("prompt_tokens_details")["cached_tokens"] == (prompt - 1) // 32 * 32
        assert usage == {
            "prompt_tokens": prompt,
            "completion_tokens": 80,
            "total_tokens": prompt + 80,
        }

    @pytest.mark.parametrize("base", [CHAT, TEXT], ids=["chat", "text"])
    def test_a_stream_tells_which_one_a_chunk_belongs_to(self, client, base) -> None:
        body = base | {"n": 3, "seed": 1, "best_of": None if base is CHAT else 3}
        whole = ask(client, body)
        texts, reasons = ["", "", ""], [None] * 3
        for chunk in streamed(client, body):
            (choice,) = chunk["choices"]
            assert reasons[choice["index"]] is None
            reasons[choice["index"]] = choice["finish_reason"]
            piece = choice["text"] if base is TEXT else choice["delta"].get("content", "")
            texts[choice["index"]] += piece
        assert reasons == ["length"] * 3
        expected = [
            c["text"] if base is TEXT else c["message"]["content"] for c in whole["choices"]
        ]
        assert texts == expected


class TestLogprobs:
    @pytest.mark.parametrize("mode", ["plain", "tree-lookup"])
    def test_of_chat_are_those_of_the_target(self, client, mode: str) -> None:
        body = CHAT | {"logprobs": True, "top_logprobs": 5, "temperature": 0.8, "seed": 3}
        choice = ask(client, body | {"mode": mode})["choices"][0]
        content = choice["logprobs"]["content"]
        text = choice["message"]["content"]
        held = bytes(byte for token in content for byte in token["bytes"])
        # Random tokens are no whole characters.
        assert held.decode(errors="replace") == text
        assert len(content) == 20
        model, tokenizer, _ = tiny_parts()
        ids = [tokenizer.encode("u:hello\na:") + [byte_id(tokenizer, t) for t in content]]
        with torch.no_grad():
            logprobs = model.double()(torch.tensor(ids)).logits[0].log_softmax(-1)
        rows = logprobs[-len(content) - 1 : -1]
        for token, token_id, row in zip(content, ids[0][-len(content) :], rows, strict=True):
            assert token["logprob"] == pytest.approx(float(row[token_id]), abs=1e-4)
            best = row.topk(5)
            assert [top["logprob"] for top in token["top_logprobs"]] == pytest.approx(
                best.values.tolist(), abs=1e-4
            )

    def test_streamed_ones_are_the_same(self, client) -> None:
        for base in (CHAT | {"logprobs": True, "top_logprobs": 2}, TEXT | {"logprobs": 2}):
            body = base | {"seed": 3, "n": 2, "stop": ["e"]}
            expected = [choice["logprobs"] for choice in ask(client, body)["choices"]]
            joined: list[dict[str, list]] = [{}, {}]
            for chunk in streamed(client, body):
                choice = chunk["choices"][0]
                for name, entries in (choice["logprobs"] or {}).items():
                    joined[choice["index"]].setdefault(name, []).extend(entries or [])
            for told, whole in zip(joined, expected, strict=True):
                assert {name: told.get(name, []) for name in whole} == {
                    name: entries or [] for name, entries in whole.items()
                }

    def test_of_text(self, client) -> None:
        body = TEXT | {"temperature": 0, "max_tokens": 30}
        for most in (0, 3):
            choice = ask(client, body | {"logprobs": most})["choices"][0]
            told = choice["logprobs"]
            assert told["text_offset"] == list(range(30))
            assert "".join(told["tokens"]) == choice["text"]
            for token, own, top in zip(
                told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True
            ):
                assert top[token] == own == max(top.values())
                assert len(top) == max(1, most)

    def test_what_is_cut_off_has_none(self, client) -> None:
        body = CHAT | {"temperature": 0, "logprobs": True, "max_tokens": 60}
        whole = ask(client, body)["choices"][0]["message"]["content"]
        stop = whole[20:23]
        choice = ask(client, body | {"stop": stop})["choices"][0]
        tokens = [token["token"] for token in choice["logprobs"]["content"]]
        assert "".join(tokens) == choice["message"]["content"] == whole[: whole.find(stop)]

    def test_without_asking_there_are_none(self, client) -> None:
        assert ask(client, CHAT)["choices"][0]["logprobs"] is None
        assert ask(client, CHAT | {"logprobs": False})["choices"][0]["logprobs"] is None
        assert all(c["choices"][0]["logprobs"] is None for c in streamed(client, TEXT))


def byte_id(tokenizer, token: dict[str, Any]) -> int:
    """The id of a token of one byte."""
    texts = TokenTexts(tokenizer)
    return next(i for i in range(len(tokenizer)) if texts.of(i)[1] == token["bytes"])


def test_tokens_of_half_a_character_are_bytes() -> None:
    tokenizer = tiny_decoder().tokenizer
    texts = TokenTexts(tokenizer)
    told = [texts.of(token) for token in tokenizer("é!").input_ids]
    assert told == [("\\xc3", [0xC3]), ("\\xa9", [0xA9]), ("!", [ord("!")])]
    single = type("Pieces", (), {})()
    single.decode = lambda ids, **_: "\ufffd"
    single.convert_ids_to_tokens = lambda token_id: "<0xE2>"
    assert TokenTexts(single).of(1) == ("\\xe2", [0xE2])


def test_the_coldest_temperature_is_greedy(client) -> None:
    expected = ask(client, TEXT | {"temperature": 0})["choices"][0]["text"]
    for temperature in (1e-38, 1e-300, 5e-324):
        body = TEXT | {"temperature": temperature, "top_p": 1e-300}
        assert ask(client, body)["choices"][0]["text"] == expected


def test_top_k_of_one_is_greedy(client) -> None:
    expected = ask(client, TEXT | {"temperature": 0})["choices"][0]["text"]
    assert ask(client, TEXT | {"temperature": 2, "top_k": 1})["choices"][0]["text"] == expected


def test_the_fingerprint_is_that_of_the_target(client) -> None:
    first, second = ask(client, TEXT), ask(client, CHAT)
    assert first["system_fingerprint"] == second["system_fingerprint"]
    assert first["system_fingerprint"].startswith("fp_")
    assert {c["system_fingerprint"] for c in streamed(client, TEXT)} == {
        first["system_fingerprint"]
    }
    assert "service_tier" not in first
    assert ask(client, CHAT | {"service_tier": "flex"})["service_tier"] == "default"


def test_the_fingerprint_changes_with_what_changes_answers() -> None:
    """Among these are the precision of the products and the dtype of the KV cache."""
    model, seen = tiny_model(), set()
    for dtype in ("float32", "bfloat16", "float16"):
        target = make_target(model, kv_cache_dtype=dtype)
        seen.add(_fingerprint(SpeculativeDecoder(target, None)))
        target.precision = "int8"
        seen.add(_fingerprint(SpeculativeDecoder(target, None)))
    assert len(seen) == 6
