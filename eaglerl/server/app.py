"""The web application: middleware, error handlers and routes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from eaglerl.server.completions_api import completion_routes
from eaglerl.server.errors import add_error_handlers
from eaglerl.server.live_api import live_routes, page_routes
from eaglerl.server.middleware import RequestChecks
from eaglerl.server.monitoring_api import monitoring_routes
from eaglerl.server.service import Service


def create_app(
    service: Service, *, api_key: str | None = None, hosts: Collection[str] | None = None
) -> FastAPI:
    """Make the application of a service; the engine starts and stops with it.

    Args:
        service: the service.
        api_key: key that clients must send as ``Authorization: Bearer``; None for no key.
        hosts: allowed values of the header ``Host``; None for any.

    Raises:
        ValueError: the key is empty.
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

    # No docs pages: they load scripts from another server.
    app = FastAPI(
        title="eaglerl",
        version=version("eaglerl"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(
        RequestChecks, max_body_bytes=service.limits.max_body_bytes, api_key=api_key, hosts=hosts
    )
    add_error_handlers(app)
    app.include_router(completion_routes(service))
    app.include_router(monitoring_routes(service))
    app.include_router(live_routes(service))
    app.include_router(page_routes())
    return app
