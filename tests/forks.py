"""Processes forked from one that has imported everything: each starts in a hundredth of the time.

The imports of a service take five seconds of a processor, those of MLflow's server four. A fork
has its own environment, folder, log, sockets and signals, and runs the code that a process of its
own would, except BentoML's supervisor: what is told of that needs a real one. So does what reads
its environment when it is imported, as aiohttp does the authorities that it trusts.
"""

import atexit
import contextlib
import functools
import importlib
import json
import logging
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parent.parent
# Modules that are imported before the fork.
SERVICE = [
    "_bentoml_impl.loader", "_bentoml_impl.server.app", "_bentoml_impl.worker.service",
    "bentoml._internal.container", "bentoml._internal.context", "bentoml._internal.log",
    "httptools", "models.artifact", "service.app", "service.handshakes", "service.server", "uvloop",
    "wgan_cli",
]  # fmt: skip
REGISTRY = ["mlflow.cli", "mlflow.server.fastapi_app"]
LIMITS = (resource.RLIMIT_NOFILE, resource.RLIMIT_AS, resource.RLIMIT_FSIZE)

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
"""That of the nursery: without what single tests set."""


class Forked:
    """A process of the nursery, to be used as one of `subprocess.Popen`."""

    def __init__(self, work: str, log: Path, environment: dict[str, str], *given: object) -> None:
        self.args = [work, *given]
        order = {
            "work": work, "given": list(map(str, given)), "environment": environment,
            "folder": str(log.parent), "log": str(log),
            "limits": [(limit, *resource.getrlimit(limit)) for limit in LIMITS],
        }  # fmt: skip
        self.pid = int(_nursery().ask(order))
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            status = _nursery().ask({"poll": self.pid})
            self.returncode = None if status is None else os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float = 600) -> int:
        until = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired(str(self.args), timeout)
            time.sleep(0.02)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Nursery:
    """The process that has imported everything; it ends with the one that has started it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.forks"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=ENVIRONMENT,
        )
        self.lock = threading.Lock()
        atexit.register(self.end)

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(30)

    def ask(self, order: dict[str, Any]) -> Any:
        with self.lock:
            assert self.process.stdin
            assert self.process.stdout
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())


@functools.cache
def _nursery() -> Nursery:
    return Nursery()


# ---- in the nursery ------------------------------------------------------------------------------


class Executed(BaseException):
    """What a process would have become."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        super().__init__(command)
        self.command, self.environment = command, environment


def _execve(_: object, command: list[str], environment: dict[str, str]) -> NoReturn:
    raise Executed(command, environment)


def serve(*arguments: str) -> int:
    """What `wgan serve` becomes, less the supervisor: its one worker on a socket that is open."""
    import wgan_cli

    return _serve(functools.partial(wgan_cli.main, ["serve", *arguments]))


def serve_unseen(model: str, host: str, port: str) -> int:
    """The same, less the look at the model beforehand."""
    from service import server

    return _serve(functools.partial(server.serve, model, host, int(port)))


def _be_new() -> None:
    """Have what the modules made when they were imported be as in a process of its own."""
    from bentoml._internal import log
    from prometheus_client import values

    from service import telemetry

    values.ValueClass = values.get_value_class()
    telemetry.IDS = random.Random()
    configure = log.configure_server_logging

    def configure_before_others() -> None:
        loggers = [x for x in logging.root.manager.loggerDict.values() if hasattr(x, "disabled")]
        before = [logger.disabled for logger in loggers]
        configure()  # it disables what there is; usually there is none of ours yet
        for logger, is_disabled in zip(loggers, before, strict=True):
            logger.disabled = is_disabled

    log.configure_server_logging = configure_before_others


def _serve(start: Callable[[], int]) -> int:
    os.execve = _execve  # type: ignore[assignment]
    try:
        return start()
    except Executed as found:
        command, environment = found.command, found.environment
    options = dict(zip(command[5::2], command[6::2], strict=True))
    folder = tempfile.mkdtemp(prefix="metrics-", dir=".")
    environment |= {"PROMETHEUS_MULTIPROC_DIR": os.path.abspath(folder)}
    os.environ.clear()
    os.environ.update(environment)
    sys.path.insert(0, options["--working-dir"])
    family = socket.AF_INET6 if ":" in options["--host"] else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((options["--host"], int(options["--port"])))
        probe.listen(2048)
        descriptor = probe.detach()
    os.chdir(options["--working-dir"])
    from _bentoml_impl.worker.service import main  # type: ignore[import-untyped]

    more = [f"{name}={options[name]}" for name in options if name.startswith("--timeout")]
    given = [f"--fd={descriptor}", "--service-name=wgan", "--worker-id=1", "--args={}"]
    _be_new()
    main.main(["service.entry:WganService", *given, *more])
    return 0


def keep_registry(*arguments: str) -> int:
    """`mlflow server` with one worker, less the process that only starts it."""
    from mlflow import cli, server
    from uvicorn.main import main

    def become(command: list[str], extra_env: dict[str, str], **_: object) -> NoReturn:
        raise Executed(command, extra_env)

    server._exec_cmd = become
    try:
        cli.cli.main(["server", *arguments], standalone_mode=False)
    except Executed as found:
        os.environ.update(found.environment)
        main.main(found.command[3:])
    return 0


WORKS: dict[str, tuple[Callable[..., int], list[str]]] = {
    "serve": (serve, SERVICE),
    "serve_unseen": (serve_unseen, SERVICE),
    "keep_registry": (keep_registry, REGISTRY),
}


def _become(order: dict[str, Any]) -> NoReturn:
    """Work as a process of its own, in the child."""
    code = 1
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDONLY)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.chdir(order["folder"])
        for limit, *bounds in order["limits"]:
            resource.setrlimit(limit, tuple(bounds))
        os.environ.clear()
        os.environ.update(order["environment"])
        work, _ = WORKS[order["work"]]
        code = work(*order["given"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)


def _obey() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing that is printed is an answer
    children = set[int]()
    while line := sys.stdin.readline():
        order = json.loads(line)
        answer: int | None = None
        if "poll" in order:
            pid, status = os.waitpid(order["poll"], os.WNOHANG)
            answer = status if pid else None
            children.discard(pid)
        else:
            for module in WORKS[order["work"]][1]:
                importlib.import_module(module)
            answer = os.fork()
            if answer == 0:
                _become(order)
            children.add(answer)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


if __name__ == "__main__":
    _obey()
