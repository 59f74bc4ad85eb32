"""Files in requests: as parts of a form, or one file of rows that is the body."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Sequence

from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from service.problems import BadRequest

MAX_FILES = 256
FORM_PIECE = 2**16
"""Bytes of a form that are parsed at once, on the event loop: the worst ones take 5 ms."""
FORM = "multipart/form-data"
TABLE_TYPES = ("text/csv", "application/vnd.apache.parquet", "application/vnd.apache.arrow.file")
"""Media types of a file of rows that is a body by itself; its bytes alone decide what it is."""
OR_FILES = f"; or files, as {FORM}, or one file of rows as {', '.join(TABLE_TYPES)}"
"""The end of a message that begins with JSON."""


async def read_upload(
    request: Request, kind: str, texts: Sequence[str] = (), max_texts: int = MAX_FILES
) -> tuple[list[tuple[str, bytes]], dict[str, list[str]]]:
    """Read the files of a form, or a file of rows that is the body.

    Args:
        request: the request.
        kind: its media type, `FORM` or one of `TABLE_TYPES`.
        texts: names that a form's parts of text may have, beside its ``files``.
        max_texts: how many of them a form may have.

    Returns:
        Name, for error messages, and content of each file; and the texts by name.

    Raises:
        BadRequest: the form has other parts.
        HTTPException: 400, the form is broken, or has too many parts.
    """
    if kind != FORM:
        return [("the body", await request.body())], {name: [] for name in texts}
    body = await request.body()
    check_delimiters(body, request.headers["content-type"])
    pieces = in_pieces(body)
    parser = MultiPartParser(request.headers, pieces, max_files=MAX_FILES, max_fields=max_texts)
    try:
        form = await parser.parse()
    except MultiPartException as error:  # a broken body, or too many parts
        raise HTTPException(400, error.message) from None
    try:
        if set(form) - {"files", *texts}:
            others = f", and if need be {' and '.join(map(repr, texts))}" if texts else ""
            raise BadRequest(f"the form's parts are 'files'{others}; the rest is in the query")
        files = form.getlist("files")
        if not files or not all(isinstance(file, UploadFile) for file in files):
            raise BadRequest("send the files as parts named 'files', each with a file name")
        given: dict[str, list[str]] = {}
        for name in texts:
            given[name] = [value for value in form.getlist(name) if isinstance(value, str)]
            if len(given[name]) < len(form.getlist(name)):
                raise BadRequest(f"the parts named '{name}' are text, without a file name")
        uploads = [
            (f"file {i} ({(file.filename or 'no name')[:100]})", await file.read())
            for i, file in enumerate(files)
            if isinstance(file, UploadFile)
        ]
        return uploads, given
    finally:
        await form.close()


def check_delimiters(body: bytes, content_type: str) -> None:
    """Refuse a form of which a line begins like a delimiter and is none.

    RFC 2046, section 5.1.1, forbids such lines in a part. The parser would go through what follows
    each of them byte by byte: 15 MB of them would take seconds.

    Raises:
        HTTPException: 400.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if re.search(rb"\r\n--" + re.escape(boundary) + rb"(?!\r\n|--)", body):
        message = "a line of the form begins with the boundary: take a longer one, of random text"
        raise HTTPException(400, message)


async def in_pieces(body: bytes) -> AsyncGenerator[bytes]:
    """Yield a body piece by piece, with turns for other requests between them."""
    for start in range(0, len(body), FORM_PIECE):
        if start:
            await asyncio.sleep(0)
        yield body[start : start + FORM_PIECE]
