"""What the process of a worker keeps between the units that it does."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from eaglerl.cli.shared.options import DecoderSettings

_T = TypeVar("_T")
_D = TypeVar("_D", bound=DecoderSettings)

_kept: dict[str, Any] = {}


def keep(key: str, make: Callable[[], _T]) -> _T:
    """Return what was made for a key before, such as a loaded model; else make it now.

    What was kept for another key is dropped first: a worker has memory for one.
    """
    if key not in _kept:
        _kept.clear()
        _kept[key] = make()
    return _kept[key]


def model_for_nodes(model: str) -> str:
    """Return a model's name or folder so that it means the same in another working directory."""
    from eaglerl.prepare import MODELS

    folder = os.path.expanduser(model)
    return os.path.abspath(folder) if model not in MODELS and os.path.isdir(folder) else model


def for_nodes(settings: _D, threads: int) -> _D:
    """Return settings that mean the same in another working directory.

    Args:
        settings: settings of a command.
        threads: CPU threads of a worker.
    """
    draft = settings.draft and Path(os.path.abspath(settings.draft.expanduser()))
    model = model_for_nodes(settings.model)
    return dataclasses.replace(settings, model=model, draft=draft, threads=threads)
