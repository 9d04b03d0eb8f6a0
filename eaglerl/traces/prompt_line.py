"""A line of a file of prompts: token ids, or what a user says."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator

from eaglerl.json_file import Items, Schema, TokenId


class PromptLine(Schema):
    """One of ``p`` and ``turns``; the first counts where a line has both, other keys do not.

    Attributes:
        p: token ids of a whole prompt.
        turns: what a user says, turn by turn.
    """

    model_config = ConfigDict(extra="ignore")

    p: Annotated[Items[TokenId], Field(min_length=1)] | None = None
    turns: Annotated[Items[str], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.p is None and self.turns is None:
            raise ValueError('must have "p", token ids, or "turns", texts')
        return self
