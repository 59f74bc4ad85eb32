"""Command lines as `wgan` understands them, and commands that run in the tests' process."""

from __future__ import annotations

import contextlib
import io
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import typer

import wgan_cli


class Parsed(NamedTuple):
    """A command and the values of its parameters."""

    command: str
    """Its name, such as ``train`` or ``data inspect``."""
    values: dict[str, Any]
    """By the names of the function's parameters."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self.values[name]
        except KeyError:
            raise AttributeError(name) from None


def command(name: str) -> Any:
    """The command of a name, as Typer made it."""
    found = typer.main.get_command(wgan_cli.app)
    for part in name.split():
        found = found.get_command(None, part)
    return found


def parsed(arguments: list[str]) -> Parsed:
    """Parse arguments; raises what the command line complains of."""
    found = typer.main.get_command(wgan_cli.app)
    names = []
    while hasattr(found, "get_command"):
        context = found.make_context("wgan", list(arguments))
        name, found, arguments = found.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        names.append(name)
    return Parsed(" ".join(names), found.make_context(names[-1], list(arguments)).params)


def called(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command here, in a folder: it need not import torch anew, as a process of its own."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = wgan_cli.main([*map(str, arguments)])
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())
