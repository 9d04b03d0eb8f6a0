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


def stored_tiles(
    device_name: str, form: str, k: int, dtype: torch.dtype, rows: int
) -> Tiles | None:
    """The choice for a device, or None where none was measured.

    Args:
        device_name: As torch names it.
        form: "fused", "folded" or "features".
        k: Width of a tapped layer, or of the features.
        dtype: Of the weights.
        rows: Rows that a launch multiplies, rounded up to a power of two.

    Raises:
        ValueError: The file is damaged.
    """
    return _read(tuning_path()).get(_key(device_name, form, k, dtype, rows))


def store_tiles(
    device_name: str, form: str, k: int, dtype: torch.dtype, rows: int, tiles: Tiles
) -> None:
    """Adds a choice to the file, which is replaced as a whole; arguments as in `stored_tiles`."""
    path = tuning_path()
    # Another process may have added to it.
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
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
        if content["format"] != _FORMAT:
            raise ValueError(f"its format is {content['format']}, not {_FORMAT}")
        return {key: Tiles(**fields) for key, fields in content["tiles"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}): remove it, or make it anew with "
            "'python -m eaglerl.kernels.tune'"
        ) from error
