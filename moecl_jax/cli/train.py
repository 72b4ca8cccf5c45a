"""`moecl train`: trains on a stream of tasks."""

import argparse

from moecl_jax.cli.command import Command, add_workdir
from moecl_jax.errors import UserError


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="FILE.py or FILE.py:ARGUMENT, whose get_config(), or get_config(ARGUMENT), returns "
        "the config; or the config.json of a workdir. --config.KEY=VALUE overrides one of its "
        "values (nested: --config.SECTION.KEY=VALUE)",
    )
    add_workdir(parser, "the folder for the run's results, logs and checkpoints")
    parser.add_argument(
        "--resume",
        choices=("newest", "last-good"),
        default="newest",
        help="where an interrupted training goes on: from the newest state, which must be whole "
        "(default), or from the newest that is whole; what is lost is said first, and set aside",
    )
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="go on although the tokenizer or the data are no longer those that the training was "
        "begun with; results.json names what changed",
    )
    parser.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="train in several processes: the address of the first, or 'auto' under Slurm, on a "
        "TPU pod or in Kubernetes. config.mesh says how their devices share the work",
    )
    parser.add_argument("--process", metavar="I/N", help="this is process I (from 0) of N")


def _run(arguments: argparse.Namespace) -> int:
    from moecl_jax import reporting
    from moecl_jax.config.file import load_settings
    from moecl_jax.models.sharding import first_process, join
    from moecl_jax.runs.results import Results
    from moecl_jax.training.trainer import train

    if arguments.process is not None and arguments.coordinator is None:
        raise UserError("--process needs the --coordinator of all processes")
    if arguments.coordinator is not None:
        join(arguments.coordinator, arguments.process)
    settings = load_settings(arguments.config, arguments.overrides)
    shows = first_process()
    with reporting.use(reporting.current() if shows else reporting.SilentReporter()):
        results = train(
            settings,
            arguments.workdir,
            resume=arguments.resume,
            accept_changes=arguments.accept_changes,
        )
    if shows:
        print(Results.from_content(results))
        print(f"\nResults: {arguments.workdir / 'results.json'}")
    return 0


COMMAND = Command(
    name="train",
    summary="train on a stream of tasks, or resume an interrupted training",
    example="moecl train --config=configs/quickstart.py --workdir=runs/first --config.seed=1",
    usage="moecl train --config=FILE --workdir=DIR [--config.KEY=VALUE ...]",
    add_arguments=_add_arguments,
    run=_run,
    takes_overrides=True,
)
