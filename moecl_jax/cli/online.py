"""`moecl online`: learns from examples as they arrive."""

import argparse
import sys

from moecl_jax.cli.command import Command, add_workdir, path


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_workdir(parser, "the run to go on from; what is learned lies in its folder online/")
    parser.add_argument(
        "--input",
        required=True,
        type=path,
        metavar="FILE",
        help="JSON lines in the order of arrival, with the fields of a task's text, its label, and "
        'maybe "task"; a line without a label is answered alone ("-": standard input)',
    )
    parser.add_argument(
        "--task",
        default="",
        metavar="NAME",
        help="the task of lines that name none (default: each text's task is found)",
    )
    parser.add_argument(
        "--budget",
        type=float,
        default=0.0,
        metavar="STEPS",
        help="optimizer steps an example (default: 1 / batch.size, which learns each one once)",
    )
    parser.add_argument(
        "--on-drift",
        choices=("note", "expert"),
        default="note",
        help="what a risen loss does: it is noted (default), or a new expert begins",
    )
    parser.add_argument(
        "--delta",
        type=float,
        default=0.002,
        metavar="P",
        help="probability that ADWIN sees a drift where there is none (default: 0.002)",
    )
    parser.add_argument(
        "--follow", action="store_true", help="wait for the file to grow, until interrupted"
    )


def _run(arguments: argparse.Namespace) -> int:
    from moecl_jax.runs.names import ONLINE_FOLDER
    from moecl_jax.training.online import OnlineSettings, learn_online
    from moecl_jax.training.online_log import LOG_NAME

    options = OnlineSettings(
        task=arguments.task,
        budget=arguments.budget,
        on_drift=arguments.on_drift,
        delta=arguments.delta,
    )
    tally = learn_online(arguments.workdir, arguments.input, options, follow=arguments.follow)
    print(f"{tally}\nEach line: {arguments.workdir / ONLINE_FOLDER / LOG_NAME}")
    if tally.bad:
        print(f"{tally.bad} lines could not be used; the file says why", file=sys.stderr)
    return 1 if tally.bad else 0


COMMAND = Command(
    name="online",
    summary="learn from examples as they arrive, each scored before it is learned",
    example="moecl online --workdir=runs/first --input=arriving.jsonl --on-drift=expert",
    add_arguments=_add_arguments,
    run=_run,
)
