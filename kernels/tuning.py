"""The tiles that were measured to be fastest, by device, width and dtype."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict
from pathlib import Path

import torch

from eaglerl.files import atomic_path, cache_root
from eaglerl.kernels._plan import Tiles

_FORMAT = 1


def tuning_path() -> Path:
    """The file of stored choices, in eaglerl's cache folder."""
    return cache_root() / "triton_tiles.json"


def _key(device_name: str, k: int, dtype: torch.dtype, folded: bool, rows: int) -> str:
    form = "folded" if folded else "fused"
    return f"{device_name}, k={k}, {str(dtype).removeprefix('torch.')}, {form}, rows={rows}"


@functools.cache
def _read(path: Path) -> dict[str, dict[str, int]]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it, or tune anew") from error
    return content["tiles"] if content.get("format") == _FORMAT else {}


def stored_tiles(
    device_name: str, k: int, dtype: torch.dtype, folded: bool, rows: int
) -> Tiles | None:
    """The choice for a device, or None where none was measured.

    Args:
        device_name: As torch names it.
        k: Width of a tapped layer, or of the features.
        dtype: Of the weights.
        folded: Whether the launch computes no g.
        rows: Rows that a launch multiplies, rounded up to a power of two.
    """
    found = _read(tuning_path()).get(_key(device_name, k, dtype, folded, rows))
    return None if found is None else Tiles(**found)


def store_tiles(
    device_name: str, k: int, dtype: torch.dtype, folded: bool, rows: int, tiles: Tiles
) -> None:
    """Adds a choice to the file, which is replaced as a whole."""
    path = tuning_path()
    _read.cache_clear()
    entries = dict(_read(path)) | {_key(device_name, k, dtype, folded, rows): asdict(tiles)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        text = json.dumps({"format": _FORMAT, "tiles": entries}, indent=1, sort_keys=True)
        temporary.write_text(text + "\n", encoding="utf-8")
    _read.cache_clear()
