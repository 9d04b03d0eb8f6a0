"""Packages that offer names of their modules without importing them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, str], extras: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Make a package's ``__getattr__``, ``__dir__`` and ``__all__`` (PEP 562).

    Args:
        package: its ``__name__``.
        homes: every name that it offers, and the module that defines it.
        extras: libraries that may be missing, and the extra of eaglerl that installs each.

    Returns:
        The two functions, and the names in alphabetical order. A name is imported when it is first
        asked for. An ImportError names the extra where one of `extras` is missing.
    """

    def __getattr__(name: str) -> Any:  # noqa: N807
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            value = getattr(importlib.import_module(homes[name]), name)
        except ModuleNotFoundError as error:
            if error.name not in (extras or {}):
                raise
            raise ImportError(
                f"{name} needs {error.name}: install the extra with "
                f"pip install 'eaglerl[{extras[error.name]}]'"
            ) from error
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:  # noqa: N807
        return sorted({*vars(sys.modules[package]), *homes})

    return __getattr__, __dir__, sorted(homes)
