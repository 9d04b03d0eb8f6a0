"""Old names of attributes and arguments, which keep working for one release and warn.

Remove this module, and every use of it, in the release after 0.2.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


class RenamedAttribute:
    """The old name of an attribute or method, for the body of its class."""

    def __init__(self, new: str) -> None:
        """Stand for the attribute that is called `new` now."""
        self._new = new
        self._old = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self._old = name

    def __get__(self, instance: object | None, owner: type) -> Any:
        _warn_renamed(f"{owner.__name__}.{self._old}", f"{owner.__name__}.{self._new}")
        return getattr(owner if instance is None else instance, self._new)


def renamed_arguments(**names: str) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Make a decorator that accepts keyword arguments under their old names too.

    Args:
        names: old name = new name. The old one counts where both are given, as
            `dataclasses.replace` does with a field's old name.
    """

    def decorate(function: Callable[_P, _T]) -> Callable[_P, _T]:
        @functools.wraps(function)
        def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            for old in names.keys() & kwargs.keys():
                _warn_renamed(f"The argument {old}", names[old])
                kwargs[names[old]] = kwargs.pop(old)
            return function(*args, **kwargs)

        return wrapper

    return decorate


def renamed_attributes(**names: str) -> Callable[[type[_T]], type[_T]]:
    """Make a decorator that gives a class its attributes under their old names too.

    Args:
        names: old name = new name.
    """

    def decorate(owner: type[_T]) -> type[_T]:
        for old, new in names.items():
            attribute = RenamedAttribute(new)
            attribute.__set_name__(owner, old)
            setattr(owner, old, attribute)
        return owner

    return decorate


def renamed_fields(**names: str) -> Callable[[type[_T]], type[_T]]:
    """Make a decorator that gives a dataclass its fields under their old names too.

    Args:
        names: old name = new name.
    """

    def decorate(owner: type[_T]) -> type[_T]:
        setattr(owner, "__init__", renamed_arguments(**names)(owner.__init__))  # noqa: B010
        return renamed_attributes(**names)(owner)

    return decorate


def _warn_renamed(old: str, new: str) -> None:
    warnings.warn(
        f"{old} is deprecated and goes with the next release: use {new}",
        DeprecationWarning,
        stacklevel=3,
    )
