"""Reading of JSON, all in one place: regular files of limited size, checked against a schema.

A schema is a subclass of `Schema` or a pydantic `TypeAdapter`. Whatever is wrong with a file ends
in a `ValueError` that names the file, the key, what was given and what is allowed: a pipe or a
device in place of a file, a file that is too large, invalid JSON, a duplicate key, NaN, nesting or
numbers of any length, a value of the wrong type or out of range.
"""

from __future__ import annotations

import functools
import json
import re
import reprlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar, cast

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

#: Largest file of settings, in bytes; those of eaglerl have a few thousand.
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
    # The parser refuses the words NaN and Infinity; only numbers that overflow are left to find.
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
#: The same with NaN and infinities allowed, for use with `allow_nan`.
AnyObject = dict[str, JsonValue]
#: A list that is checked up to its first wrong item, so that a schema never collects a million
#: errors.
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
        MissingFileError: the file is missing; a ValueError and a FileNotFoundError.
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
    """Parse and check JSON that was read already, such as a line of a file.

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
        # Lone surrogates cannot be encoded; passed on, they are refused by the parser.
        data = data.encode("utf-8", "surrogatepass")
    try:
        value = jiter.from_json(data, allow_inf_nan=allow_nan, catch_duplicate_keys=True)
    except ValueError as error:
        raise ValueError(f"{where} cannot be read: it is not valid JSON: {error}") from None
    if form is not None:
        _check_form(value, form, where)
    try:
        # Validated from the text, not from `value`: strict JSON mode lets a list become a tuple and
        # converts nothing else.
        return _adapter(schema).validate_json(data, strict=True)
    except ValidationError as error:
        raise ValueError(_explained(error, where)) from None


def check_json(value: object, schema: type[_T] | TypeAdapter[_T], where: str) -> _T:
    """Check JSON values in memory: dicts, lists, texts and numbers.

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
    """Read a file of JSON lines, for `parse_json`.

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
        # Two bytes more: the end of the line, and one that shows that the line is longer.
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


def _adapter(schema: type[_T] | TypeAdapter[_T]) -> TypeAdapter[_T]:
    if isinstance(schema, TypeAdapter):
        return schema
    # A type is hashable, which mypy does not see of `type[_T]`.
    return cast("TypeAdapter[_T]", _made_adapter(cast("Hashable", schema)))


@functools.cache
def _made_adapter(schema: Hashable) -> TypeAdapter[object]:
    return TypeAdapter(cast("type[object]", schema))


def _explained(error: ValidationError, where: str) -> str:
    """Describe the first error in a sentence, and count the others."""
    if error.error_count() > _MOST_ERRORS:
        # pydantic cannot name the first error without building all of them.
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
        # The messages of our own checks contain the value.
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
    """Format a location, as in ``shards[3].file``."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return "".join(parts).removeprefix(".")


def shortly(value: object) -> str:
    """Format a value for a message, cut if it is long."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 60
    short.maxdict = short.maxlist = short.maxtuple = 5
    short.maxlevel = 2
    return short.repr(value)
