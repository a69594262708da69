"""The HTTP surface for people and machines that watch: health, readiness, metrics, info. No work is taken here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.middleware.trustedhost import TrustedHostMiddleware

from farsum_proto import wire
from farsum_server.metrics import Metrics


def http_app(info: Callable[[], wire.Info], draining: Callable[[], bool], metrics: Metrics) -> FastAPI:
    app = FastAPI(title="farsum", version=info().version)
    # A page in a browser must not reach us by a name that it makes resolve to 127.0.0.1.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "[::1]", "::1"])

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process lives."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz(response: Response) -> dict[str, str]:
        """200 when work is taken; 503 while workers start and while the server drains."""
        if info().ready:
            return {"status": "ready"}
        response.status_code = 503
        return {"status": "draining" if draining() else "starting"}

    @app.get("/metrics")
    async def metrics_page() -> Response:
        """Prometheus text."""
        return Response(metrics.page(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/info")
    async def info_page() -> dict[str, Any]:
        """Version, protocols and devices."""
        return asdict(info())

    return app
