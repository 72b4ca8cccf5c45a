"""What a command is, and the arguments that several commands have."""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of `moecl`, which its module declares as `COMMAND`.

    Modules of commands are imported for each `moecl --help`. So they import JAX, and whatever else
    takes time, inside `run`.

    Attributes:
      name: the word after `moecl`.
      summary: what it does, in one line that begins with a small letter and has no full stop.
      example: a command line to copy. Further lines are indented as they are to be shown.
      add_arguments: adds the command's arguments to its parser.
      run: does the work and returns the exit status. `overrides` of what it is given holds the
        `--config.KEY=VALUE` of the command line.
      takes_overrides: whether the command has a config that `--config.KEY=VALUE` overrides.
      usage: the usage line where argparse's own will not do.
    """

    name: str
    summary: str
    example: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    takes_overrides: bool = False
    usage: str | None = None


def path(text: str) -> Path:
    """A path that an argument gives; an empty one, as of an unset variable, would be the folder.

    Raises:
      argparse.ArgumentTypeError: it is empty.
    """
    if not text:
        raise argparse.ArgumentTypeError("it is empty; name a path ('.' is the current folder)")
    return Path(text)


def add_workdir(parser: argparse.ArgumentParser, help_text: str) -> None:
    """Adds `--workdir=DIR`, which must be given once."""
    parser.add_argument("--workdir", required=True, type=path, metavar="DIR", help=help_text)


def add_workdirs(parser: argparse.ArgumentParser, help_text: str) -> None:
    """Adds `--workdir=DIR`, which must be given once or several times."""
    parser.add_argument(
        "--workdir", required=True, type=path, action="append", metavar="DIR", help=help_text
    )


def add_files(parser: argparse.ArgumentParser, answer: str, *, required: bool) -> None:
    """Adds `--input`, `--output`, `--format` and `--field`.

    Args:
      parser: gets them.
      answer: what an answer holds, for the help.
      required: whether the two files must be given.
    """
    parser.add_argument(
        "--input",
        required=required,
        type=path,
        metavar="FILE",
        help="rows to answer: JSON lines (.jsonl), a table (.csv, .tsv) or a text a line (.txt); "
        'with the fields of the task\'s text, or "text" ("-": standard input)',
    )
    parser.add_argument(
        "--output",
        required=required,
        type=path,
        metavar="FILE",
        help=f"gets each row, with {answer} added, or an error; its ending tells the format too. "
        "The exit status is 1 if there was an error ('-': standard output)",
    )
    parser.add_argument(
        "--format",
        choices=("jsonl", "csv", "tsv", "txt"),
        help="the input's format, where its ending does not tell it (default: jsonl)",
    )
    parser.add_argument(
        "--field",
        default="prediction",
        metavar="NAME",
        help="the field that answers get; in tables the columns NAME, NAME_error and so on "
        "(default: prediction)",
    )


def add_yes(parser: argparse.ArgumentParser) -> None:
    """Adds `--yes`, without which nothing is changed."""
    parser.add_argument(
        "--yes", action="store_true", help="do it; without --yes nothing is changed"
    )


def report_plan(plan: object, *, made: bool) -> int:
    """Says what was done, or what would be, and gives the exit status."""
    print(plan)
    if not made:
        print("nothing was changed; add --yes to do it")
    return 0


def report_rows(what: str, output: Path, bad_rows: int, figures: Sequence[str] = ()) -> int:
    """Says where the answers to a file's rows are, and gives the exit status.

    Nothing but answers goes to standard output where that is the output.

    Args:
      what: names the answers.
      output: what was given as `--output`.
      bad_rows: number of rows that were answered by an error.
      figures: what else there is to say.
    """
    stream = sys.stderr if str(output) in ("-", "/dev/stdout") else sys.stdout
    print("\n".join([f"{what}: {output}; bad lines: {bad_rows}", *figures]), file=stream)
    return 1 if bad_rows else 0
