"""`moecl cache`: shows and empties the folder of compiled programs."""

import argparse

from moecl_jax.cli.command import Command


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--empty", action="store_true", help="delete all kept programs, of all versions"
    )


def _run(arguments: argparse.Namespace) -> int:
    from moecl_jax import programs

    if arguments.empty:
        print(f"deleted {programs.empty()} compiled programs")
        return 0
    kept = programs.kept()
    print(f"folder: {kept.folder or 'none'}")
    if kept.problem is not None:
        print(f"programs are not kept: {kept.problem}")
    print(f"for this machine and these versions: {_sized(kept.programs, kept.bytes)}")
    print(f"for others: {_sized(kept.others, kept.other_bytes)}")
    print(f"at most kept: {programs.MOST_BYTES / 1e6:.0f} MB for each; the oldest go first")
    return 0


def _sized(count: int, size: int) -> str:
    return f"{count} programs, {size / 1e6:.1f} MB"


COMMAND = Command(
    name="cache",
    summary="show the compiled programs that are kept between runs, or delete them",
    example="moecl cache --empty",
    add_arguments=_add_arguments,
    run=_run,
)
