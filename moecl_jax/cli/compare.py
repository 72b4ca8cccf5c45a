"""`moecl compare`: prints finished runs side by side."""

import argparse

from moecl_jax.cli.command import Command, add_workdirs
from moecl_jax.errors import UserError, one_line


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_workdirs(parser, "a finished run; give it once for each")


def _run(arguments: argparse.Namespace) -> int:
    from moecl_jax.cli.tables import format_comparison, format_results
    from moecl_jax.report.runs import read_results

    runs = [read_results(workdir) for workdir in arguments.workdir]
    for workdir, results in zip(arguments.workdir, runs, strict=True):
        try:
            matrix, _ = format_results(results), format_comparison([results])
        except (LookupError, TypeError, ValueError) as error:
            raise UserError(f"{workdir / 'results.json'} is broken: {one_line(error)}") from error
        print(f"{results['method']} ({workdir})\n{matrix}\n")
    print(format_comparison(runs))
    if any(results["tasks"] != runs[0]["tasks"] for results in runs):
        print("\nThese runs have different tasks: their metrics are not comparable.")
    return 0


COMMAND = Command(
    name="compare",
    summary="print the accuracy matrices and metrics of finished runs side by side",
    example="moecl compare --workdir=runs/demo/moe_cl --workdir=runs/demo/sequential_lora",
    add_arguments=_add_arguments,
    run=_run,
)
