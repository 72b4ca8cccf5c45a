"""`moecl compare`: prints finished runs side by side, or beside other systems."""

import argparse
from pathlib import Path

from moecl_jax.cli.command import Command, add_workdirs, path
from moecl_jax.errors import UserError


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_workdirs(parser, "a finished run; give it once for each")
    parser.add_argument(
        "--predictions",
        type=path,
        action="append",
        default=[],
        metavar="FILE",
        help="another system's predictions for the texts of --task, in rows of id and label, or "
        "id and score (JSON lines, CSV or TSV); give it once for each. The runs then answer the "
        "same texts",
    )
    parser.add_argument("--task", metavar="NAME", help="the task that --predictions are for")
    parser.add_argument(
        "--gold",
        type=path,
        metavar="FILE",
        help="texts with their labels and ids that --predictions are for (default: the task's "
        "test data)",
    )


def _run(arguments: argparse.Namespace) -> int:
    if arguments.predictions:
        if arguments.task is None:
            raise UserError("--predictions are for the texts of one task; name it by --task")
        return _compare_predictions(arguments)
    if arguments.task is not None or arguments.gold is not None:
        raise UserError("--task and --gold say what --predictions are for; give --predictions too")
    from moecl_jax.runs.results import Results
    from moecl_jax.runs.tables import format_comparison

    runs = [Results.load(workdir) for workdir in arguments.workdir]
    for workdir, results in zip(arguments.workdir, runs, strict=True):
        print(f"{results.method} ({workdir})\n{results}\n")
    print(format_comparison([{**results.content, "metrics": results.metrics} for results in runs]))
    if any(results.tasks != runs[0].tasks for results in runs):
        print("\nThese runs have different tasks: their metrics are not comparable.")
    return 0


def _compare_predictions(arguments: argparse.Namespace) -> int:
    from moecl_jax.report.intervals import interval
    from moecl_jax.runs.classification import classify
    from moecl_jax.runs.tables import format_systems
    from moecl_jax.runs.workdir import load_settings
    from moecl_jax.serving.comparison import gold_texts, other_predictions, run_predictions
    from moecl_jax.serving.session import open_run

    for workdir in arguments.workdir:
        load_settings(workdir)  # fails early
    first = open_run(arguments.workdir[0])
    first.reader(arguments.task)  # refuses a task without labels
    task = first.evaluator.tasks[first.evaluator.index(arguments.task)]
    gold = gold_texts(task, arguments.gold)
    files: list[Path] = arguments.predictions
    others = {str(file): other_predictions(file, gold) for file in files}  # fails early
    predicted = {str(arguments.workdir[0]): run_predictions(first, gold)}
    for workdir in arguments.workdir[1:]:  # one model at a time
        predicted[str(workdir)] = run_predictions(open_run(workdir), gold)
    predicted |= others
    right = [classes == gold.classes for classes in predicted.values()]
    bounds = [interval([{task.name: one - 1.0 * right[0]}]) for one in right]
    systems = {
        name: classify(task.labels, gold.classes, classes) for name, classes in predicted.items()
    }
    intervals = [(each.low, each.high) for each in bounds]
    print(format_systems(systems, intervals))
    return 0


COMMAND = Command(
    name="compare",
    summary="print finished runs side by side, or beside predictions of other systems",
    example="moecl compare --workdir=runs/demo/moe_cl --workdir=runs/demo/sequential_lora\n"
    "moecl compare --workdir=runs/first --task=sms_spam --predictions=other.csv",
    add_arguments=_add_arguments,
    run=_run,
)
