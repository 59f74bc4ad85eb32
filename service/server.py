"""Starting the server: BentoML in the foreground, in this process's place."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from models import registry


def serve(model: str, host: str, port: int) -> NoReturn:
    """Replace this process by a server of a model, until SIGTERM or SIGINT.

    Args:
        model: an artifact folder, or a registry name such as ``digits@champion``.
        host: to bind.
        port: to bind.
    """
    is_reference = registry.is_reference(model)
    environment = {
        **os.environ,
        "WGAN_MODEL": model if is_reference else str(Path(model).absolute()),
        "MLFLOW_TRACKING_URI": registry.tracking_uri(),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    # Two servers that share BentoML's home wipe each other's state.
    environment.setdefault("BENTOML_HOME", tempfile.mkdtemp(prefix="wgan-bentoml-"))
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "bentoml", "serve", "service.app:WganService"]
    options = ["--working-dir", str(root), "--host", host, "--port", str(port)]
    # Seconds for requests under way to end after SIGTERM; BentoML would wait for ever.
    options += ["--timeout-graceful-shutdown", "20"]
    os.execve(sys.executable, [*command, *options], environment)
