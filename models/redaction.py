"""Secrets kept out of messages and logs: passwords in URLs, signatures of links, tokens, keys.

Every `UserError`, every line that `complain` and `say` print, and after `redact_logs` every line of
a log goes through `redacted`.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import traceback
import warnings
from typing import Any
from urllib.parse import quote, quote_plus, unquote

HIDDEN = "***"
"""What stands in a secret's place."""
SHORTEST = 4
"""Characters of a value of the environment below which it is taken for no secret: it would hide
parts of any text."""
FLAGS = {"true", "false", "none", "null"}
"""Values of variables such as ``HF_HUB_DISABLE_IMPLICIT_TOKEN``, which are no secrets either."""
SECRET_NAME = (
    r"(?:password|passwd|secret|token|signature|credential|sig|api[-_]?keys?|(?:access|account)_?"
    r"key(?:_?id)?|connection_string|otlp_(?:\w+_)?headers)"
)
"""Pattern of how names of variables and of a URL's parameters end whose values are secret."""
SECRET_VARIABLE = re.compile(rf"\w*{SECRET_NAME}", re.IGNORECASE)
PATTERNS = [
    # A name and a password; of http:// a name alone may be a token.
    ("://", re.compile(r"(\w://[^\s/?#'\"<>@:]*:)[^\s/?#'\"<>]*(?=@)")),
    ("://", re.compile(r"(https?://)[^\s/?#'\"<>@:]+(?=@)", re.IGNORECASE)),
    ("=", re.compile(rf"(\b[\w-]{{,40}}{SECRET_NAME}=)[^\s&'\",;)]+", re.IGNORECASE)),
    (":", re.compile(rf"(\b[\w-]{{,40}}{SECRET_NAME}['\"]\s?:\s?['\"])[^'\"]+", re.IGNORECASE)),
    # Libraries have the headers of HTTP as bytes too.
    (" ", re.compile(r"(\bauthorization\W+(?:b['\"])?\w+\s+)[^\s'\"]{8,}", re.IGNORECASE)),
]
"""What a text must hold, and the pattern to look for then: what is kept, and a secret."""
FORMAT_WARNING = warnings.formatwarning
PASSWORD_IN_URL = re.compile(r"://[^\s/@:]*:(\S*)@")


def redacted(text: str) -> str:
    """Hide the secrets in a text.

    These are the passwords of URLs, values of parameters such as ``X-Amz-Signature``, credentials
    of HTTP, and whatever the environment's secret variables hold, such as
    ``MLFLOW_TRACKING_PASSWORD`` or ``AWS_SECRET_ACCESS_KEY``, wherever it stands in the text.

    >>> redacted("http://ann:pa$$word@mlflow:5000/x?sig=Zm9v failed")
    'http://ann:***@mlflow:5000/x?sig=*** failed'
    """
    known = _known(tuple(os.environ.items()))
    if known is not None:
        text = known.sub(HIDDEN, text)
    for sign, pattern in PATTERNS:
        if sign in text:
            text = pattern.sub(_keep_first, text)
    return text


def _keep_first(found: re.Match[str]) -> str:
    return found[1] + HIDDEN


def holds_credentials(url: str) -> bool:
    """Return True if a URL itself holds a secret: a password, a token, a signature."""
    return any(pattern.search(url) for _, pattern in PATTERNS)


def redact_logs(but: str = "") -> None:
    """Hide secrets in all lines of this process's logs, and in its warnings, from now on.

    Args:
        but: name of a logger whose lines are many, and are known to hold none.
    """

    def make(name: str, *args: Any, **named: Any) -> logging.LogRecord:
        kind = logging.LogRecord if name == but else _RedactedRecord
        return kind(name, *args, **named)

    logging.setLogRecordFactory(make)
    warnings.formatwarning = _formatwarning


def _formatwarning(*args: Any, **named: Any) -> str:
    return redacted(FORMAT_WARNING(*args, **named))


class _RedactedRecord(logging.LogRecord):
    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        if self.exc_info and self.exc_info[0]:  # a formatter takes the text that is there
            lines = traceback.format_exception(*self.exc_info)
            self.exc_text = redacted("".join(lines).rstrip("\n"))

    def getMessage(self) -> str:  # noqa: N802 # the name that logging calls
        return redacted(super().getMessage())


@functools.lru_cache(maxsize=4)
def _known(environment: tuple[tuple[str, str], ...]) -> re.Pattern[str] | None:
    """Pattern of an environment's secrets, as they are and as URLs and JSON write them."""
    secrets = set()
    for name, value in environment:
        if SECRET_VARIABLE.fullmatch(name):
            secrets.add(value.strip())  # a file in a cluster may end its line
        for password in PASSWORD_IN_URL.findall(value):
            # Where it holds a sign that ends a URL's host, messages tell its parts.
            secrets |= {password, *re.split("[/?#@:]", password)}
    forms = (str, unquote, quote, _quoted, quote_plus, _in_json)
    written = {form(secret) for secret in secrets for form in forms if secret.lower() not in FLAGS}
    words = sorted((w for w in written if len(w) >= SHORTEST), key=len, reverse=True)
    if not words:
        return None
    return re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(map(re.escape, words))})(?![A-Za-z0-9])")


def _quoted(secret: str) -> str:
    return quote(secret, safe="")


def _in_json(secret: str) -> str:
    return json.dumps(secret)[1:-1]
