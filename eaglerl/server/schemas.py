"""Requests, field by field: those of OpenAI's API that can be served, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from eaglerl.server.neutral import asks_for_nothing, is_empty

_INT64 = 2**63
_MOST_STOPS = 4
_MOST_BIASES = 1024
#: As in OpenAI's API.
_MOST_CHOICES = 128
_MOST_TOP_LOGPROBS = 20
_MOST_TEXT_LOGPROBS = 5

Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
TopP = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=-_INT64, lt=_INT64)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Count = Annotated[int, Field(ge=1, lt=_INT64)]


class _Strict(BaseModel):
    """Fields are of the type that they say; others are refused, unless they ask for nothing."""

    model_config = ConfigDict(strict=True, extra="forbid")

    #: Whether a field that is none of the model's asks for nothing.
    ignores: ClassVar[Callable[[str, Any], bool]] = asks_for_nothing

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, data: Any) -> Any:
        """Null is as good as absent."""
        if not isinstance(data, dict):
            return data
        return {
            name: value
            for name, value in data.items()
            if value is not None and (name in cls.model_fields or not cls.ignores(name, value))
        }

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

    include_usage: bool = False
    include_obfuscation: bool = False


class Sampling(_Strict):
    """What both kinds of completions take.

    Attributes:
        model: the model's name, or NAME:MODE.
        mode: the mode of drafting, where the model's name does not have it.
        n: number of answers.
        max_tokens: longest answer.
        temperature: 0 is greedy.
        top_p: nucleus mass.
        top_k: most likely tokens to draw from; 0 and -1 for all.
        min_p: least probability of a token to draw, as a part of the likeliest one's.
        repetition_penalty: of tokens that the text has, the prompt included; 1 leaves it to the
            target's own generation config.
        presence_penalty: of tokens that the answer has.
        frequency_penalty: of every time that it has them.
        logit_bias: token ids, and what is added to their logits.
        seed: of the draws.
        stop: texts that end the answer and are not part of it.
        stream: send the answer as it comes.
        stream_options: see there.
        service_tier: accepted; there is one.
    """

    model: str
    mode: str | None = None
    n: Annotated[int, Field(ge=1, le=_MOST_CHOICES)] = 1
    max_tokens: Count | None = None
    # A client that names no temperature expects OpenAI's default.
    temperature: Temperature = 1.0
    top_p: TopP = 1.0
    top_k: Annotated[int, Field(ge=-1, lt=_INT64)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    logit_bias: Annotated[dict[str, Bias], Field(max_length=_MOST_BIASES)] = {}
    seed: Seed | None = None
    stop: Annotated[list[str], BeforeValidator(lambda value: _as_list(value))] = []
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None

    @field_validator("stop")
    @classmethod
    def _check_stop(cls, value: list[str]) -> list[str]:
        if len(value) > _MOST_STOPS or not all(value):
            raise ValueError(f"must be up to {_MOST_STOPS} texts, none of them empty")
        return value

    @model_validator(mode="after")
    def _check_stream_options(self) -> Sampling:
        if self.stream_options.include_usage and not self.stream:
            raise ValueError("stream_options needs stream: true")
        return self

    @property
    def longest(self) -> int | None:
        """Longest answer; None where the request does not say."""
        return self.max_tokens

    @property
    def likeliest(self) -> int | None:
        """Likeliest tokens to tell the log-probabilities of in each place; None for none at all."""
        return None


def _as_list(value: Any) -> Any:
    """A text alone is a list of one."""
    return [value] if isinstance(value, str) else value


def _part_ignores(name: str, value: Any) -> bool:
    """Marks for caches, and what other models' answers carry beside their text."""
    return name in ("annotations", "cache_control", "id", "prompt_cache_breakpoint") or is_empty(
        value
    )


class TextPart(_Strict):
    """A part of a message; what a model has refused with is text of its own."""

    ignores = _part_ignores

    type: Literal["text", "refusal"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _read_refusal(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("type") == "refusal" and "text" not in data:
            return {"text" if name == "refusal" else name: value for name, value in data.items()}
        return data


def _as_parts(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if not isinstance(value, list):
        raise ValueError("must be text, or a list of parts of the type text")
    return value


def _message_ignores(name: str, value: Any) -> bool:
    """What answers carry beside their text, and marks for caches."""
    known = ("annotations", "cache_control", "id", "name", "provider_specific_fields")
    return name in known or is_empty(value)


class Message(_Strict):
    """A turn of a conversation.

    Attributes:
        role: whose it is.
        content: what was said; an assistant may have said nothing.
        refusal: what an assistant said instead.
        reasoning_content: what an assistant thought before; for templates that show it.
    """

    ignores = _message_ignores

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[TextPart], BeforeValidator(_as_parts)]
    refusal: str = ""
    reasoning_content: str = ""

    @model_validator(mode="before")
    @classmethod
    def _answer_without_text(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("role") != "assistant":
            return data
        return data if data.get("content") is not None else data | {"content": ""}

    def for_template(self) -> dict[str, str]:
        """As chat templates take it."""
        text = "".join(part.text for part in self.content) or self.refusal
        # Templates of open models know the older name alone.
        message = {"role": "system" if self.role == "developer" else self.role, "content": text}
        if self.reasoning_content:
            message["reasoning_content"] = self.reasoning_content
        return message


class ChatRequest(Sampling):
    """``POST /v1/chat/completions``.

    Attributes:
        messages: the conversation.
        max_completion_tokens: the newer name of max_tokens.
        logprobs: tell the log-probability of every token.
        top_logprobs: likeliest tokens to tell of in each place; needs logprobs.
    """

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=_MOST_TOP_LOGPROBS)] = 0

    @field_validator("top_logprobs")
    @classmethod
    def _check_top(cls, value: int, info: ValidationInfo) -> int:
        if value and not info.data.get("logprobs"):
            raise ValueError("needs logprobs: true")
        return value

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

    @property
    def likeliest(self) -> int | None:
        """See `Sampling`."""
        return self.top_logprobs if self.logprobs else None


def _text_ignores(name: str, value: Any) -> bool:
    """Bare text gets the special tokens of the tokenizer, a template writes its own."""
    return value is True if name == "add_special_tokens" else asks_for_nothing(name, value)


class TextRequest(Sampling):
    """``POST /v1/completions``.

    Attributes:
        prompt: bare text, its token ids, or a list with one of these.
        best_of: as many as are answered.
        logprobs: likeliest tokens to tell the log-probabilities of, beside the token's own.
    """

    ignores = _text_ignores

    prompt: str | list[int] | list[str] | list[list[int]]

    best_of: int | None = None
    logprobs: Annotated[int, Field(ge=0, le=_MOST_TEXT_LOGPROBS)] | None = None

    @field_validator("logprobs", mode="before")
    @classmethod
    def _no_logprobs(cls, value: Any) -> Any:
        """As chat completions say it."""
        return None if value is False else value

    @field_validator("best_of")
    @classmethod
    def _check_best_of(cls, value: int, info: ValidationInfo) -> int:
        if value != info.data.get("n", 1):
            raise ValueError("must be n: all answers are given, none is chosen")
        return value

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, value: Any) -> Any:
        """A list of one prompt is that prompt."""
        if isinstance(value, list) and value and not isinstance(value[0], int):
            if len(value) > 1:
                raise ValueError("must be one prompt")
            return value[0]
        return value

    @property
    def likeliest(self) -> int | None:
        """See `Sampling`."""
        return self.logprobs


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
