"""What an error of MLflow, of its storage or of this machine means to us."""

from __future__ import annotations

import errno
import re
import socket
import sqlite3

from models.errors import (
    AbsentError,
    AwayError,
    ForbiddenError,
    MachineError,
    RegistryError,
    UnreachableError,
    causes,
)
from models.remote import PASSING, class_names, fault, http_status

OF_THIS_MACHINE = {
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOSPC,
    errno.EROFS,
}
"""Numbers of errors that a registry or its storage cannot cause: disk, memory, open files."""
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""MLflow's codes of things that are not there; an alias is an invalid value."""
FORBIDDEN = ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED")
NO_REGISTRY = re.compile("unsupported URI|filesystem tracking backend")
"""What MLflow says, as of an invalid value, of an address that can hold no registry."""
BUSY = ("TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")
STATUS = re.compile(r"failed with error code (\d{3}) !=|(?:^|\s)(\d{3}) (?:Client|Server) Error:")
"""Where MLflow and requests write the status of HTTP."""
FINAL = re.compile(r"certificate verify failed|SSL: WRONG_VERSION_NUMBER|\[Errno (1|13)\]")
UNANSWERED = re.compile(
    "Max retries exceeded|Connection (refused|reset|aborted|broken|was closed)|connection abort"
    "|[Tt]imed? ?out"
    "|Could not connect to the endpoint|[(](SlowDown|ServiceUnavailable|InternalError|RequestTime"
    "out)[)]"
)
"""What is said of a connection, or by S3, that may pass; MLflow keeps no more of a download's."""
REFUSALS = re.compile(
    "authentication failed|does not exist|no pg_hba.conf|permission denied|Access denied"
    "|Unknown database|invalid .*(value|number)"
)
"""What a database's server says of a connection that another try would not make."""


def is_of_this_machine(error: Exception) -> bool:
    """Return True if an error is one of disk, memory or open files here."""
    return isinstance(error, OSError) and error.errno in OF_THIS_MACHINE


def failure(message: str, error: Exception) -> RegistryError:
    """The error of ours for one of the registry's, of its storage or of this machine.

    MLflow keeps nothing of the causes of a failure of this machine, such as a full disk, but texts.
    Raise it ``from None``: a traceback would show what the registry said, secrets too.

    Args:
        message: in one line, with what ``error`` says.
        error: what was raised; of a `RegistryError` the kind is kept.
    """
    if isinstance(error, RegistryError):
        return type(error)(message)
    numbers = {int(number) for number in re.findall(r"\[Errno (\d+)\]", message)}
    if numbers & OF_THIS_MACHINE or is_of_this_machine(error):
        return MachineError(message)
    if NO_REGISTRY.search(message):
        return RegistryError(message)
    code = getattr(error, "error_code", None)
    if code in ABSENT:
        return AbsentError(message)
    if code in FORBIDDEN or http_status(error) in (401, 403):
        return ForbiddenError(message)
    return AwayError(message) if _passes(error) else RegistryError(message)


def database_passes(error: BaseException) -> bool:
    """Return True if an error of SQLAlchemy's for one of a database may pass.

    Of SQLite's only a lock does. Else it is a connection that was not made or was lost, unless the
    server says that it refuses.
    """
    cause = getattr(error, "orig", None)
    if isinstance(cause, sqlite3.Error):
        return "is locked" in str(cause)
    was_cut = getattr(error, "connection_invalidated", False)
    is_lost = was_cut or "OperationalError" in class_names(error)
    return is_lost and REFUSALS.search(str(cause)) is None


def _passes(error: Exception) -> bool:
    """Return True if an error says that something does not answer now, or is busy."""
    for cause in causes(error):
        if "DBAPIError" in class_names(cause):
            return database_passes(cause)
        if isinstance(cause, socket.gaierror):  # names come and go with a cluster's services
            return True
    if found := fault("", error):
        return isinstance(found, UnreachableError)
    if getattr(error, "error_code", None) in BUSY:
        return True
    said = str(error)
    if status := STATUS.search(said):
        return int(status[1] or status[2]) in PASSING
    return UNANSWERED.search(said) is not None and FINAL.search(said) is None
