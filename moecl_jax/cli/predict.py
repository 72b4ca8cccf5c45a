"""`moecl predict`: labels texts."""

import argparse

from moecl_jax.cli.command import Command, add_workdir, path, report_lines


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
        type=path,
        metavar="FILE.jsonl",
        help='a JSON object a line, with "text" or "input_ids"; anything else in it is copied '
        '("-": standard input)',
    )
    parser.add_argument(
        "--output",
        required=True,
        type=path,
        metavar="FILE.jsonl",
        help='gets each object with its "label", "probabilities" and "logits", or with an "error"; '
        "the exit status is 1 if there was an error ('-': standard output)",
    )


def _run(arguments: argparse.Namespace) -> int:
    from moecl_jax.serving.files import check_files, predict_file
    from moecl_jax.serving.session import open_run

    check_files(arguments.input, arguments.output)
    session = open_run(arguments.workdir)
    bad_lines = predict_file(session, arguments.task, arguments.input, arguments.output)
    return report_lines("Predictions", arguments.output, bad_lines)


COMMAND = Command(
    name="predict",
    summary="label the lines of a JSONL file with one of a run's tasks, or with that of each text",
    example="moecl predict --workdir=runs/first --task=NAME --input=texts.jsonl "
    "--output=labels.jsonl",
    add_arguments=_add_arguments,
    run=_run,
)
