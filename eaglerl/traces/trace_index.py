"""The index of a folder of traces: target, head and options, and the list of shards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field

from eaglerl.files import atomic_path
from eaglerl.json_file import Count, Items, Schema, VersionedSchema, read_json
from eaglerl.ops.limits import LARGEST_TREE, MAX_WIDTH

FORMAT = "eaglerl-traces"
VERSION = 1
INDEX_NAME = "index.json"

_MAX_BYTES = 1 << 25


def _check_bare(name: str) -> str:
    if Path(name).name != name or "\0" in name:
        raise ValueError(f"must be a bare name, got {name!r}")
    return name


def _check_ascending(values: tuple[int, ...]) -> tuple[int, ...]:
    if list(values) != sorted(set(values)):
        raise ValueError(f"must ascend, got {list(values)}")
    return values


class _ShardSchema(Schema):
    model_config = ConfigDict(extra="allow")

    file: Annotated[str, AfterValidator(_check_bare)]
    prompt_id: str
    domain: str
    positions: Annotated[int, Field(ge=0, lt=1 << 31)]


class _IndexSchema(VersionedSchema):
    model_config = ConfigDict(extra="allow")

    target_id: str
    head_id: str
    target_fingerprint: str | None = None
    head_fingerprint: str | None = None
    draft_dtype: str
    hidden_size: Annotated[int, Field(ge=1, le=MAX_WIDTH)]
    top_ks: Annotated[
        Items[Annotated[int, Field(ge=1, le=LARGEST_TREE["top_k"])]],
        Field(min_length=1),
        AfterValidator(_check_ascending),
    ]
    max_depth: Annotated[int, Field(ge=0, le=LARGEST_TREE["depth"])]
    max_new_tokens: Count
    lookup_tokens: Annotated[int, Field(ge=0, le=255)]
    shards: Items[_ShardSchema]


def read_index(folder: Path) -> dict[str, Any]:
    """Read and check a folder's index.

    Raises:
        ValueError: the index is missing, malformed or of another version.
    """
    path = folder / INDEX_NAME
    index = read_json(
        path, _IndexSchema, "index of traces", form=(FORMAT, VERSION), max_bytes=_MAX_BYTES
    )
    return index.model_dump(mode="json")


def write_index(folder: Path, index: Mapping[str, object]) -> None:
    """Write a folder's index."""
    with atomic_path(folder / INDEX_NAME) as temporary:
        temporary.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
