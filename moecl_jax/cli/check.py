"""`moecl check`: looks at a config and all its data without training."""

import argparse

from moecl_jax.cli.command import Command


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="the config, as for 'moecl train'; --config.KEY=VALUE overrides one of its values",
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="load the model too, run a few steps and evaluations of each task, and say how long "
        "the training will take",
    )


def _run(arguments: argparse.Namespace) -> int:
    from moecl_jax.config.check import check
    from moecl_jax.config.check_text import check_text

    found = check(arguments.config, arguments.overrides, measure=arguments.measure)
    print(check_text(found))
    return 1 if found.problems else 0


COMMAND = Command(
    name="check",
    summary="read a config and all its data without training, and report all problems at once",
    example="moecl check --config=my.py --measure",
    usage="moecl check --config=FILE [--measure] [--config.KEY=VALUE ...]",
    add_arguments=_add_arguments,
    run=_run,
    takes_overrides=True,
)
