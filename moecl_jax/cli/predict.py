"""`moecl predict`: labels texts."""

import argparse

from moecl_jax.cli.command import Command, add_files, add_workdir, report_rows
from moecl_jax.errors import listed


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_workdir(parser, "the trained run")
    parser.add_argument(
        "--task", metavar="NAME", help="the task to apply (default: each text's task is chosen)"
    )
    add_files(parser, 'the "label", its "probability", and those of all labels', required=True)


def _run(arguments: argparse.Namespace) -> int:
    from moecl_jax.runs.tables import format_classification
    from moecl_jax.serving.files import Files, predict_file
    from moecl_jax.serving.session import open_run

    files = Files(arguments.input, arguments.output, arguments.format, arguments.field)
    files.check()
    answered = predict_file(open_run(arguments.workdir), arguments.task, files)
    figures = []
    if answered.classification is not None:
        figures += ["", format_classification(answered.classification)]
    if answered.unknown_gold:
        count = sum(answered.unknown_gold.values())
        found = listed(answered.unknown_gold)
        figures.append(f"{count} gold labels are none of the task's, and left out: {found}")
    return report_rows("Predictions", arguments.output, answered.bad_rows, figures)


COMMAND = Command(
    name="predict",
    summary="label the rows of a file with one of a run's tasks, or with that of each text",
    example="moecl predict --workdir=runs/first --task=NAME --input=texts.csv --output=labels.csv",
    add_arguments=_add_arguments,
    run=_run,
)
