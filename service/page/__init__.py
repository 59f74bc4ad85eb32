"""The page at ``/``: a document, its style and its script, served as they are in this folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from service.endpoint import Context, Endpoint, cached

HEADERS = {
    # The page asks only this server; `blob:` is for pictures that were fetched with a key.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
"""File and media type of each path."""
CONTENT = {path: (Path(__file__).parent / name).read_bytes() for path, (name, _) in FILES.items()}


async def get_file(context: Context, request: Request) -> Response:
    """Send one of the page's files."""
    content = CONTENT[request.url.path]
    tag = hashlib.sha256(content).hexdigest()
    return cached(request, content, tag, FILES[request.url.path][1], HEADERS)


ENDPOINTS = [Endpoint("GET", path, get_file) for path in FILES]
