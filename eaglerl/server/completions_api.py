"""Routes of OpenAI's API: models, chat completions, completions."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from starlette.responses import Response

from eaglerl.server.answers import CHAT, TEXT, Shape
from eaglerl.server.completion import AnswerEnd, CompletionRequest, Event, Failed, Finished, Piece
from eaglerl.server.errors import ApiError, internal_error, json_response
from eaglerl.server.penalties import LogitBias, Penalties
from eaglerl.server.schemas import ChatRequest, Sampling, TextRequest
from eaglerl.server.service import Service
from eaglerl.server.streams import Channel, EventStream, server_sent_event, while_connected
from eaglerl.server.tasks import BusyError, StoppedError, Task
from eaglerl.server.text import PlacedToken

_Task = TypeVar("_Task", bound=Task)


def completion_routes(service: Service) -> APIRouter:
    """Make the routes below ``/v1``."""
    router = APIRouter(prefix="/v1", tags=["completions"])
    created = int(time.time())

    def describe(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": created, "owned_by": "eaglerl"}

    @router.get("/models")
    async def models() -> Response:
        """List the model, by its name and with the suffix of every mode."""
        names = [service.model_name, *(f"{service.model_name}:{m.name}" for m in service.modes)]
        return json_response({"object": "list", "data": [describe(name) for name in names]})

    @router.get("/models/{name:path}")
    async def model(name: str) -> Response:
        """Describe one of the models."""
        service.find_mode(name, None)
        return json_response(describe(name))

    @router.post("/chat/completions")
    async def chat(request: Request, body: ChatRequest) -> Response:
        """Answer a conversation."""
        messages = [message.for_template() for message in body.messages]
        encode = asyncio.to_thread(service.encode_chat, messages)
        return await _answer(service, request, body, await encode, "messages", CHAT)

    @router.post("/completions")
    async def text(request: Request, body: TextRequest) -> Response:
        """Continue a text."""
        prompt = body.one_prompt
        if isinstance(prompt, str):
            prompt = await asyncio.to_thread(service.encode_text, prompt)
        return await _answer(service, request, body, prompt, "prompt", TEXT)

    return router


def admit(add: Callable[[_Task], None], task: _Task) -> None:
    """Give a task to the engine.

    Args:
        add: `Engine.submit` or `Engine.attach`.
        task: the task.

    Raises:
        ApiError: 429 if the server is at its limit, 503 if it is stopping.
    """
    try:
        add(task)
    except BusyError as error:
        raise ApiError(
            429, f"{error}; try again later", code="server_busy", headers={"Retry-After": "1"}
        ) from error
    except StoppedError as error:
        raise _stopping(error) from error


def _stopping(error: StoppedError) -> ApiError:
    headers = {"Retry-After": "10"}
    return ApiError(503, str(error), code="server_stopping", headers=headers)


def told_error(error: Exception) -> ApiError:
    """Return the error that a client is sent for an exception on the engine's thread."""
    if isinstance(error, StoppedError):
        return _stopping(error)
    return internal_error()


async def _answer(
    service: Service,
    request: Request,
    body: Sampling,
    prompt_ids: list[int],
    parameter: str,
    shape: Shape,
) -> Response:
    mode = service.find_mode(body.model, body.mode)
    service.check_prompt(prompt_ids, parameter)
    longest = body.longest or service.limits.default_max_tokens
    service.check_length(prompt_ids, longest)
    channel: Channel[Event] = Channel()
    task = CompletionRequest(
        service,
        mode,
        prompt_ids,
        channel.put,
        answers=body.n,
        stops=body.stop,
        seed=body.seed,
        max_new_tokens=longest,
        top_logprobs=body.likeliest,
        **_options(service, body, len(prompt_ids)),
    )
    admit(service.engine.submit, task)
    head = {
        "id": shape.prefix + uuid.uuid4().hex,
        "object": shape.chunk if body.stream else shape.object,
        "created": int(time.time()),
        "model": body.model,
        "system_fingerprint": service.fingerprint,
    }
    if body.service_tier is not None:
        head["service_tier"] = "default"
    writer = _Writer(service, shape, body, head, len(prompt_ids))
    if body.stream:
        events = writer.stream(channel)
        return EventStream(events, on_close=lambda: service.engine.withdraw(task))
    try:
        content = await while_connected(writer.whole(channel), request.receive)
    finally:
        service.engine.withdraw(task)
    # Without content the client has disconnected, and nobody reads the response.
    return Response(status_code=499) if content is None else json_response(content)


