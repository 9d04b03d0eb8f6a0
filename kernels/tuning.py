"""The fastest measured tiles, by device, width and dtype."""

from __future__ import annotations

import functools
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field

from eaglerl.files import atomic_path, cache_root
from eaglerl.json_file import Schema, read_json
from eaglerl.kernels._plan import Tiles

_FORMAT = 1
# More than fits into any device's registers. Triton itself refuses other than powers of two.
_Extent = Annotated[int, Field(ge=1, le=1 << 14)]


class _TilesSchema(Schema):
    rows: _Extent
    columns: _Extent
    elements: _Extent
    num_warps: Annotated[int, Field(ge=1, le=64)]
    num_stages: Annotated[int, Field(ge=1, le=32)]
    max_registers: Annotated[int, Field(ge=1, le=255)]


class _TuningSchema(Schema):
    format: Literal[_FORMAT]
    tiles: dict[str, _TilesSchema]


def tuning_path() -> Path:
    """Return the file of stored choices, in eaglerl's cache folder."""
    return cache_root() / "triton_tiles.json"


def stored_tiles(
    device_name: str, form: str, k: int, dtype: torch.dtype, rows: int
) -> Tiles | None:
    """Return the tiles chosen for a device, or None if none were measured.

    Args:
        device_name: the name that torch gives.
        form: "fused", "folded" or "features".
        k: width of a feature layer, or of reduced features.
        dtype: dtype of the weights.
        rows: rows that a launch multiplies, rounded up to a power of two.

    Raises:
        ValueError: the file is damaged.
    """
    return _read(tuning_path()).get(_key(device_name, form, k, dtype, rows))


def store_tiles(
    device_name: str, form: str, k: int, dtype: torch.dtype, rows: int, tiles: Tiles
) -> None:
    """Add a choice to the file atomically; arguments as in `stored_tiles`."""
    path = tuning_path()
    # Another process may have changed the file.
    _read.cache_clear()
    entries = _read(path) | {_key(device_name, form, k, dtype, rows): tiles}
    content = {"format": _FORMAT, "tiles": {key: asdict(kept) for key, kept in entries.items()}}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", "utf-8")
    _read.cache_clear()


def _key(device_name: str, form: str, k: int, dtype: torch.dtype, rows: int) -> str:
    return f"{device_name}, {form}, k={k}, {str(dtype).removeprefix('torch.')}, rows={rows}"


@functools.cache
def _read(path: Path) -> dict[str, Tiles]:
    if not os.path.lexists(path):
        return {}
    try:
        content = read_json(path, _TuningSchema, "file of tiles")
    except ValueError as error:
        raise ValueError(
            f"{error}: remove it, or create it again with 'python -m eaglerl.kernels.tune'"
        ) from error
    return {key: Tiles(**dict(tiles)) for key, tiles in content.tiles.items()}
