"""Errors in the format of OpenAI's API."""

from __future__ import annotations

import json
import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

log = logging.getLogger("eaglerl.server")

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


# Parts of pydantic's error locations that name a branch of a union, not a field.
_KINDS = ("str", "list[int]", "list[str]", "list[list[int]]")


class ApiError(Exception):
    """An error that is sent to the client.

    Attributes:
        status: HTTP status.
        message: a sentence for people.
        code: a word for programs.
        parameter: the field that caused it.
        headers: extra headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        parameter: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.parameter = parameter
        self.headers = headers or {}

    @property
    def content(self) -> dict[str, Any]:
        """Body of the response."""
        kind = _TYPES.get(self.status)
        if kind is None:
            kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.parameter,
                "code": self.code,
            }
        }

    def response(self) -> Response:
        """Make the response."""
        return json_response(self.content, self.status, self.headers)


def json_response(
    content: Any, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """Make a JSON response in ASCII, which can carry even a lone surrogate from a client's text."""
    body = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return Response(body, status, headers, media_type="application/json")


def add_error_handlers(app: FastAPI) -> None:
    """Answer all errors of an app in OpenAI's format."""

    @app.exception_handler(ApiError)
    async def _api(request: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def _validation(request: Request, error: RequestValidationError) -> Response:
        return _of_validation(error).response()

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path}: {error.detail}"
        return ApiError(error.status_code, message, headers=dict(error.headers or {})).response()

    @app.exception_handler(Exception)
    async def _any(request: Request, error: Exception) -> Response:
        # Starlette raises it again, so that the server's log has it.
        return internal_error().response()


def internal_error() -> ApiError:
    """Make the answer to a fault of the server; only its log says what went wrong."""
    return ApiError(500, "the server failed; its log says why", code="internal_error")


def _of_validation(error: RequestValidationError) -> ApiError:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "")
        return ApiError(400, f"the body is not valid JSON: {reason}", code="invalid_json")
    # The first part of the location is always "body".
    place = ".".join(str(part) for part in first["loc"][1:] if part not in _KINDS)
    if first["type"] == "extra_forbidden":
        message = f"{place} is not supported by this server; leave it out"
        return ApiError(400, message, code="unsupported_parameter", parameter=place)
    # pydantic prefixes the messages of our own validators with the exception's kind.
    message = first["msg"].removeprefix("Value error, ")
    if not place and first["type"] == "value_error":
        return ApiError(400, message, code="invalid_value")
    if not place:
        return ApiError(
            400,
            "the body must be a JSON object, with the header Content-Type: application/json",
            code="invalid_json",
        )
    return ApiError(400, f"{place}: {message}", code="invalid_value", parameter=place)
