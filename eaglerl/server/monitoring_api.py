"""The routes for whoever watches over the server: is it well, and what has it done."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from eaglerl.server.errors import ApiError, json_response
from eaglerl.server.metrics import CONTENT_TYPE
from eaglerl.server.service import Service


def monitoring_routes(service: Service) -> APIRouter:
    """``/health`` and ``/metrics``; they need no key, and tell nothing of any request's content."""
    router = APIRouter(tags=["monitoring"])

    @router.get("/health")
    async def health() -> Response:
        """Whether requests are decoded: 200, or 503 while the server shuts down or has failed."""
        if not service.engine.healthy:
            raise ApiError(
                503,
                "nothing is decoded any more",
                code="unhealthy",
                headers={"Retry-After": "1"},
            )
        return json_response({"status": "ok", **service.engine.load})

    @router.get("/metrics")
    async def metrics() -> Response:
        """Counts in Prometheus's text format."""
        return Response(service.metrics.expose(), headers={"Content-Type": CONTENT_TYPE})

    return router
