"""Routes for monitoring: health and metrics."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from eaglerl.server.errors import ApiError, json_response
from eaglerl.server.metrics import CONTENT_TYPE
from eaglerl.server.service import Service


def monitoring_routes(service: Service) -> APIRouter:
    """Make ``/health`` and ``/metrics``, which need no key and expose no request's content."""
    router = APIRouter(tags=["monitoring"])

    @router.get("/health")
    async def health() -> Response:
        """Answer 200 while requests are decoded, 503 if the server is stopping or has failed."""
        if not service.engine.healthy:
            raise ApiError(
                503,
                "the server is stopping or has failed: it no longer decodes",
                code="unhealthy",
                headers={"Retry-After": "1"},
            )
        return json_response({"status": "ok", **service.engine.load})

    @router.get("/metrics")
    async def metrics() -> Response:
        """Expose the metrics in Prometheus's text format."""
        return Response(service.metrics.expose(), headers={"Content-Type": CONTENT_TYPE})

    return router
