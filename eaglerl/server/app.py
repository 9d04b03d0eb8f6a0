"""The web app, put together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from eaglerl.server.completions_api import completion_routes
from eaglerl.server.errors import add_error_handlers
from eaglerl.server.live_api import live_routes, page_routes
from eaglerl.server.middleware import Gate
from eaglerl.server.monitoring_api import monitoring_routes
from eaglerl.server.service import Service


def create_app(
    service: Service, *, api_key: str | None = None, hosts: Collection[str] | None = None
) -> FastAPI:
    """The app of a service; its engine starts and stops with it.

    Args:
        service: what is served.
        api_key: what clients must send as ``Authorization: Bearer``; None lets everybody in.
        hosts: names under which it may be asked; None for any.

    Raises:
        ValueError: an empty key.
    """
    if api_key is not None and not api_key.strip():
        raise ValueError("api_key must not be empty; None is for a server without a key")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.engine.start()
        try:
            yield
        finally:
            service.engine.stop()

    # The pages that show the API would come from another server.
    app = FastAPI(
        title="eaglerl",
        version=version("eaglerl"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(
        Gate, max_body_bytes=service.limits.max_body_bytes, api_key=api_key, hosts=hosts
    )
    add_error_handlers(app)
    app.include_router(completion_routes(service))
    app.include_router(monitoring_routes(service))
    app.include_router(live_routes(service))
    app.include_router(page_routes())
    return app
