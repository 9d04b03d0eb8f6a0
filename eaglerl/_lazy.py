"""Lazy packages: they offer names of their modules without importing them."""

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
        package: the package's ``__name__``.
        homes: every public name of the package, and the module that defines it.
        extras: optional libraries, and the extra of eaglerl that installs each.

    Returns:
        The two functions, and the names in alphabetical order. A name is imported on first use. If
        one of the optional libraries is missing, the ImportError names the extra to install.
    """

    def __getattr__(name: str) -> Any:  # noqa: N807
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            value = getattr(importlib.import_module(homes[name]), name)
        except ModuleNotFoundError as error:
            extra = (extras or {}).get(error.name or "")
            if extra is None:
                raise
            raise ImportError(
                f"{name} needs {error.name}: install the extra with pip install 'eaglerl[{extra}]'"
            ) from error
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:  # noqa: N807
        return sorted({*vars(sys.modules[package]), *homes})

    return __getattr__, __dir__, sorted(homes)
