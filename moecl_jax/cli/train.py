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
        "--coordinator",
        metavar="HOST:PORT",
        help="train in several processes: the address of the first, or 'auto' under Slurm, on a "
        "TPU pod or in Kubernetes. config.mesh says how their devices share the work",
    )
    parser.add_argument("--process", metavar="I/N", help="this is process I (from 0) of N")


def _run(arguments: argparse.Namespace) -> int:
    from moecl_jax.config.file import load_config

    # Before the slow imports, so that a mistake in the config is told at once.
    config = load_config(arguments.config, arguments.overrides)
    from moecl_jax.cli.tables import format_results
    from moecl_jax.models.sharding import first_process, join
    from moecl_jax.runs import reporting
    from moecl_jax.training.trainer import train

    if arguments.process is not None and arguments.coordinator is None:
        raise UserError("--process needs the --coordinator of all processes")
    if arguments.coordinator is not None:
        join(arguments.coordinator, arguments.process)
    shows = first_process()
    with reporting.use(reporting.current() if shows else reporting.SilentReporter()):
        results = train(config, arguments.workdir)
    if shows:
        print(format_results(results))
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
