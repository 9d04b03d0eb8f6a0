"""Requests, field by field: those of OpenAI's API that can be served, and nothing else."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

_INT64 = 2**63
_MOST_STOPS = 4

Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
TopP = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=-_INT64, lt=_INT64)]
Count = Annotated[int, Field(ge=1, lt=_INT64)]


class _Strict(BaseModel):
    """Fields are of the type that they say; others are refused, not ignored."""

    model_config = ConfigDict(strict=True, extra="forbid")

    @field_validator("*")
    @classmethod
    def _check_text(cls, value: Any) -> Any:
        """JSON can hold half a surrogate pair, which no tokenizer takes."""
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and not text.isascii():
                try:
                    text.encode()
                except UnicodeEncodeError:
                    raise ValueError("must be text of whole characters") from None
        return value


class StreamOptions(_Strict):
    """Of a streamed answer.

    Attributes:
        include_usage: send a last chunk that counts the tokens.
        include_obfuscation: accepted, without effect.
    """

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Sampling(_Strict):
    """What both kinds of completions take; the second half is known, but only at its default.

    Attributes:
        model: the model's name, or NAME:MODE.
        mode: the mode of drafting, where the model's name does not have it.
        max_tokens: longest answer.
        temperature: 0 is greedy.
        top_p: nucleus mass.
        seed: of the draws.
        stop: texts that end the answer and are not part of it.
        stream: send the answer as it comes.
        stream_options: see there.
    """

    model: str
    mode: str | None = None
    max_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: Seed | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    n: Literal[1] | None = None
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None

    user: str | None = None
    metadata: dict[str, Any] | None = None

    @field_validator("presence_penalty", "frequency_penalty", mode="before")
    @classmethod
    def _whole(cls, value: Any) -> Any:
        """0.0 is 0."""
        return 0 if isinstance(value, float) and value == 0 else value

    @field_validator("stop")
    @classmethod
    def _check_stop(cls, value: str | list[str] | None) -> str | list[str] | None:
        stops = [value] if isinstance(value, str) else value or []
        if len(stops) > _MOST_STOPS or not all(stops):
            raise ValueError(f"must be up to {_MOST_STOPS} texts, none of them empty")
        return value

    @model_validator(mode="after")
    def _check_stream_options(self) -> Sampling:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        return self

    @property
    def stops(self) -> list[str]:
        """`stop` as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def longest(self) -> int | None:
        """Longest answer; None where the request does not say."""
        return self.max_tokens


class TextPart(_Strict):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(_Strict):
    """A turn of a conversation.

    Attributes:
        role: whose it is.
        content: what was said.
        name: accepted, without effect.
    """

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    def for_template(self) -> dict[str, str]:
        """As chat templates take it."""
        content = self.content
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        # Templates of open models know the older name alone.
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ChatRequest(Sampling):
    """``POST /v1/chat/completions``.

    Attributes:
        messages: the conversation.
        max_completion_tokens: the newer name of max_tokens.
    """

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Count | None = None

    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None
    modalities: list[Literal["text"]] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None

    @model_validator(mode="after")
    def _check_lengths(self) -> ChatRequest:
        if self.max_tokens is not None and self.max_completion_tokens not in (
            None,
            self.max_tokens,
        ):
            raise ValueError("max_tokens and max_completion_tokens differ")
        return self

    @property
    def longest(self) -> int | None:
        """Longest answer under either name."""
        return self.max_completion_tokens or self.max_tokens


class TextRequest(Sampling):
    """``POST /v1/completions``.

    Attributes:
        prompt: bare text, its token ids, or a list with one of these.
    """

    prompt: str | list[int] | list[str] | list[list[int]]

    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    suffix: Literal[""] | None = None
    logprobs: None = None

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, value: Any) -> Any:
        """A list of one prompt is that prompt."""
        if isinstance(value, list) and value and not isinstance(value[0], int):
            if len(value) > 1:
                raise ValueError("must be one prompt")
            return value[0]
        return value


class LiveRequest(_Strict):
    """``POST /live/sessions``.

    Attributes:
        prompt: the text.
        chat: put it as the user's turn into the model's chat template.
        modes: one or two modes of drafting, which decode side by side.
        max_tokens: longest continuation.
        temperature: 0 is greedy.
        top_p: nucleus mass.
        seed: of the draws; the same for both.
        paused: wait for steps, instead of running.
    """

    prompt: Annotated[str, Field(min_length=1)]
    chat: bool = True
    modes: Annotated[list[str], Field(min_length=1, max_length=2)]
    max_tokens: Count = 200
    temperature: Temperature = 0.0
    top_p: TopP = 1.0
    seed: Seed = 0
    paused: bool = False


class ControlRequest(_Strict):
    """``POST /live/sessions/ID/control``.

    Attributes:
        action: run, pause, or one cycle of every text that has not ended.
    """

    action: Literal["run", "pause", "step"]
