"""Secrets in files: `NAME_FILE` is the path of the file with what the variable `NAME` would hold.

A file can be exchanged while a process runs, and does not show in the process's environment.
"""

from __future__ import annotations

import os
from pathlib import Path

from models.errors import MachineError, RegistryError
from models.os_errors import require_end
from models.registry_errors import is_of_this_machine

SECRETS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
"""What MLflow itself reads from the environment alone."""


def read_secret_files(*more: str) -> None:
    """Set each secret whose file the environment names to what the file holds now.

    Args:
        more: names of variables besides those of `SECRETS`.

    Raises:
        RegistryError: a file cannot be read, or is empty.
        MachineError: it cannot be read for want of open files, or the like.
    """
    for name in (*SECRETS, *more):
        variable = f"{name}_FILE"
        path = os.environ.get(variable)
        if not path:
            continue
        try:
            secret = require_end(Path(path)).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            kind = MachineError if is_of_this_machine(error) else RegistryError
            raise kind(f"{variable}={path}: the file cannot be read: {reason}") from None
        if not secret:
            raise RegistryError(f"{variable}={path}: the file is empty")
        os.environ[name] = secret
