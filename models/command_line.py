"""Parts that commands share: exit codes, options, requests to stop.

A module of commands imports this and Typer, and nothing heavy: what a command needs is imported
when it runs, so that `wgan --help` is quick.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

import typer

from models.errors import UserError
from models.redaction import redacted

EXIT_FAILED = 1
EXIT_MISTAKE = 2
EXIT_REJECTED = 3
EXIT_INTERRUPTED = 75
"""EX_TEMPFAIL: run the command again and it goes on."""
EXIT_SIGINT = 130

DATA_HELP = (
    "a built-in data set; a .npy, .npz, .h5, .zarr, .csv or .parquet file; a folder, .zip or .tar "
    "of images; or a URL of one of these"
)
MODEL_HELP = "the folder of a run or an artifact, or a registry name such as digits@champion"

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help=f"{MODEL_HELP}; digits alone means its champion")
]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON")]
ClassOption = Annotated[
    str | None, typer.Option("--class", metavar="NAME", help="class, of a conditional model")
]
DeviceKind = Literal["cpu", "cuda"]
DeviceOption = Annotated[DeviceKind, typer.Option(help="where to compute")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="k=v", help="such as training.batch_size=32; may be repeated"),
]


def new_app(help: str | None = None) -> typer.Typer:
    """Create an empty group of commands, with help in plain text that reads well in a pipe."""
    return typer.Typer(help=help, rich_markup_mode=None, add_completion=False)


def example(command: str) -> str:
    """The end of a command's help: an example that is not wrapped."""
    return f"\b\nexample:\n  {command}"


def complain(line: str) -> None:
    """Print a line to stderr, without the secrets in it."""
    with contextlib.suppress(OSError):  # nobody reads it; the exit code tells
        print(redacted(line), file=sys.stderr, flush=True)


def prepare_output() -> None:
    """Let stdout and stderr take any text, where one is closed or its encoding is poor too."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def drop_output() -> None:
    """Drop what stdout still holds if it cannot be written, lest Python tries again at the end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def assignments(texts: list[str] | None) -> dict[str, Any]:
    """Read the values of ``--set``: dotted keys and values, which are JSON or plain text.

    Raises:
        UserError: one has no ``=``.
    """
    overrides = {}
    for text in texts or []:
        key, equals, setting = text.partition("=")
        if not equals:
            raise UserError(f"--set {text}: write key=value, such as training.batch_size=32")
        overrides[key] = value(setting)
    return overrides


def data_assignments(texts: list[str] | None) -> dict[str, Any]:
    """Read the values of ``--set`` for a command that reads data and trains nothing.

    Raises:
        UserError: one has no ``=``, or is no setting of data.
    """
    overrides = assignments(texts)
    require_data_settings(overrides, "--set ")
    return overrides


def require_data_settings(keys: Iterable[str], option: str = "") -> None:
    """Check settings of work that reads data and trains nothing.

    Args:
        keys: dotted.
        option: what stands before a key in the error.

    Raises:
        UserError: one is no setting of data.
    """
    for key in keys:
        if key.partition(".")[0] != "data":
            raise UserError(
                f"{option}{key}: nothing is trained here, and only data.* counts; leave it out"
            )


def duration(text: str) -> float:
    """Read a time as seconds: ``90s``, ``30m``, ``2h``, or a number of seconds.

    >>> duration("30m"), duration("1.5h"), duration("90")
    (1800.0, 5400.0, 90.0)

    Raises:
        UserError: it is none, or not above 0.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smh]?)", text.strip())
    seconds = float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]] if found else 0.0
    if not seconds:
        raise UserError(f"{text}: is no time; write such as 90s, 30m or 2h")
    return seconds


def value(text: str) -> Any:
    """Read a setting: JSON, or else plain text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


class StopNow(BaseException):
    """A stop was requested; not an `Exception`, which work that is stopped might catch."""


class StopRequest:
    """Turns the first SIGTERM, SIGINT or SIGHUP into a request; a second one ends the process.

    SIGHUP tells that the terminal is gone, unless `nohup` has us ignore it.
    """

    def __init__(self) -> None:
        self.requested = False
        self._raises = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._request)
        self._terminals = [number for number in (1, 2) if os.isatty(number)]

    def __call__(self) -> bool:
        """Return True if a stop was requested; pass the object as ``stop_requested``."""
        return self.requested

    @contextlib.contextmanager
    def raised(self) -> Iterator[None]:
        """Raise `StopNow` as soon as a stop is requested while the block runs."""
        self._raises = True
        try:
            if self.requested:
                raise StopNow
            yield
        finally:
            self._raises = False

    def _request(self, number: int, frame: object) -> None:
        self.requested = True
        signal.signal(number, signal.SIG_DFL)
        if number == signal.SIGHUP:  # what is written there now would be an error
            for terminal in self._terminals:
                os.dup2(os.open(os.devnull, os.O_WRONLY), terminal)
        if self._raises:
            raise StopNow
