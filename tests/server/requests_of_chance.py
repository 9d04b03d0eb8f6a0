"""Requests of all kinds, right and wrong, drawn from a seed."""

from __future__ import annotations

import json
import random
from typing import Any

from .tiny import NAME

#: What a field may hold that was written by somebody, or by nobody.
JUNK: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2**31,
    2**63,
    -(2**70),
    10**400,
    0.5,
    -0.0,
    1e-38,
    5e-324,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "a",
    "none",
    "x" * 3000,
    "\u0000",
    "\ud800",
    "é🙂\u202e",
    [],
    [None],
    [[]],
    ["a", 1],
    [1, 2, 3],
    [-1],
    [2**40],
    {},
    {"type": "text"},
    {"a": None},
    {"": {"": {"": [{}]}}},
]

#: Fields and values that ask for something, or for nothing.
FIELDS: dict[str, list[Any]] = {
    "max_tokens": [1, 2, 6, None],
    "max_completion_tokens": [3, None],
    "temperature": [0, 0.0, 1, 0.7, 2, 1e-38, 5e-324, None],
    "top_p": [1, 0.5, 1e-300, None],
    "top_k": [0, -1, 1, 40, 10**9],
    "seed": [0, -5, 2**63 - 1, None],
    "stop": ["a", ["a", "\n"], [], None, ["\u00e9"]],
    "n": [1, 2, 3, None],
    "best_of": [1, 2],
    "stream": [True, False, None],
    "stream_options": [{"include_usage": True}, {}, None, {"include_obfuscation": False}],
    "logprobs": [True, False, 0, 3, None],
    "top_logprobs": [0, 3, 20],
    "echo": [True, False],
    "suffix": ["", "x"],
    "tools": [[], None, [{"type": "function", "function": {"name": "f"}}]],
    "tool_choice": ["none", "auto", "required"],
    "response_format": [{"type": "text"}, {"type": "json_object"}, None],
    "logit_bias": [{}, {"5": 0}, {"5": 3}],
    "presence_penalty": [0, 1.5],
    "repetition_penalty": [1, 1.3],
    "min_p": [0, 0.2],
    "mode": ["plain", "lookup", "tree-lookup", "tree-8-2-4", "tree:9/2/4", "tree-999-1-1", "none"],
    "model": [NAME, f"{NAME}:plain", f"{NAME}:none", "gpt-4", ""],
    "user": ["me"],
    "metadata": [{"a": "b"}],
    "service_tier": ["auto", "flex", "gold"],
    "reasoning_effort": [None, "none", "low"],
    "prompt_cache_key": ["k"],
    "new_field": [None, 1],
}
ROLES = ["system", "developer", "user", "assistant", "tool", "function", "", 5, None]
PATHS = ["chat/completions", "completions"]


class Requests:
    """Draws requests."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def body(self) -> tuple[str, Any]:
        """A path and a body of JSON."""
        draw = self.random
        if draw.random() < 0.1:
            return self._live()
        path = draw.choice(PATHS)
        body: dict[str, Any] = {"model": NAME, "max_tokens": draw.randint(1, 6)}
        if path == "completions":
            body["prompt"] = draw.choice(["a", "hello hello", [1, 2, 3], ["one"], [[4, 5]]])
        else:
            body["messages"] = [self._message() for _ in range(draw.randint(1, 3))]
        for name in draw.sample([*FIELDS], draw.randint(0, 3)):
            body[name] = draw.choice(FIELDS[name])
        for _ in range(draw.choice([0, 0, 0, 0, 1, 2])):
            self._spoil(body)
        return f"v1/{path}", draw.choice(JUNK) if draw.random() < 0.03 else body

    def encoded(self) -> tuple[str, bytes]:
        """The same as bytes, at times cut or scrambled."""
        path, body = self.body()
        content = json.dumps(body).encode()
        kind = self.random.random()
        if kind < 0.05:
            content = content[: self.random.randrange(len(content) + 1)]
        elif kind < 0.1:
            place = self.random.randrange(len(content) + 1)
            content = content[:place] + self.random.randbytes(3) + content[place:]
        elif kind < 0.12:
            content = b"[" * 5000
        return path, content

    def raw(self) -> bytes:
        """What is to be HTTP, and is or is not."""
        draw = self.random
        path, content = self.encoded()
        if draw.random() < 0.3:
            head = f"POST /{path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content
        method = draw.choice(["POST", "POST", "POST", "GET", "PUT", "BREW", "post", "P\x00"])
        lines = [
            f"{method} /{path} HTTP/{draw.choice(['1.1', '1.1', '1.1', '1.0', '2', 'x'])}",
            draw.choice(["Host: localhost", "Host: localhost", "Host: evil", "Host:", "X: y"]),
            draw.choice(["Content-Type: application/json", "Content-Type: text/plain", "A: \xff"]),
        ]
        length = draw.choice(["right", "right", "right", "less", "more", "none", "odd", "chunked"])
        if length == "chunked":
            lines.append("Transfer-Encoding: chunked")
            size = f"{len(content):x}".encode()
            content = draw.choice([size, size, b"zz", b"-1"]) + b"\r\n" + content + b"\r\n0\r\n\r\n"
        elif length != "none":
            told = {"right": len(content), "less": len(content) // 2, "more": len(content) + 9}
            lines.append(f"Content-Length: {told.get(length, draw.choice(['-1', 'x', '9' * 30]))}")
        head = draw.choice(["\r\n", "\r\n", "\r\n", "\n"]).join(lines).encode("latin-1")
        said = head + b"\r\n\r\n" + content
        if draw.random() < 0.1:
            place = draw.randrange(len(said))
            said = said[:place] + draw.randbytes(4) + said[place + 4 :]
        return said

    def _message(self) -> dict[str, Any]:
        draw = self.random
        message: dict[str, Any] = {
            "role": draw.choice(["user", "user", "user", draw.choice(ROLES)]),
            "content": draw.choice(
                ["a", "hello", "", None, [], [{"type": "text", "text": "b"}], draw.choice(JUNK)]
                if draw.random() < 0.4
                else ["hello", "again"]
            ),
        }
        for name in draw.sample(["refusal", "tool_calls", "name", "audio", "new"], 1):
            message[name] = draw.choice([None, None, [], "x", {"id": "a"}])
        return message

    def _live(self) -> tuple[str, Any]:
        draw = self.random
        body: dict[str, Any] = {
            "prompt": draw.choice(["a", "hello", "", None]),
            "modes": draw.choice([["plain"], ["plain", "lookup"], [], ["none"], "plain"]),
            "max_tokens": draw.choice([1, 5, None, 0, 5000]),
        }
        if draw.random() < 0.4:
            self._spoil(body)
        body.pop("paused", None)
        return "live/sessions", body

    def _spoil(self, body: dict[str, Any]) -> None:
        draw = self.random
        name = draw.choice([*body])
        if draw.random() < 0.2:
            del body[name]
        elif name == "max_tokens":
            body[name] = draw.choice([0, -1, "5", 2.0, 2**63, None, [], True])
        else:
            body[name] = draw.choice(JUNK)
        if not body:
            body["model"] = NAME
