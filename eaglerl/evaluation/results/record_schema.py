"""Schemas of a comparison's files: types, ranges, and consistency."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from eaglerl.eagle3.policy import TreeParams
from eaglerl.eagle3.stopping import FinishReason
from eaglerl.eagle3.tree.tree_row import TreeRow
from eaglerl.json_file import Count, Items, Schema, Seconds, VersionedSchema

#: Largest manifest, in bytes: it lists all questions.
MAX_MANIFEST_BYTES = 1 << 25

_Token = Annotated[int, Field(ge=0, lt=1 << 31)]
_Positive = Annotated[int, Field(ge=1, lt=1 << 31)]
_Zero = Annotated[int, Field(ge=0, lt=1 << 31)]
_Name = Annotated[str, Field(min_length=1)]


def _as_row(tree: TreeParams) -> tuple[int, int, int]:
    return tree.total_tokens, tree.depth, tree.top_k


class CyclesSchema(Schema):
    """See `Cycles`."""

    tokens: Items[_Positive]
    total_tokens: Items[_Positive]
    depth: Items[_Zero]
    top_k: Items[_Positive]
    rows: Items[_Positive]
    lookup_tokens: Items[_Zero]
    lookup_accepted: Items[_Zero]
    draft_seconds: Items[Seconds]
    verify_seconds: Items[Seconds]
    policy_seconds: Items[Seconds] | None
    gap_seconds: Items[Seconds] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        columns = {name: values for name, values in dict(self).items() if values is not None}
        for name, values in columns.items():
            if len(values) != len(self.tokens):
                raise ValueError(
                    f"the lists of cycles must be equally long, got {len(self.tokens)} tokens and "
                    f"{len(values)} {name}"
                )
        for name, few, many in (
            ("tokens", self.tokens, self.rows),
            ("lookup_accepted", self.lookup_accepted, self.lookup_tokens),
        ):
            wrong = [i for i, (a, b) in enumerate(zip(few, many, strict=True)) if a > b]
            if wrong:
                other = "rows" if name == "tokens" else "lookup_tokens"
                raise ValueError(
                    f"{name} of a cycle must be at most its {other}, got {few[wrong[0]]} and "
                    f"{many[wrong[0]]} in cycle {wrong[0]}"
                )
        return self


class TurnSchema(Schema):
    """See `Turn`."""

    prompt_tokens: _Positive
    output_ids: Annotated[Items[_Token], Field(min_length=1)]
    finish_reason: FinishReason
    prefill_seconds: Annotated[Seconds, Field(gt=0.0)]
    decode_seconds: Seconds
    cycles: CyclesSchema
    first_token_seconds: Seconds | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        later = len(self.output_ids) - 1
        if later > sum(self.cycles.tokens):
            raise ValueError(
                f"cycles must give the {later} tokens of output_ids after the first, got "
                f"{sum(self.cycles.tokens)}"
            )
        if later and not self.decode_seconds:
            raise ValueError(f"decode_seconds must be above 0 for {later} tokens, got 0")
        return self


class RecordSchema(Schema):
    """See `Record`."""

    question: _Name
    domain: _Name
    category: str
    repeat: _Zero
    mode: _Name
    run: _Zero
    place: _Zero
    started: Annotated[float, Field(ge=0.0, lt=1e12)]
    load: Annotated[float, Field(ge=0.0, lt=1e9)]
    turns: Annotated[Items[TurnSchema], Field(min_length=1)]
    cache_hits: Count | None = None
    cache_misses: Count | None = None
    host_syncs: Count | None = None
    processor_share: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    concurrency: _Positive = 1
    group: Count | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.question.startswith(f"{self.domain}/"):
            raise ValueError(
                f"question must begin with its domain and '/', got {self.question!r} of "
                f"{self.domain!r}"
            )
        return self


class ModeSchema(Schema):
    """See `Mode`."""

    spec: _Name
    description: str
    fingerprint: str | None = Field(alias="identity")
    trees: dict[str, Annotated[TreeRow, AfterValidator(_as_row)]] | None
    concurrency: _Positive = 1


class ConfigurationSchema(Schema):
    """The options of a comparison that its results depend on."""

    model_config = ConfigDict(extra="allow")

    max_new_tokens: _Positive
    temperature: Annotated[float, Field(ge=0.0)]
    repeats: _Positive
    split: Literal["train", "test", "all"]


class QuestionSchema(Schema):
    """A question in a manifest."""

    model_config = ConfigDict(extra="allow")

    id: _Name
    domain: _Name
    split: Literal["train", "test"]


class RunSchema(Schema):
    """A process that worked on a comparison."""

    model_config = ConfigDict(extra="allow")

    started: str
    load: Annotated[Items[Annotated[float, Field(ge=0.0)]], Field(min_length=3, max_length=3)]
    processors: Annotated[int, Field(ge=1)] | None = None
    modes: Items[_Name]


class ManifestSchema(VersionedSchema):
    """See `Manifest`."""

    configuration: ConfigurationSchema
    questions: Items[QuestionSchema]
    target_id: str
    head_id: str
    machine: str
    versions: dict[str, str]
    modes: dict[_Name, ModeSchema]
    runs: Items[RunSchema]

    @model_validator(mode="after")
    def _check(self) -> Self:
        ids = [question.id for question in self.questions]
        if len(set(ids)) < len(ids):
            twice = next(one for one in ids if ids.count(one) > 1)
            raise ValueError(f"questions must be distinct, got {twice!r} twice")
        return self
