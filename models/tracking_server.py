"""The MLflow server behind the registry: its credentials, and whether its version can be used."""

from __future__ import annotations

import logging
import os
import re
from urllib.parse import unquote, urlsplit

from models.errors import RegistryError, UnsupportedServerError

OLDEST = (3, 0)
"""Servers of version 2 take what the client of version 3 writes and do not give it back."""
DATABASE_TRIES = 5
"""For a database, in three seconds. MLflow's ten take two minutes, with four lines for each."""
known: set[str] = set()
"""Servers that have told that they are new enough, or that they tell no version."""


def take_credentials() -> None:
    """Move the name and the password in the server's address to the variables that MLflow reads.

    MLflow shows its address in messages, and at the end of each run.

    Raises:
        RegistryError: the address is no URL.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise RegistryError(f"MLFLOW_TRACKING_URI={uri}: is no URL ({error})") from None
    if parts.scheme in ("http", "https") and parts.username and parts.password:
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password)
        address = parts._replace(netloc=parts.netloc.rpartition("@")[2])
        os.environ["MLFLOW_TRACKING_URI"] = address.geturl()


def limit_tries(uri: str) -> None:
    """Let MLflow try for seconds to reach a database, and tell of the last try alone."""
    if uri.startswith(("http://", "https://")):
        return
    from mlflow.store.db import utils

    utils.MAX_RETRY_COUNT = DATABASE_TRIES
    logging.getLogger(utils.__name__).setLevel(logging.ERROR)


def require_supported(uri: str) -> None:
    """Ask a tracking server, once in a process, whether it is new enough.

    A server that does not tell its version, as those of other makers do not, is taken for new
    enough, and so are databases. One that refuses the question, such as before a secret is right,
    is asked again the next time.

    Raises:
        UnsupportedServerError: it is too old.
        MlflowException: it does not answer.
    """
    if uri in known or not uri.startswith(("http://", "https://")):
        return
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    host = get_default_host_creds(uri)  # type: ignore[no-untyped-call]
    answer = http_request(host, "/version", "GET")  # type: ignore[no-untyped-call]
    found = re.match(r"(\d+)\.(\d+)", answer.text) if answer.status_code == 200 else None
    if found and tuple(map(int, found.groups())) < OLDEST:
        raise UnsupportedServerError(
            f"{uri}: MLflow {answer.text.strip()} is too old; update the server to "
            f"{'.'.join(map(str, OLDEST))} or newer"
        )
    if answer.status_code in (200, 404):
        known.add(uri)
