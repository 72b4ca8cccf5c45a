"""Parses the arguments of `moecl`, runs a command, and turns errors into exit codes."""

import argparse
import importlib
import io
import os
import re
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

import moecl_jax
from moecl_jax.cli import signals
from moecl_jax.cli.command import Command
from moecl_jax.config.file import OVERRIDE
from moecl_jax.errors import UserError, one_line

# The modules beside this one that declare a command, in the order of the help.
COMMANDS = (
    "new",
    "check",
    "train",
    "online",
    "status",
    "sweep",
    "rollback",
    "remove",
    "index",
    "evaluate",
    "predict",
    "generate",
    "serve",
    "distil",
    "convert",
    "export",
    "strip",
    "ab",
    "compare",
    "report",
    "advise",
    "cache",
)
_FLAG = re.compile(r"--?[A-Za-z]")


def program() -> NoReturn:
    """The program `moecl`: runs the command and ends the process with its exit status.

    Threads of Orbax whose checkpoint could not be written wait minutes for what will not come, and
    Python waits for its threads: such a process ends without them.
    """
    status = main()
    if any(type(thread).__module__.startswith("orbax.") for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the `moecl` command.

    Args:
      argv: the arguments after the program's name; those of the process by default.

    Returns:
      The exit status: 0 if all went well, 1 after a mistake that the user can mend, which standard
      error then names, 130 after an interrupt (SIGINT), 143 after SIGTERM.

    Raises:
      SystemExit: after `--help` (status 0) and unknown or missing arguments (status 2).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not a notebook's, which takes any character
            stream.reconfigure(errors="backslashreplace")
    with signals.handled() as received:
        try:
            return _main(sys.argv[1:] if argv is None else argv)
        except KeyboardInterrupt as error:
            received.first = received.first or signals.cause_of(error)
            print(signals.INTERRUPTED, file=sys.stderr)
            return received.status


def _main(argv: Sequence[str]) -> int:
    commands = [_load(name) for name in COMMANDS]
    parser = _build_parser(commands)
    plain, overrides = _split_overrides(argv)
    arguments = parser.parse_args(plain)
    command: Command = arguments.command
    if overrides and not command.takes_overrides:
        *able, last = (f"'moecl {other.name}'" for other in commands if other.takes_overrides)
        named = f"{', '.join(able)} and {last}"
        parser.error(f"{overrides[0]}: only {named} have a config to override")
    arguments.overrides = overrides
    try:
        return _run(command, arguments)
    except UserError as error:
        print(f"moecl: error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"moecl: error: {place}{error.strerror or one_line(error)}", file=sys.stderr)
        return 1


def _load(name: str) -> Command:
    command: Command = importlib.import_module(f"moecl_jax.cli.{name}").COMMAND
    return command


def _build_parser(commands: Sequence[Command]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="moecl",
        description=moecl_jax.__doc__,
        epilog="'moecl COMMAND --help' explains a command and gives an example.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"moecl {moecl_jax.__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in commands:
        subparser = subparsers.add_parser(
            command.name,
            usage=command.usage,
            help=command.summary,
            description=f"{command.summary[0].upper()}{command.summary[1:]}.",
            epilog=f"example:\n  {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_arguments(subparser)
        subparser.set_defaults(command=command)
    return parser


def _run(command: Command, arguments: argparse.Namespace) -> int:
    from moecl_jax import reporting
    from moecl_jax.cli.progress import terminal_reporter

    with reporting.use(terminal_reporter()):
        return command.run(arguments)


def _split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separates `--config.KEY=VALUE`, and `--config.KEY VALUE`, from argparse's arguments."""
    plain: list[str] = []
    overrides: list[str] = []
    awaits_value = False
    for argument in argv:
        if awaits_value and not _FLAG.match(argument):
            overrides[-1] += f"={argument}"
            awaits_value = False
        elif OVERRIDE.match(argument):
            overrides.append(argument)
            awaits_value = "=" not in argument
        else:
            plain.append(argument)
            awaits_value = False
    return plain, overrides
