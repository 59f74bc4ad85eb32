"""`GET /metrics`: Prometheus metrics."""

from __future__ import annotations

import anyio.to_thread
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from service.endpoint import Context, Endpoint
from service.keys import allow
from service.model_metrics import ModelCollector
from service.openapi import TEXT, errors


async def get_metrics(context: Context, request: Request) -> Response:
    """Tell the metrics of all workers; open unless some key has the scope for them."""
    if context.keys.metrics_need_one():
        allow(context.keys.authenticate(request.scope["headers"]), "metrics")
    models = ModelCollector(context.holders, context.windows)
    content = await anyio.to_thread.run_sync(context.metrics.render, models)
    return Response(content, headers={"Content-Type": CONTENT_TYPE_LATEST})


ENDPOINT = Endpoint(
    "GET",
    "/metrics",
    get_metrics,
    {
        "operationId": "getMetrics",
        "tags": ["operations"],
        "summary": "Prometheus metrics",
        "description": "Of all workers, in the text format.",
        "responses": {**TEXT, **errors(401, 403, 408, 413, 429, 431, 503, 504)},
    },
    is_counted=False,
)
