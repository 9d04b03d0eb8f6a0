"""Routes of the live view: the page's files, what it may choose from, and live sessions."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.responses import FileResponse, Response

from eaglerl.server.completions_api import admit, told_error
from eaglerl.server.errors import ApiError, json_response
from eaglerl.server.live import LiveEvent, LiveFailed, LiveSession
from eaglerl.server.schemas import ControlRequest, LiveRequest
from eaglerl.server.service import Service
from eaglerl.server.streams import Channel, EventStream, server_sent_event
from eaglerl.server.tasks import WithdrawnError

_STATIC = Path(__file__).parent / "static"
_MEDIA_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
# The page loads nothing from other sites, and no other site may embed it.
_PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def page_routes() -> APIRouter:
    """Make the routes of the page at ``/`` and of the files that it loads."""
    router = APIRouter(include_in_schema=False)
    # Names are looked up in this table, so that no path can leave the folder.
    files = {path.name: path for path in _STATIC.iterdir() if path.suffix in _MEDIA_TYPES}

    @router.get("/")
    async def page() -> Response:
        return _file(files["index.html"])

    @router.get("/static/{name}")
    async def static(name: str) -> Response:
        if name not in files:
            raise ApiError(404, f"there is no file {name!r}", code="not_found")
        return _file(files[name])

    return router


def _file(path: Path) -> Response:
    return FileResponse(path, headers=_PAGE_HEADERS, media_type=_MEDIA_TYPES[path.suffix])


def live_routes(service: Service) -> APIRouter:
    """Make the routes below ``/live``."""
    router = APIRouter(prefix="/live", tags=["live"])
    sessions: dict[str, LiveSession] = {}

    @router.get("/info")
    async def info() -> Response:
        """Tell what the page may choose from."""
        return json_response(_info(service))

    @router.post("/sessions")
    async def start(body: LiveRequest) -> Response:
        """Start a session; the answer is its events, and the session ends with the connection."""
        return await _start(service, sessions, body)

    @router.post("/sessions/{name}/control")
    async def control(name: str, body: ControlRequest) -> Response:
        """Run or pause a session, or let it run one cycle."""
        session = sessions.get(name)
        if session is None:
            raise ApiError(404, "there is no such live session", code="session_not_found")
        service.engine.tell(lambda: session.control(body.action))
        return Response(status_code=204)

    return router


def _info(service: Service) -> dict[str, Any]:
    modes = [
        {"name": mode.name, "description": mode.description, "learned": mode.trained}
        for mode in service.modes
    ]
    return {
        "model": service.model_name,
        "chat": service.tokenizer.chat_template is not None,
        "modes": modes,
        "default_mode": service.modes.default,
        "side_by_side": service.modes.side_by_side(),
        "max_tokens": service.limits.live_max_tokens,
    }


async def _start(service: Service, sessions: dict[str, LiveSession], body: LiveRequest) -> Response:
    """Start a session and keep it among `sessions` until its connection closes."""
    modes = [service.find_mode(None, name, "modes") for name in body.modes]
    prompt_ids = await asyncio.to_thread(_encode, service, body)
    service.check_prompt(prompt_ids, "prompt")
    _check_length(service, body, len(prompt_ids))
    channel: Channel[LiveEvent | LiveFailed] = Channel()
    session = LiveSession(
        service,
        modes,
        prompt_ids,
        channel.put,
        {
            "max_new_tokens": body.max_tokens,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "seed": body.seed,
        },
        running=not body.paused,
    )
    admit(service.engine.attach, session)
    name = uuid.uuid4().hex
    sessions[name] = session

    def on_close() -> None:
        del sessions[name]
        service.engine.withdraw(session)

    opening = {
        "id": name,
        "lanes": [{"mode": mode.name} for mode in modes],
        "prompt_tokens": len(prompt_ids),
        "running": session.running,
    }
    events = _events(channel, opening, service.limits.live_idle_seconds)
    return EventStream(events, on_close)


def _encode(service: Service, body: LiveRequest) -> list[int]:
    if body.chat:
        return service.encode_chat([{"role": "user", "content": body.prompt}])
    return service.encode_text(body.prompt)


def _check_length(service: Service, body: LiveRequest, prompt_tokens: int) -> None:
    most = service.limits.live_max_tokens
    if prompt_tokens + body.max_tokens > most:
        raise ApiError(
            413,
            f"the prompt has {prompt_tokens} tokens; with max_tokens={body.max_tokens} that is "
            f"more than the {most} of a live session",
            code="context_length_exceeded",
            parameter="max_tokens",
        )


async def _events(
    channel: Channel[LiveEvent | LiveFailed], opening: dict[str, Any], idle_seconds: float
) -> AsyncIterator[str]:
    yield server_sent_event(opening, "session")
    while True:
        try:
            event = await asyncio.wait_for(channel.get(), idle_seconds)
        except TimeoutError:
            error = ApiError(408, f"the session was idle for {idle_seconds:.0f} s", code="idle")
            yield server_sent_event(error.content, "error")
            return
        if isinstance(event, LiveFailed):
            # A session is withdrawn because its own connection has closed.
            if not isinstance(event.error, WithdrawnError):
                yield server_sent_event(told_error(event.error).content, "error")
            return
        yield server_sent_event(event.content, event.name)
        if event.name == "end":
            return
