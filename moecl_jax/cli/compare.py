"""`moecl compare`: prints finished runs side by side."""

import argparse

from moecl_jax.cli.command import Command, add_workdirs


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_workdirs(parser, "a finished run; give it once for each")


def _run(arguments: argparse.Namespace) -> int:
    from moecl_jax.runs.results import Results
    from moecl_jax.runs.tables import format_comparison

    runs = [Results.load(workdir) for workdir in arguments.workdir]
    for workdir, results in zip(arguments.workdir, runs, strict=True):
        print(f"{results.method} ({workdir})\n{results}\n")
    print(format_comparison([{**results.content, "metrics": results.metrics} for results in runs]))
    if any(results.tasks != runs[0].tasks for results in runs):
        print("\nThese runs have different tasks: their metrics are not comparable.")
    return 0


COMMAND = Command(
    name="compare",
    summary="print the accuracy matrices and metrics of finished runs side by side",
    example="moecl compare --workdir=runs/demo/moe_cl --workdir=runs/demo/sequential_lora",
    add_arguments=_add_arguments,
    run=_run,
)
