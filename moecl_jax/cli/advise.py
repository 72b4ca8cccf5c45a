"""`moecl advise`: says which of the methods that were run is best under which need."""

import argparse
from pathlib import Path

from moecl_jax.cli.command import Command, add_workdirs

_TEXTS = 5  # a task, labelled one by one


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_workdirs(parser, "a finished run, or the folder of a sweep; give it once for each")
    parser.add_argument(
        "--measure",
        action="store_true",
        help="load a run of each method and measure how long it takes to label one text alone",
    )


def _run(arguments: argparse.Namespace) -> int:
    from moecl_jax.report.advice import advice

    print(advice(arguments.workdir, seconds_a_text if arguments.measure else None))
    return 0


def seconds_a_text(workdir: Path) -> float:
    """The median time in which a run labels a test text alone, after a first one of each."""
    import statistics
    import time

    from moecl_jax.serving.session import open_run

    session = open_run(workdir)
    seconds = []
    for name, examples in session.examples("test").items():
        if session.evaluator.tasks[session.evaluator.index(name)].free_form:
            continue
        for example in examples[:_TEXTS]:
            asked = example.text or {"input_ids": example.prompt.tolist()}
            for _ in range(2):  # the first may compile
                begun = time.perf_counter()
                session.predict([asked], name)
                ended = time.perf_counter() - begun
            seconds.append(ended)
    return statistics.median(seconds) if seconds else float("nan")


COMMAND = Command(
    name="advise",
    summary="say which of the methods that were run is best under which need",
    example="moecl advise --workdir=runs/demo/moe_cl --workdir=runs/demo/per_task --measure",
    add_arguments=_add_arguments,
    run=_run,
)
