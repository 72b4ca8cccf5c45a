"""`moecl predict`: labels texts."""

import argparse
from pathlib import Path

from moecl_jax.cli.command import Command, add_workdir


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_workdir(parser, "the trained run")
    parser.add_argument(
        "--task",
        metavar="NAME",
        help='the task to apply (default: each text\'s task is chosen, and added as "task")',
    )
    parser.add_argument(
        "--input",
        required=True,
        type=Path,
        metavar="FILE.jsonl",
        help='a JSON object a line, with "text" or "input_ids"; anything else in it is copied',
    )
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="FILE.jsonl",
        help='gets each object with its "label", "probabilities" and "logits", or with an "error"; '
        "the exit status is 1 if there was an error",
    )


def _run(arguments: argparse.Namespace) -> int:
    from moecl_jax.serving.session import predict

    bad_lines = predict(arguments.workdir, arguments.task, arguments.input, arguments.output)
    print(f"Predictions: {arguments.output}; bad lines: {bad_lines}")
    return 1 if bad_lines else 0


COMMAND = Command(
    name="predict",
    summary="label the lines of a JSONL file with one of a run's tasks, or with that of each text",
    example="moecl predict --workdir=runs/first --task=NAME --input=texts.jsonl "
    "--output=labels.jsonl",
    add_arguments=_add_arguments,
    run=_run,
)
