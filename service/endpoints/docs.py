"""`GET /docs.json` and `/docs`: the OpenAPI description, and the page that shows it."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from service.endpoint import Context, Endpoint
from service.openapi import describe

# BentoML's own page loads a tag manager from outside; this one loads scripts of this server alone.
API_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<title>wgan-foundry API</title>
<link rel="stylesheet" href="static_content/swagger-ui.css"></head>
<body><div id="swagger-ui"></div>
<script src="static_content/swagger-ui-bundle.js"></script>
<script src="static_content/swagger-ui-standalone-preset.js"></script>
<script src="static_content/swagger-initializer.js"></script></body></html>"""


async def get_description(context: Context, request: Request) -> Response:
    """Describe all endpoints."""
    from service.endpoints import ENDPOINTS  # this module is in that list, too

    return JSONResponse(describe(ENDPOINTS, context.keys.is_needed, context.holders.names))


async def get_page(context: Context, request: Request) -> Response:
    """Send the page that shows the description."""
    return HTMLResponse(API_PAGE)


DESCRIPTION = Endpoint("GET", "/docs.json", get_description, is_counted=False)
PAGE = Endpoint("GET", "/docs", get_page, is_counted=False)
