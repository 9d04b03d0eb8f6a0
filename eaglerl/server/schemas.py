"""Schemas of requests: the fields of OpenAI's API that this server supports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, cast

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
    """Strict schema: values are not converted, and unknown fields are refused unless neutral."""

    model_config = ConfigDict(strict=True, extra="forbid")

    #: Returns whether an unknown field may be ignored, given its name and value.
    ignores: ClassVar[Callable[[str, Any], bool]] = asks_for_nothing

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, data: Any) -> Any:
        """Leave out null fields, and unknown fields that may be ignored."""
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
        """Refuse half a surrogate pair: JSON can hold one, but tokenizers fail on it."""
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and not text.isascii():
                try:
                    text.encode()
                except UnicodeEncodeError:
                    raise ValueError("must be text of whole characters") from None
        return value


class StreamOptions(_Strict):
    """Options of a streamed answer.

    Attributes:
        include_usage: send a last chunk with the numbers of tokens.
        include_obfuscation: accepted, without effect.
    """

    include_usage: bool = False
    include_obfuscation: bool = False


class Sampling(_Strict):
    """Fields that both kinds of completions share.

    Attributes:
        model: name of the model, or NAME:MODE.
        mode: mode of drafting, if the model's name does not give it.
        n: number of answers.
        max_tokens: longest answer.
        temperature: 0 is greedy.
        top_p: nucleus mass.
        top_k: number of the most likely tokens to sample from; 0 and -1 for all.
        min_p: smallest probability of a sampled token, relative to the most likely token's.
        repetition_penalty: penalty on tokens that occur in the text, the prompt included; 1 leaves
            it to the target's generation config.
        presence_penalty: penalty on tokens that occur in the answer.
        frequency_penalty: penalty on a token per occurrence in the answer.
        logit_bias: bias of logits by token id.
        seed: seed of the sampling.
        stop: texts that end the answer and are not part of it.
        stream: send the answer token by token.
        stream_options: see `StreamOptions`.
        service_tier: accepted, without effect.
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
        """Longest answer; None if the request sets no limit."""
        return self.max_tokens

    @property
    def likeliest(self) -> int | None:
        """Number of top tokens to report per position; None without log-probabilities."""
        return None


def _as_list(value: Any) -> Any:
    """Wrap a single text in a list."""
    return [value] if isinstance(value, str) else value


def _part_ignores(name: str, value: Any) -> bool:
    """Ignore cache markers and the metadata of other servers' answers."""
    return name in ("annotations", "cache_control", "id", "prompt_cache_breakpoint") or is_empty(
        value
    )


class TextPart(_Strict):
    """A part of a message; the text of a refusal counts as text."""

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
    """Ignore names, cache markers and the metadata of other servers' answers."""
    known = ("annotations", "cache_control", "id", "name", "provider_specific_fields")
    return name in known or is_empty(value)


class Message(_Strict):
    """A message of a conversation.

    Attributes:
        role: role of the author.
        content: parts of the text; an assistant's may be missing.
        refusal: an assistant's refusal, in place of the text.
        reasoning_content: an assistant's reasoning, for templates that include it.
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
        """Convert to the form that chat templates take."""
        text = "".join(part.text for part in self.content) or self.refusal
        # Chat templates of open models have no role "developer", the newer name of "system".
        message = {"role": "system" if self.role == "developer" else self.role, "content": text}
        if self.reasoning_content:
            message["reasoning_content"] = self.reasoning_content
        return message


class ChatRequest(Sampling):
    """``POST /v1/chat/completions``.

    Attributes:
        messages: the conversation.
        max_completion_tokens: newer name of max_tokens.
        logprobs: report the log-probability of every token.
        top_logprobs: number of the most likely tokens to report per position; needs logprobs.
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
    """Also ignore add_special_tokens if true: plain text always gets the special tokens."""
    return value is True if name == "add_special_tokens" else asks_for_nothing(name, value)


class TextRequest(Sampling):
    """``POST /v1/completions``.

    Attributes:
        prompt: plain text, its token ids, or a list with one of these.
        best_of: accepted if it equals n.
        logprobs: number of the most likely tokens to report per position, besides the chosen one.
    """

    ignores = _text_ignores

    prompt: str | list[int] | list[str] | list[list[int]]

    best_of: int | None = None
    logprobs: Annotated[int, Field(ge=0, le=_MOST_TEXT_LOGPROBS)] | None = None

    @field_validator("logprobs", mode="before")
    @classmethod
    def _no_logprobs(cls, value: Any) -> Any:
        """Accept false for no log-probabilities, as chat completions do."""
        return None if value is False else value

    @field_validator("best_of")
    @classmethod
    def _check_best_of(cls, value: int, info: ValidationInfo) -> int:
        if value != info.data.get("n", 1):
            raise ValueError("must equal n: all answers are returned, and none is selected")
        return value

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, value: Any) -> Any:
        """Unwrap a list of one prompt."""
        if isinstance(value, list) and value and not isinstance(value[0], int):
            if len(value) > 1:
                raise ValueError("must be one prompt")
            return value[0]
        return value

    @property
    def one_prompt(self) -> str | list[int]:
        """The prompt: its text or its token ids."""
        # The validator of `prompt` has unwrapped a list of one prompt.
        return cast("str | list[int]", self.prompt)

    @property
    def likeliest(self) -> int | None:
        """See `Sampling`."""
        return self.logprobs


class LiveRequest(_Strict):
    """``POST /live/sessions``.

    Attributes:
        prompt: the text.
        chat: send it as the user's message in the model's chat template.
        modes: one or two modes of drafting, which decode side by side.
        max_tokens: longest continuation.
        temperature: 0 is greedy.
        top_p: nucleus mass.
        seed: seed of the sampling, the same for both modes.
        paused: start paused instead of running.
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
        action: run, pause, or run one cycle of every lane that has not ended.
    """

    action: Literal["run", "pause", "step"]
