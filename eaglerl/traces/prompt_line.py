"""A line of a prompt file: token ids, or the turns of a user."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator

from eaglerl.json_file import Items, Schema, TokenId


class PromptLine(Schema):
    """A prompt as ``p`` or ``turns``; ``p`` wins if both are given, other keys are ignored.

    Attributes:
        p: token ids of a whole prompt.
        turns: texts of the user, turn by turn.
    """

    model_config = ConfigDict(extra="ignore")

    p: Annotated[Items[TokenId], Field(min_length=1)] | None = None
    turns: Annotated[Items[str], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.p is None and self.turns is None:
            raise ValueError('must have "p", token ids, or "turns", texts')
        return self