def _options(service: Service, body: Sampling, prompt_tokens: int) -> dict[str, Any]:
    """Return the sampling options for `SpeculativeDecoder.start`.

    Raises:
        ApiError: a key of ``logit_bias`` is not a token id.
    """
    options: dict[str, Any] = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": max(body.top_k, 0),
    }
    # Left out at their neutral values, so that the target's generation config applies.
    if body.min_p:
        options["min_p"] = body.min_p
    if body.repetition_penalty != 1:
        options["repetition_penalty"] = body.repetition_penalty
    processors: list[Callable[..., Any]] = []
    if body.presence_penalty or body.frequency_penalty:
        processors.append(Penalties(prompt_tokens, body.presence_penalty, body.frequency_penalty))
    biases = {service.read_token(token): bias for token, bias in body.logit_bias.items() if bias}
    if biases:
        processors.append(LogitBias(biases))
    if processors:
        options["logits_processor"] = processors
    return options


@dataclass(frozen=True)
class _Writer:
    """Writer of the answers to a request.

    Attributes:
        service: the service.
        shape: answer format of the endpoint.
        body: the request.
        head: first fields of a whole answer and of every chunk.
        prompt_tokens: number of tokens of the prompt.
    """

    service: Service
    shape: Shape
    body: Sampling
    head: dict[str, Any]
    prompt_tokens: int

    async def whole(self, channel: Channel[Event]) -> dict[str, Any]:
        """Return all answers in one response.

        Raises:
            ApiError: the request failed.
        """
        texts = [""] * self.body.n
        tokens: list[list[PlacedToken]] = [[] for _ in texts]
        reasons = [""] * self.body.n
        while not isinstance(event := await channel.get(), Finished):
            if isinstance(event, Failed):
                raise told_error(event.error)
            if isinstance(event, Piece):
                texts[event.index] += event.text
                tokens[event.index].extend(event.logprobs)
            else:
                reasons[event.index] = event.reason
        choices = [
            self._choice(index, self.shape.choice(text), tokens[index], reasons[index])
            for index, text in enumerate(texts)
        ]
        usage = self._usage(event)
        return {**self.head, "choices": choices, "usage": usage, "speculative": event.statistics}

    async def stream(self, channel: Channel[Event]) -> AsyncIterator[str]:
        """Yield the answers in chunks as they are decoded."""
        counted = self.body.stream_options.include_usage
        # If usage is requested, all chunks but the last have "usage": null, as in OpenAI's API.
        empty = {"usage": None} if counted else {}

        def chunk(
            index: int,
            delta: dict[str, Any],
            event: Piece | None = None,
            reason: str | None = None,
            more: Mapping[str, Any] = MappingProxyType({}),
        ) -> str:
            tokens = () if event is None else event.logprobs
            choice = self._choice(index, delta, tokens, reason, always=event is not None)
            return server_sent_event({**self.head, "choices": [choice], **empty, **more})

        if self.shape.opening is not None:
            for index in range(self.body.n):
                yield chunk(index, self.shape.opening)
        while True:
            event = await channel.get()
            if isinstance(event, Piece):
                yield chunk(event.index, self.shape.delta(event.text), event)
            elif isinstance(event, Failed):
                yield server_sent_event(told_error(event.error).content)
                return
            elif isinstance(event, AnswerEnd):
                more = {} if event.speculative is None else {"speculative": event.speculative}
                yield chunk(event.index, self.shape.delta(""), reason=event.reason, more=more)
            else:
                break
        if counted:
            last = {**self.head, "choices": [], "usage": self._usage(event)}
            yield server_sent_event(last)
        yield server_sent_event("[DONE]")

    def _choice(
        self,
        index: int,
        content: dict[str, Any],
        tokens: Sequence[PlacedToken],
        reason: str | None,
        *,
        always: bool = True,
    ) -> dict[str, Any]:
        logprobs = None
        if self.body.likeliest is not None and always:
            logprobs = self.shape.logprobs(tokens, self.service.token_texts)
        return {"index": index, **content, "logprobs": logprobs, "finish_reason": reason}

    def _usage(self, end: Finished) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": end.completion_tokens,
            "total_tokens": self.prompt_tokens + end.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": end.cached_tokens},
        }
