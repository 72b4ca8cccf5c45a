"""`moecl status`: says how far a run is."""

import argparse
import json

from moecl_jax.cli.command import Command, add_workdir


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_workdir(parser, "the run, which may be training, stopped or finished; or a sweep's folder")
    parser.add_argument(
        "--json", action="store_true", help="print a list of JSON objects, one for each run"
    )


def _run(arguments: argparse.Namespace) -> int:
    from moecl_jax.runs.status import runs_of, status_of

    found = [status_of(workdir) for workdir in runs_of(arguments.workdir)]
    if arguments.json:
        print(json.dumps([status.to_content() for status in found], indent=2))
    else:
        print("\n\n".join(map(str, found)))
    return 0


COMMAND = Command(
    name="status",
    summary="say what of a run is finished, how far it is, how good, and how large on disk",
    example="moecl status --workdir=runs/first",
    add_arguments=_add_arguments,
    run=_run,
)
