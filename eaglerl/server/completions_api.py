"""The routes of OpenAI's API: models, chat completions, completions."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from eaglerl.server.completion import CompletionTask, Event, Failed, Finished, Piece
from eaglerl.server.engine import BusyError, StoppedError, Task
from eaglerl.server.errors import ApiError, internal_error, json_response
from eaglerl.server.schemas import ChatRequest, Sampling, TextRequest
from eaglerl.server.service import Service
from eaglerl.server.streams import Channel, EventStream, server_sent_event, while_connected


@dataclass(frozen=True)
class _Shape:
    """How an endpoint writes an answer.

    Attributes:
        prefix: of its id.
        object: kind of the whole answer.
        chunk: kind of a streamed part.
        choice: makes a choice of the whole answer of its text.
        delta: makes a choice of a streamed part of its text.
        opening: what a stream's first choice holds besides; None for no such choice.
    """

    prefix: str
    object: str
    chunk: str
    choice: Callable[[str], dict[str, Any]]
    delta: Callable[[str], dict[str, Any]]
    opening: dict[str, Any] | None


def _message(text: str) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text, "refusal": None}}


_CHAT = _Shape(
    "chatcmpl-",
    "chat.completion",
    "chat.completion.chunk",
    _message,
    lambda text: {"delta": {"content": text} if text else {}},
    {"delta": {"role": "assistant", "content": ""}},
)
_TEXT = _Shape(
    "cmpl-",
    "text_completion",
    "text_completion",
    lambda text: {"text": text},
    lambda text: {"text": text},
    None,
)


def completion_routes(service: Service) -> APIRouter:
    """The routes below ``/v1``."""
    router = APIRouter(prefix="/v1", tags=["completions"])
    created = int(time.time())

    def describe(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": created, "owned_by": "eaglerl"}

    @router.get("/models")
    async def models() -> Response:
        """The model, plainly named and with every mode."""
        names = [service.model_name, *(f"{service.model_name}:{m.name}" for m in service.modes)]
        return json_response({"object": "list", "data": [describe(name) for name in names]})

    @router.get("/models/{name}")
    async def model(name: str) -> Response:
        """One of the models."""
        service.find_mode(name, None)
        return json_response(describe(name))

    @router.post("/chat/completions")
    async def chat(request: Request, body: ChatRequest) -> Response:
        """Answer a conversation."""
        messages = [message.for_template() for message in body.messages]
        encode = asyncio.to_thread(service.encode_chat, messages)
        return await _answer(service, request, body, await encode, "messages", _CHAT)

    @router.post("/completions")
    async def text(request: Request, body: TextRequest) -> Response:
        """Continue a text."""
        prompt = body.prompt
        if isinstance(prompt, str):
            prompt = await asyncio.to_thread(service.encode_text, prompt)
        return await _answer(service, request, body, prompt, "prompt", _TEXT)

    return router


def admit(add: Callable[[Task], None], task: Task) -> None:
    """Give a task to the engine.

    Raises:
        ApiError: 429 if there is no place, 503 if the server stops.
    """
    try:
        add(task)
    except BusyError as error:
        raise ApiError(
            429, f"{error}; try again later", code="server_busy", headers={"Retry-After": "1"}
        ) from error
    except StoppedError as error:
        raise ApiError(503, str(error), code="server_stopping") from error


def told_error(error: Exception) -> ApiError:
    """What a client is told of an error on the engine's thread."""
    if isinstance(error, StoppedError):
        return ApiError(503, str(error), code="server_stopping")
    return internal_error()


async def _answer(
    service: Service,
    request: Request,
    body: Sampling,
    prompt_ids: list[int],
    parameter: str,
    shape: _Shape,
) -> Response:
    mode = service.find_mode(body.model, body.mode)
    service.check_prompt(prompt_ids, parameter)
    channel: Channel[Event] = Channel()
    task = CompletionTask(
        service,
        mode,
        prompt_ids,
        channel.put,
        stops=body.stops,
        # A client that names no temperature expects OpenAI's default.
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=body.top_p or 1.0,
        seed=body.seed,
        max_new_tokens=body.longest or service.limits.default_max_tokens,
    )
    admit(service.engine.submit, task)
    head = {
        "id": shape.prefix + uuid.uuid4().hex,
        "object": shape.chunk if body.stream else shape.object,
        "created": int(time.time()),
        "model": body.model,
    }
    if body.stream:
        counted = body.stream_options is not None and bool(body.stream_options.include_usage)
        events = _stream(channel, head, len(prompt_ids), shape, usage=counted)
        return EventStream(events, on_close=lambda: service.engine.withdraw(task))
    try:
        collected = await while_connected(_collect(channel), request.receive)
    finally:
        service.engine.withdraw(task)
    if collected is None:
        # Nobody reads it.
        return Response(status_code=499)
    text, end = collected
    choice = {"index": 0, **shape.choice(text), "logprobs": None, "finish_reason": end.reason}
    usage = _usage(len(prompt_ids), end)
    content = {**head, "choices": [choice], "usage": usage, "speculative": end.statistics}
    return json_response(content)


async def _collect(channel: Channel[Event]) -> tuple[str, Finished]:
    text = ""
    while True:
        event = await channel.get()
        if isinstance(event, Finished):
            return text, event
        if isinstance(event, Failed):
            raise told_error(event.error)
        text += event.text


async def _stream(
    channel: Channel[Event],
    head: dict[str, Any],
    prompt_tokens: int,
    shape: _Shape,
    *,
    usage: bool,
) -> AsyncIterator[str]:
    # With usage asked for, the chunks before the last one carry it empty.
    empty = {"usage": None} if usage else {}

    def chunk(choice: dict[str, Any], reason: str | None = None, **more: Any) -> str:
        choice = {"index": 0, **choice, "logprobs": None, "finish_reason": reason}
        return server_sent_event({**head, "choices": [choice], **empty, **more})

    if shape.opening is not None:
        yield chunk(shape.opening)
    while True:
        event = await channel.get()
        if isinstance(event, Piece):
            yield chunk(shape.delta(event.text))
            continue
        if isinstance(event, Failed):
            yield server_sent_event(told_error(event.error).content)
            return
        yield chunk(shape.delta(""), event.reason, speculative=event.statistics)
        if usage:
            last = {**head, "choices": [], "usage": _usage(prompt_tokens, event)}
            yield server_sent_event(last)
        yield server_sent_event("[DONE]")
        return


def _usage(prompt_tokens: int, end: Finished) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": end.completion_tokens,
        "total_tokens": prompt_tokens + end.completion_tokens,
    }
