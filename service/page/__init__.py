"""The page at ``/``: a document, its style and its script, served as they lie in this folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

HEADERS = {
    # Only this server is spoken to; `blob:` shows pictures that a request with a key fetched.
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


async def get_page(request: Request) -> Response:
    """One of the page's files."""
    content = CONTENT[request.url.path]
    tag = hashlib.sha256(content).hexdigest()[:16]
    return cached(request, content, tag, FILES[request.url.path][1], HEADERS)


def cached(
    request: Request, content: bytes, tag: str, media_type: str, headers: dict[str, str]
) -> Response:
    """Answer with content, or 304 if the client has it: it must ask, but need not fetch again.

    Args:
        request: its If-None-Match names the tags that the client has (RFC 9110, 13.1.2).
        content: of the answer.
        tag: another for each content.
        media_type: of the content.
        headers: of both answers.
    """
    etag = f'"{tag}"'
    headers = {**headers, "ETag": etag, "Cache-Control": "no-cache"}
    named = request.headers.get("if-none-match", "").split(",")
    if {name.strip().removeprefix("W/") for name in named} & {etag, "*"}:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=media_type)
