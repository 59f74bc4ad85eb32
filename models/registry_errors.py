"""What an error of MLflow, of its storage or of this machine means to us."""

from __future__ import annotations

import errno
import re

from models.errors import (
    AbsentError,
    AwayError,
    ForbiddenError,
    MachineError,
    RegistryError,
    causes,
)
from models.remote import http_status

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
WRONG_ADDRESS = re.compile("unsupported URI|Invalid URL|unable to open database file|No driver")
"""What MLflow and SQLAlchemy say of an address behind which nothing will ever answer."""


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
    lacks_package = any(isinstance(cause, ImportError) for cause in causes(error))
    if lacks_package or WRONG_ADDRESS.search(message):
        return RegistryError(message)
    code = getattr(error, "error_code", None)
    if code in ABSENT:
        return AbsentError(message)
    if code in FORBIDDEN or http_status(error) in (401, 403):
        return ForbiddenError(message)
    return AwayError(message)
