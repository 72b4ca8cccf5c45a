"""`moecl evaluate`: scores a trained run."""

import argparse
import json

from moecl_jax.cli.command import Command, add_workdir


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_workdir(parser, "the trained run")
    parser.add_argument("--split", default="test", help="the split to score (default: test)")


def _run(arguments: argparse.Namespace) -> int:
    from moecl_jax.runs.log import plain
    from moecl_jax.serving.session import evaluate

    print(json.dumps(plain(evaluate(arguments.workdir, arguments.split)), indent=2))
    return 0


COMMAND = Command(
    name="evaluate",
    summary="score a trained run on all its tasks and print the result as JSON",
    example="moecl evaluate --workdir=runs/first --split=test",
    add_arguments=_add_arguments,
    run=_run,
)
