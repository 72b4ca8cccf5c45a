"""`moecl remove`: removes one task of a run."""

import argparse

from moecl_jax.cli.command import Command, add_workdir, add_yes, report_plan


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_workdir(parser, "the run")
    parser.add_argument("--task", required=True, help="the finished task to remove")
    add_yes(parser)


def _run(arguments: argparse.Namespace) -> int:
    from moecl_jax.runs.undo import remove

    return report_plan(
        remove(arguments.workdir, arguments.task, dry_run=not arguments.yes), made=arguments.yes
    )


COMMAND = Command(
    name="remove",
    summary="remove one task of a run; without --yes only say what would be deleted",
    example="moecl remove --workdir=runs/first --task=trec --yes",
    add_arguments=_add_arguments,
    run=_run,
)
