"""The one place that reads JSON: from a regular file, of a bounded size, against a declared schema.

A schema is a subclass of `Schema`, or a pydantic `TypeAdapter`. Everything that is wrong with a
file, whatever it holds, ends in a `ValueError` that names the file, the key, what was given and
what is allowed, before anything is made of it: a file that is none (a pipe would block, a device
never end), one that is too large, no JSON, a key that occurs twice, NaN, nesting without end,
numbers without end, and values of another type or out of their range.
"""

from __future__ import annotations

import functools
import json
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import jiter
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    TypeAdapter,
    ValidationError,
)

from eaglerl.regular_file import open_regular, read_regular

#: Largest file of settings, in bytes; those of eaglerl have some thousands.
MAX_BYTES = 1 << 20
#: Longest line of a file of JSON lines, in bytes.
MAX_LINE_BYTES = 1 << 26

_T = TypeVar("_T")
_MOST_ERRORS = 5000
#: pydantic's kinds of error in the words of this package.
_ALLOWED = {
    "int_type": "an integer",
    "float_type": "a number",
    "string_type": "a text",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "dataclass_type": "an object",
    "finite_number": "a finite number",
    "greater_than_equal": "at least {ge}",
    "greater_than": "above {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "below {lt}",
}


class Schema(BaseModel):
    """What a JSON object must hold: its keys, their types and ranges.

    Strict: no other keys, no conversion of a text or a bool to a number, no NaN or infinity. A
    number without a point is a float, too; a list becomes a tuple where the field is one.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class VersionedSchema(Schema):
    """A schema of a file that says its format and version, which `read_json` compares."""

    format: str
    version: int


def _check_finite(value: JsonValue) -> JsonValue:
    # Only what overflows is left: the parser refuses the words NaN and Infinity.
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, float) and item - item != 0.0:
            raise ValueError(f"must hold finite numbers, got {item}")
        if isinstance(item, list):
            pending.extend(item)
        elif isinstance(item, dict):
            pending.extend(item.values())
    return value


#: An object of any JSON values, all numbers finite.
JsonObject = Annotated[dict[str, JsonValue], AfterValidator(_check_finite)]
#: The same where NaN and infinities are values like others: with `allow_nan`.
AnyObject = dict[str, JsonValue]
#: A list that is wrong at its first wrong item: a schema never collects a million errors.
Items = Annotated[tuple[_T, ...], Field(fail_fast=True)]
#: A positive size from which memory may be allocated; no model or tree comes near the largest.
Size = Annotated[int, Field(ge=1, le=1 << 20)]
#: A token id; shards keep them as int32.
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
#: A count of tokens or steps.
Count = Annotated[int, Field(ge=0, le=(1 << 63) - 1)]
#: Seconds.
Seconds = Annotated[float, Field(ge=0.0, lt=1e9)]


def read_json(
    path: str | Path,
    schema: type[_T] | TypeAdapter[_T],
    what: str,
    *,
    form: tuple[str, int] | None = None,
    max_bytes: int = MAX_BYTES,
    allow_nan: bool = False,
) -> _T:
    """Read a file of JSON.

    Args:
        path: the file.
        schema: what it must hold; a `VersionedSchema` where `form` is given.
        what: the file in words, such as "cost table".
        form: values of "format" and "version" that the file must have.
        max_bytes: largest file that is read.
        allow_nan: take the words NaN and Infinity, which JSON lacks and Python writes.

    Returns:
        The content, checked.

    Raises:
        MissingFileError: there is none; a ValueError and a FileNotFoundError.
        ValueError: it cannot be read, or holds something else; the message says where and what.
    """
    data = read_regular(path, what, max_bytes=max_bytes)
    return parse_json(data, schema, f"the {what} {str(path)!r}", form=form, allow_nan=allow_nan)


def parse_json(
    data: bytes | str,
    schema: type[_T] | TypeAdapter[_T],
    where: str,
    *,
    form: tuple[str, int] | None = None,
    allow_nan: bool = False,
) -> _T:
    """Check JSON that was read already: a line, or what another file holds.

    Args:
        data: the text.
        schema: see `read_json`.
        where: what it is and where it lies, for messages.
        form: see `read_json`.
        allow_nan: see `read_json`.

    Raises:
        ValueError: see `read_json`.
    """
    if isinstance(data, str):
        # Lone surrogates have no encoding: the parser says that they are wrong.
        data = data.encode("utf-8", "surrogatepass")
    try:
        value = jiter.from_json(data, allow_inf_nan=allow_nan, catch_duplicate_keys=True)
    except ValueError as error:
        raise ValueError(f"{where} cannot be read: it is not valid JSON: {error}") from None
    if form is not None:
        _check_form(value, form, where)
    try:
        # From the text again: there a list may become a tuple, and nothing else is converted.
        return _adapter(schema).validate_json(data, strict=True)
    except ValidationError as error:
        raise ValueError(_explained(error, where)) from None


def check_json(value: object, schema: type[_T] | TypeAdapter[_T], where: str) -> _T:
    """Check JSON values that a part of the program holds: dicts, lists, texts and numbers.

    Args:
        value: the values.
        schema: see `read_json`.
        where: see `parse_json`.

    Raises:
        ValueError: see `read_json`.
    """
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{where} must consist of JSON values: {error}") from None
    return parse_json(text, schema, where, allow_nan=True)


@dataclass(frozen=True)
class Line:
    """A line of a file.

    Attributes:
        number: from 1.
        data: without its end.
        ended: whether it has one; without, the process that wrote it may have been killed.
        where: what it is and where it lies, for messages.
    """

    number: int
    data: bytes
    ended: bool
    where: str


def read_lines(
    path: str | Path,
    what: str,
    *,
    max_line_bytes: int = MAX_LINE_BYTES,
    keep_blank: bool = False,
) -> Iterator[Line]:
    """The lines of a file of JSON lines, for `parse_json`.

    Args:
        path: the file.
        what: see `read_json`.
        max_line_bytes: longest line that is read.
        keep_blank: also yield lines of blanks alone, which are left out otherwise.

    Raises:
        MissingFileError: see `read_json`.
        ValueError: it cannot be read, or a line is longer.
    """
    with open_regular(path, what) as file:
        number = 0
        # Two more: the line's end, and one that shows that there is more.
        while data := file.readline(max_line_bytes + 2):
            number += 1
            where = f"line {number} of the {what} {str(path)!r}"
            ended = data.endswith(b"\n")
            data = data.removesuffix(b"\n")
            if len(data) > max_line_bytes:
                raise ValueError(f"{where} must have at most {max_line_bytes:,} bytes, got more")
            if keep_blank or data.strip():
                yield Line(number, data, ended, where)


def _check_form(value: object, form: tuple[str, int], where: str) -> None:
    name, version = form
    if not isinstance(value, dict) or value.get("format") != name:
        raise ValueError(f'{where} is none: "format" must be "{name}"')
    given = value.get("version")
    if given != version or isinstance(given, bool):
        raise ValueError(f"version of {where} must be {version}, got {shortly(given)}")


@functools.cache
def _adapter(schema: type[_T] | TypeAdapter[_T]) -> TypeAdapter[_T]:
    return schema if isinstance(schema, TypeAdapter) else TypeAdapter(schema)


def _explained(error: ValidationError, where: str) -> str:
    """The first thing that is wrong, as a sentence, and how many more there are."""
    if error.error_count() > _MOST_ERRORS:
        # To name the first, all would be made.
        return f"{where} is wrong at {error.error_count():,} places"
    first, *more = error.errors(include_url=False)
    key, kind, given = _key(first["loc"]), first["type"], shortly(first["input"])
    if kind == "missing":
        sentence = f"{where} lacks {key!r}"
    elif kind == "extra_forbidden":
        sentence = f"{where} has an unknown key {key!r}"
    else:
        allowed = _allowed(kind, first["msg"], first.get("ctx", {}))
        subject = f"{key!r} of {where}" if key else where
        sentence = f"{subject} {allowed}" if allowed.startswith("must") else f"{subject}: {allowed}"
        # Own checks say it themselves.
        if kind != "value_error":
            sentence += f", got {given}"
    return f"{sentence} (and {len(more)} more)" if more else sentence


def _allowed(kind: str, message: str, context: Mapping[str, object]) -> str:
    if (known := _ALLOWED.get(kind)) is not None:
        return f"must be {known.format_map(context)}"
    if kind == "literal_error":
        expected = str(context["expected"])
        return f"must be one of {expected}" if " or " in expected else f"must be {expected}"
    message = message.removeprefix("Value error, ").replace(" after validation", "")
    return re.sub(r"^\w+ should", "must", message)


def _key(location: Sequence[int | str]) -> str:
    """As in ``shards[3].file``."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return "".join(parts).removeprefix(".")


def shortly(value: object) -> str:
    """A value for a message, cut where it is long."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 60
    short.maxdict = short.maxlist = short.maxtuple = 5
    short.maxlevel = 2
    return short.repr(value)
