"""`moecl rollback`: goes back to the end of an earlier task."""

import argparse

from moecl_jax.cli.command import Command, add_workdir, add_yes, report_plan


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_workdir(parser, "the run; what it learned after the task is deleted")
    parser.add_argument(
        "--to", required=True, metavar="TASK", help="the finished task that becomes the last one"
    )
    add_yes(parser)


def _run(arguments: argparse.Namespace) -> int:
    from moecl_jax.runs.undo import rollback

    return report_plan(
        rollback(arguments.workdir, arguments.to, dry_run=not arguments.yes), made=arguments.yes
    )


COMMAND = Command(
    name="rollback",
    summary="go back to the end of an earlier task; without --yes only say what would be deleted",
    example="moecl rollback --workdir=runs/first --to=trec --yes",
    add_arguments=_add_arguments,
    run=_run,
)
