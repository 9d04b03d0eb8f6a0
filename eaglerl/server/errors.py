"""Errors in the shape of OpenAI's API, whatever the fault."""

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


# What pydantic puts into the place of a field that may be of several types.
_KINDS = ("str", "list[int]", "list[str]", "list[list[int]]")


class ApiError(Exception):
    """What a client did wrong, or cannot have now.

    Attributes:
        status: of HTTP.
        message: a sentence for the client's author.
        code: a word for the client's program.
        parameter: the field that is at fault.
        headers: of the response.
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
        """The body of the response."""
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
        """The response."""
        return json_response(self.content, self.status, self.headers)


def json_response(
    content: Any, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """A response in ASCII, so that even half a surrogate pair in a client's text can be told."""
    body = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return Response(body, status, headers, media_type="application/json")


def add_error_handlers(app: FastAPI) -> None:
    """Answer all errors of an app in OpenAI's shape."""

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
        # Starlette raises it again for the server's log.
        return internal_error().response()


def internal_error() -> ApiError:
    """A fault of the server; what it was is told in its log alone."""
    return ApiError(500, "the server failed; its log says why", code="internal_error")


def _of_validation(error: RequestValidationError) -> ApiError:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "")
        return ApiError(400, f"the body is no JSON: {reason}", code="invalid_json")
    # The first part says that it is the body.
    place = ".".join(str(part) for part in first["loc"][1:] if part not in _KINDS)
    if first["type"] == "extra_forbidden":
        message = f"{place} cannot be served here; leave it out"
        return ApiError(400, message, code="unsupported_parameter", parameter=place)
    # Ours are whole sentences; pydantic says before them what raised them.
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
