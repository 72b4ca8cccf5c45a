"""`moecl distil`: distils all experts of a run into one LoRA."""

import argparse

from moecl_jax.cli.command import Command, add_workdir, path


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_workdir(parser, "the run whose finished tasks are the teacher")
    parser.add_argument(
        "--into", required=True, type=path, metavar="DIR", help="the workdir of the student"
    )
    parser.add_argument(
        "--answers",
        type=int,
        default=1,
        metavar="N",
        help="answers that each text stands with, allotted to the labels in proportion to the "
        "teacher's probabilities (default: 1, the teacher's label)",
    )


def _run(arguments: argparse.Namespace) -> int:
    from moecl_jax.config.default import from_config, to_config
    from moecl_jax.config.file import overridden
    from moecl_jax.training.distilling import distil

    found = distil(
        arguments.workdir,
        arguments.into,
        answers=arguments.answers,
        adjust=lambda settings: from_config(overridden(to_config(settings), arguments.overrides)),
    )
    print(found)
    print(f"\nThe student: {arguments.into}")
    return 0


COMMAND = Command(
    name="distil",
    summary="distil all experts of a run into one LoRA, also of a smaller or quantised LLM",
    example="moecl distil --workdir=runs/first --into=runs/one --answers=4\n"
    "  moecl export --workdir=runs/one --format=peft --output=adapters/one",
    usage="moecl distil --workdir=DIR --into=DIR [--answers=N] [--config.KEY=VALUE ...]",
    add_arguments=_add_arguments,
    run=_run,
    takes_overrides=True,
)
