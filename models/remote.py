"""What goes wrong behind a URL: told by name, and tried again where it may pass.

fsspec and each file system below it have errors of their own; over HTTP even a server that is busy
becomes a `FileNotFoundError`. What really happened is found in the chain of causes.
"""

from __future__ import annotations

import http
import logging
import socket
import ssl
import time
from collections.abc import Callable
from typing import TypeVar

from models.errors import DataError, UnreachableError, causes

T = TypeVar("T")
WAITS = (1.0, 2.0, 4.0, 8.0)
"""Seconds between attempts. Whoever starts the process may try again later still."""
PASSING = {408, 425, 429, 500, 502, 503, 504}
"""Statuses of HTTP that say nothing of the request."""
BROKEN = {
    "ConnectionError",
    "TimeoutError",
    "ClientConnectionError",
    "ClientPayloadError",
    "HTTPClientError",
    "IncompleteRead",
    "SSLEOFError",
    "SSLZeroReturnError",
}
"""Classes of errors of a connection, by name: of Python, aiohttp (of ``http://``) and botocore (of
``s3://``), which need not be installed."""


def reached(url: str, step: Callable[[], T]) -> T:
    """Run a step that reads from a URL, again after a while if what goes wrong may pass.

    Args:
        url: for messages.
        step: may run several times.

    Raises:
        UnreachableError: the server does not answer, or is busy, however often it is asked.
        DataError: access is denied, nothing is there, or the server is not trusted.
        Exception: whatever else the step raises.
    """
    for wait in (*WAITS, None):
        try:
            return step()
        except Exception as error:  # each file system, archive and parser has its own kinds
            found = fault(url, error)
            if found is None:
                raise
            if wait is None or not isinstance(found, UnreachableError):
                raise found from error
            logging.getLogger(__name__).warning("%s; trying again in %g s", found, wait)
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def fault(url: str, error: BaseException) -> DataError | None:
    """Find out what a server or the way to it did wrong; None if an error is of another kind.

    Returns:
        An `UnreachableError` if it may pass, else a `DataError`; one line says what happened.
    """
    chain = list(causes(error))
    if any(isinstance(cause, PermissionError) for cause in chain):
        return None  # says more than its status
    status = http_status(error)
    if status is not None:
        return _refusal(url, status)
    for cause in chain:
        if words := _mistake(cause):
            return DataError(f"{url}: {words}")
    for cause in chain:
        if class_names(cause) & BROKEN:
            words = " ".join(str(cause).split()) or type(cause).__name__
            return UnreachableError(f"{url}: cannot be reached: {words}")
    return None


def _mistake(cause: BaseException) -> str | None:
    """Say what no repetition will mend about a connection; None if an error is of another kind."""
    # aiohttp's errors are of these classes too, but without what Python's say.
    if why := getattr(cause, "verify_message", None):
        return (
            f"its certificate is not trusted ({why}); name the file of its authority in "
            "SSL_CERT_FILE, for s3:// in AWS_CA_BUNDLE"
        )
    passes = class_names(cause) & BROKEN
    if isinstance(cause, ssl.SSLError) and hasattr(cause, "reason") and not passes:
        return f"no TLS connection ({cause.reason})"
    if isinstance(cause, socket.gaierror) and cause.errno != socket.EAI_AGAIN:
        return f"no such host ({cause.strerror})"
    return None


def class_names(error: BaseException) -> set[str]:
    """Names of an error's classes."""
    return {kind.__name__ for kind in type(error).__mro__}


def http_status(error: BaseException) -> int | None:
    """Return the status of HTTP, from 400 on, that an error or one of its causes tells of.

    They are aiohttp's, botocore's or those of requests.
    """
    for cause in causes(error):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            status = getattr(response, "status_code", getattr(cause, "status", None))
        if isinstance(status, int) and status >= 400:
            return status
    return None


def _refusal(url: str, status: int) -> DataError:
    names = {known.value: known.phrase for known in http.HTTPStatus}
    words = f"{status} {names.get(status, '')}".strip()
    if status in (401, 403, 407):
        return DataError(f"{url}: access denied ({words}); check the permissions or credentials")
    if status in (404, 410):
        return DataError(f"{url}: no such file, folder or bucket ({words})")
    kind = UnreachableError if status in PASSING else DataError
    return kind(f"{url}: the server answered {words}")
