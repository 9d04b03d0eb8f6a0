"""Schemas of a line of an answer file in EAGLE's layout."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, ConfigDict, Field, JsonValue, model_validator

from eaglerl.json_file import Count, Items, Schema, Seconds, shortly


def _check_id(value: JsonValue) -> JsonValue:
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise ValueError(f"must be a number or a text, got {shortly(value)}")
    return value


#: A number, as in MT-bench, or a text.
QuestionId = Annotated[JsonValue, AfterValidator(_check_id)]


class ChoiceSchema(Schema):
    """One answer to a conversation; each list has one entry per turn."""

    model_config = ConfigDict(extra="allow")

    turns: Items[str]
    idxs: Items[Annotated[int, Field(ge=0)]] | None = None
    new_tokens: Items[Count] | None = None
    wall_time: Items[Seconds] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("idxs", "new_tokens", "wall_time"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.turns):
                raise ValueError(
                    f"{name} must have an entry for each of {len(self.turns)} turns, got "
                    f"{len(values)}"
                )
        return self


class AnswerSchema(Schema):
    """The answers to a question; other engines write only the required keys."""

    model_config = ConfigDict(extra="allow")

    question_id: QuestionId
    model_id: str
    answer_id: str | None = None
    choices: Annotated[Items[ChoiceSchema], Field(min_length=1)]


class MeasuredChoiceSchema(ChoiceSchema):
    """A choice with the measurements of `evaluate`."""

    idxs: Items[Annotated[int, Field(ge=0)]]
    new_tokens: Items[Count]
    wall_time: Items[Seconds]


class MeasuredAnswerSchema(AnswerSchema):
    """A line that `evaluate` writes."""

    answer_id: str
    choices: Annotated[Items[MeasuredChoiceSchema], Field(min_length=1)]
