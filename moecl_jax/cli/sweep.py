"""`moecl sweep`: trains a grid of runs."""

import argparse
import sys

from moecl_jax.cli.command import Command, add_workdir


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="as for 'moecl train'; --config.KEY=VALUE holds for all runs",
    )
    parser.add_argument(
        "--methods",
        required=True,
        metavar="METHOD,...",
        help="METHOD, or METHOD:KEY=VALUE:KEY=VALUE for a variant with settings of its own",
    )
    parser.add_argument(
        "--orders",
        metavar="ORDER,...",
        help="values of order= in the argument of the config file (default: as it is)",
    )
    parser.add_argument(
        "--seeds", default="0", metavar="SEED,...", help="seeds of each run (default: 0)"
    )
    add_workdir(parser, "gets sweep.json and the runs' workdirs, VARIANT/orderORDER_seedSEED")


def _run(arguments: argparse.Namespace) -> int:
    from moecl_jax.config.sweep import Grid, sweep
    from moecl_jax.runs.results import Results
    from moecl_jax.runs.tables import format_comparison

    grid = Grid.parse(
        arguments.config,
        arguments.overrides,
        arguments.methods,
        arguments.orders,
        arguments.seeds,
    )
    workdir = arguments.workdir
    outcome = sweep(grid, workdir)
    results = [Results.load(workdir / run["workdir"]) for run in outcome.finished]
    runs = [
        {**found.content, "metrics": found.metrics, **run}
        for found, run in zip(results, outcome.finished, strict=True)
    ]
    print(format_comparison(runs))
    for failure in outcome.failures:
        print(f"moecl: error: {failure}", file=sys.stderr)
    print(f"\nReport: moecl report --workdir={workdir} --output={workdir / 'report.html'}")
    return 1 if outcome.failures else 0


COMMAND = Command(
    name="sweep",
    summary="train a grid of methods, orders of the tasks and seeds, or go on with it",
    example="moecl sweep --config=configs/mtl5_shared_smollm2.py --orders=1,2,3 \\\n"
    "    --methods=sequential_lora,moe_cl,moe_cl:adversarial.objective=off --workdir=runs/grid",
    usage="moecl sweep --config=FILE --methods=METHOD,... [--orders=ORDER,...] [--seeds=SEED,...] "
    "--workdir=DIR [--config.KEY=VALUE ...]",
    add_arguments=_add_arguments,
    run=_run,
    takes_overrides=True,
)
