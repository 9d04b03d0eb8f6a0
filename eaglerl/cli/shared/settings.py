"""Commands whose options are the fields of a settings dataclass."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

from eaglerl.cli.shared.terminal import command

_S = TypeVar("_S")


def settings_command(function: Callable[[_S], None]) -> Callable[..., None]:
    """Turn a function of one settings dataclass into a command with one option per field.

    The fields are annotated with typer's options, in the order of the help, where those of a base
    class come last. Checks that need no
    model belong in the dataclass's `__post_init__`; a `typer.BadParameter` from there is reported
    as wrong usage. The dataclass needs a field `debug`, see `command`.

    Args:
        function: takes the settings; its docstring is the command's help.

    Returns:
        A function with the dataclass's fields as keyword arguments, for typer.
    """
    hints = get_type_hints(function)
    (settings_type,) = (hint for name, hint in hints.items() if name != "return")
    annotations = get_type_hints(settings_type, include_extras=True)

    @command
    @functools.wraps(function)
    def run(**options: Any) -> None:
        function(settings_type(**options))

    # typer asks `inspect.signature` for the options and `get_type_hints` for their types.
    run.__annotations__ = annotations
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # as `inspect` allows
        [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty
                if field.default is dataclasses.MISSING
                else field.default,
                annotation=annotations[field.name],
            )
            for field in _own_first(settings_type)
        ]
    )
    return run


def _own_first(settings_type: Any) -> list[dataclasses.Field[Any]]:
    """Return a dataclass's fields, those that it declares itself before those of its bases."""
    own = inspect.get_annotations(settings_type)
    return sorted(dataclasses.fields(settings_type), key=lambda field: field.name not in own)
