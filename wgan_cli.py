"""Train, judge and serve Wasserstein GANs.

This module is the one small place that knows all packages. Each command lies beside what it runs,
and its module is imported only when it is asked for: an installation that serves need not have
what trains.
"""

from __future__ import annotations

import sys
import traceback
from functools import cache
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException
from typer.main import get_command, get_group

from models import __version__
from models.command_line import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_MISTAKE,
    EXIT_SIGINT,
    complain,
    drop_output,
    new_app,
    prepare_output,
)
from models.errors import AwayError, UnreachableError, UserError, needs, suggestion
from models.os_errors import in_words
from models.redaction import redact_logs
from models.registry_errors import is_of_this_machine

COMMANDS = {
    "train": "training.commands",
    "sample": "models.commands",
    "impute": "models.commands",
    "score": "models.commands",
    "evaluate": "training.commands",
    "diagnose": "training.commands",
    "train-detector": "training.commands",
    "compare": "training.lab.commands",
    "tune": "training.lab.commands",
    "study": "training.lab.commands",
    "data": "training.commands",
    "retrain": "training.retraining.command",
    "export": "models.export.command",
    "models": "models.commands",
    "sign": "models.commands",
    "verify": "models.commands",
    "promote": "models.commands",
    "rollback": "models.commands",
    "w1": "training.lab.commands",
    "serve": "service.command",
    "presets": "training.commands",
    "constraints": "models.commands",
}
"""Module of each command; its ``app`` holds the command."""
EXTRAS = {"models": "train", "training": "train", "service": "service"}
"""Extra to install if a package that a command needs is missing."""


class Commands(TyperGroup):
    """The commands of `COMMANDS`, each imported when it is asked for."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that ``args`` begin with; names the nearest if there is none."""
        if args[0] not in COMMANDS and not ctx.resilient_parsing:
            ctx.fail(f"no such command '{args[0]}'{suggestion(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of all commands, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, name: str) -> Any:
        """Import a command; None if there is no such command."""
        if name not in COMMANDS:
            return None
        module = COMMANDS[name]
        try:
            with needs(EXTRAS[module.partition(".")[0]]):
                return _commands_of(module)[name]
        except UserError as error:
            return _missing(name, error)


@cache
def _commands_of(module: str) -> dict[str, Any]:
    """Make the commands of a module: once, for all of them in the help."""
    return dict(get_group(import_module(module).app).commands)


def _missing(name: str, error: UserError) -> Any:
    """Make a command in place of one that is not installed: it only says so."""
    app = new_app()

    @app.command(
        name,
        help=f"(not installed) {error}",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )
    def complain_that_it_is_missing() -> None:
        raise error

    return get_command(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"wgan-foundry {__version__}")
        raise typer.Exit


app = typer.Typer(cls=Commands, rich_markup_mode=None, subcommand_metavar="COMMAND [ARGS]...")


@app.callback(invoke_without_command=True)
def wgan(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="show the version"),
    ] = False,
) -> None:
    """Train, judge and serve Wasserstein GANs."""
    if ctx.invoked_subcommand is None:
        raise UserError("name a COMMAND (see wgan --help)")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Whatever a user or this machine causes is told in one line; a traceback is a fault of ours.

    Args:
        arguments: without the program's name; by default those of this process.
    """
    prepare_output()
    redact_logs()
    arguments = sys.argv[1:] if arguments is None else arguments
    name = next((word for word in arguments if not word.startswith("-")), "")
    extra = EXTRAS[COMMANDS.get(name, "models").partition(".")[0]]
    try:
        with needs(extra):
            code = get_command(app).main(arguments, prog_name="wgan", standalone_mode=False)
        sys.stdout.flush()  # while a full disk can still be told
    except UserError as error:
        complain(f"error: {' '.join(str(error).split())}")
        passes = isinstance(error, AwayError | UnreachableError)
        return EXIT_INTERRUPTED if passes else EXIT_MISTAKE
    except TyperException as error:  # a command line that cannot be understood
        complain(f"error: {_in_one_line(error)}")
        return EXIT_MISTAKE
    except KeyboardInterrupt:  # before Typer is at work
        code = EXIT_SIGINT
    except (OSError, MemoryError) as error:
        drop_output()
        if not isinstance(error, BrokenPipeError):  # whoever read the output has read enough
            complain(f"error: {' '.join(in_words(error).split())}")
        passes = isinstance(error, MemoryError) or is_of_this_machine(error)
        return EXIT_FAILED if passes else EXIT_MISTAKE
    except Exception:
        complain(traceback.format_exc().rstrip())
        complain("error: this is a fault of wgan-foundry; please report it with the lines above")
        return EXIT_FAILED
    if code == EXIT_SIGINT:  # Typer turns Ctrl-C into this code
        complain("interrupted")
    return int(code or 0)


def _in_one_line(error: TyperException) -> str:
    message = " ".join(error.format_message().replace("Value error, ", "").split()).rstrip(".")
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "wgan"
    return f"{message[:1].lower()}{message[1:]} (see {command} --help)"


if __name__ == "__main__":
    sys.exit(main())
