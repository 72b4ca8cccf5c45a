"""The results of runs as tables in plain text, for a terminal.

All functions return lines joined by line ends, without a final one. T is the number of tasks; `R`
and `b` are the accuracy matrix and the accuracies before training, as in `runs.metrics`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from moecl_jax.runs.classification import Classification
from moecl_jax.runs.names import METRIC_NAMES

MOST_COLUMNS = 12
"""Labels of a confusion matrix that is shown."""


def format_matrix(
    tasks: Sequence[str],
    accuracy: ArrayLike,
    random_init: ArrayLike,
    metrics: Mapping[str, float | None],
    *,
    majority: ArrayLike | None = None,
    macro_f1: ArrayLike | None = None,
    scored: bool = False,
) -> str:
    """Shows the accuracy matrix and its metrics in percent.

    Example:
        accuracy in %; in parentheses: before the task's own training

                         spam   irony
        majority label   60.0    50.0
        untrained       (50.0)  (48.0)
        after spam       97.5   (51.0)
        after irony      95.0    88.0
        macro F1         94.8    87.9

        acc 91.5  bwt -2.5  fwt +3.0  forgetting +2.5

    Args:
      tasks: names of the tasks in the order of training, T of them.
      accuracy: `R`, `[T, T]`, fractions. An entry that was not measured is None or NaN and is shown
        as `-`.
      random_init: `b`, `[T]`, fractions.
      metrics: `acc`, `bwt`, `fwt` and `forgetting` as fractions. An unknown one is None and is
        shown as `-`.
      majority: `[T]`, accuracy of always giving the label that most of a task's texts have, a
        fraction; a row of it stands first if any is known.
      macro_f1: `[T]`, macro F1 at the end, a fraction; a row of it stands last if any is known.
      scored: whether what is in parentheses is of the best-scored label, where the rest is of
        written labels; the title says so.

    Returns:
      The table.

    Raises:
      ValueError: if a shape does not fit the number of tasks.
    """
    matrix = np.asarray(accuracy, np.float64)
    baseline = np.asarray(random_init, np.float64)
    count = len(tasks)
    if matrix.shape != (count, count) or baseline.shape != (count,):
        raise ValueError(
            f"{count} tasks need an accuracy matrix of shape {(count, count)} and a random_init of "
            f"shape {(count,)}, but the shapes are {matrix.shape} and {baseline.shape}"
        )
    rows = [["", *(f"{task} " for task in tasks)]]
    rows += _known_row("majority label", majority)
    rows.append(["untrained", *(_cell(value, trained=False) for value in baseline)])
    for index, (task, values) in enumerate(zip(tasks, matrix, strict=True)):
        cells = (_cell(value, trained=column <= index) for column, value in enumerate(values))
        rows.append([f"after {task}", *cells])
    rows += _known_row("macro F1", macro_f1)
    title = "accuracy in %; in parentheses: before the task's own training"
    if scored:
        title += ", by the label that scores best"
    return "\n".join([title, "", *align_columns(rows), "", format_metrics(metrics)])


def format_metrics(metrics: Mapping[str, float | None]) -> str:
    """Shows the metrics in percent on one line, `acc 91.5  bwt -2.5  fwt +3.0  forgetting +2.5`.

    Args:
      metrics: `acc`, `bwt`, `fwt` and `forgetting` as fractions; None, shown as `-`, if unknown.
    """
    return "  ".join(f"{name} {_percent(metrics[name], name)}" for name in METRIC_NAMES)


def format_task_free(
    tasks: Sequence[str], task_free: Mapping[str, Any], accuracy: ArrayLike
) -> str:
    """Shows the accuracy without a given task, in percent, and how often each task was chosen.

    Example:
        task chosen from the text: acc 83.1 (known task: 85.0)

        texts    as spam  as irony
        spam          39         1
        irony          2        38

    Args:
      tasks: names of the tasks in the order of training, T of them.
      task_free: the object `task_free` of results.json, with `acc`, `accuracy` and `choices`.
      accuracy: `R`, `[T, T]`, fractions. Its last row has the accuracies with the task given.

    Returns:
      The table.
    """
    chosen = ~np.isnan(np.asarray(task_free["accuracy"], np.float64))
    known = np.asarray(accuracy, np.float64)[-1][chosen]
    known_acc = _percent(float(known.mean()) if known.size else None, "acc")
    rows = [["texts", *(f"as {task}" for task in tasks)]]
    for task, counts in zip(tasks, task_free["choices"], strict=True):
        rows.append([task, *map(str, counts)])
    acc = _percent(task_free["acc"], "acc")
    title = f"task chosen from the text: acc {acc} (known task: {known_acc})"
    return "\n".join([title, "", *align_columns(rows)])


def format_robustness(
    tasks: Sequence[str], robustness: Mapping[str, Any], accuracy: ArrayLike
) -> str:
    """Shows the accuracy with changed test texts, in percent.

    Example:
        with changed texts (10 % of the places in each)

                      spam   irony
        as they are   97.5    88.0
        typos         90.0    81.5
        under attack  88.0    79.0

        acc under attack 83.5

    Args:
      tasks: names of the tasks in the order of training, T of them.
      robustness: the object `robustness` of results.json.
      accuracy: `R`, `[T, T]`, fractions. Its last row has the accuracies of the texts as they are.

    Returns:
      The table.
    """
    kinds = robustness["accuracy"]
    rows = [["", *(f"{task} " for task in tasks)]]
    for name, values in (
        ("as they are", np.asarray(accuracy, np.float64)[-1]),
        *kinds.items(),
        ("under attack", robustness["under_attack"]),
    ):
        cells = (_cell(value, trained=True) for value in np.asarray(values, np.float64))
        rows.append([name, *cells])
    title = f"with changed texts ({100 * robustness['rate']:g} % of the places in each)"
    acc = f"acc under attack {_percent(robustness['acc_under_attack'], 'acc')}"
    return "\n".join([title, "", *align_columns(rows), "", acc])


def format_comparison(results: Sequence[Mapping[str, Any]]) -> str:
    """Shows the metrics of several runs side by side in percent, one line a run.

    Example:
        method           seed   acc   bwt   fwt  forgetting  wall time
        moe_cl              0  91.5  -2.5  +3.0        +2.5    0:02:03
        sequential_lora     0  80.0  -9.5  +3.0        +9.5    0:01:15

    Args:
      results: contents of results.json, one a run. The runs of a sweep also have `variant`, which
        is shown instead of the method, and `order`, which gets a column unless it is None.

    Returns:
      The table.
    """
    orders = ["order"] if any(result.get("order") is not None for result in results) else []
    rows = [["method", *orders, "seed", *METRIC_NAMES, "wall time"]]
    for result in results:
        values = (_percent(result["metrics"][name], name) for name in METRIC_NAMES)
        time = wall_time(result["wall_seconds"])
        name = str(result.get("variant", result["method"]))
        order = [str(result[key]) for key in orders]
        rows.append([name, *order, str(result["seed"]), *values, time])
    return "\n".join(align_columns(rows))


def format_classification(found: Classification) -> str:
    """Shows the figures in percent, for a terminal.

    Example:
        3 with gold labels: accuracy 66.7, macro F1 66.7

              precision  recall     F1  support
        ham        50.0   100.0   66.7        1
        spam      100.0    50.0   66.7        2

        gold  as ham  as spam
        ham        1        0
        spam       1        1

    Of more than `MOST_COLUMNS` labels, the most frequent confusions are listed in place of the
    matrix. An undefined figure is `-`.
    """
    count = int(found.support.sum())
    accuracy, macro_f1 = _percent(found.accuracy, "acc"), _percent(found.macro_f1, "acc")
    figures = [["", "precision", "recall", "F1", "support"]]
    for index, label in enumerate(found.labels):
        values = (found.precision[index], found.recall[index], found.f1[index])
        shown = [_percent(value, "acc") for value in values]
        figures.append([label, *shown, str(found.support[index])])
    lines = [f"{count} with gold labels: accuracy {accuracy}, macro F1 {macro_f1}", ""]
    lines += [*align_columns(figures), ""]
    if len(found.labels) <= MOST_COLUMNS:
        matrix = [["gold", *(f"as {label}" for label in found.labels)]]
        for label, counts in zip(found.labels, found.confusion, strict=True):
            matrix.append([label, *map(str, counts)])
        return "\n".join([*lines, *align_columns(matrix)])
    wrong = found.confusion - np.diag(np.diag(found.confusion))
    places = np.argsort(-wrong, axis=None, kind="stable")[:MOST_COLUMNS]
    rows, columns = np.unravel_index(places, wrong.shape)
    confusions = [["gold", "as", "count"]]
    for row, column in zip(rows, columns, strict=True):
        if wrong[row, column]:
            labels = found.labels[row], found.labels[column]
            confusions.append([*labels, str(wrong[row, column])])
    return "\n".join([*lines, "most frequent confusions", *align_columns(confusions)])


def format_systems(
    systems: Mapping[str, Classification], intervals: Sequence[tuple[float, float]]
) -> str:
    """Shows how several systems classify the same texts, in percent.

    Example:
        200 texts        accuracy  macro F1  difference   95% interval
        runs/first           91.5      90.2
        other.csv            88.0      87.1        -3.5  -6.5 ... -0.5

        F1    runs/first  other.csv
        ham         95.0       93.0
        spam        85.4       81.2

    The difference is that in accuracy to the first system.

    Args:
      systems: figures of each, by its name.
      intervals: lower and upper end of each difference, as fractions.

    Returns:
      The two tables.
    """
    first = next(iter(systems.values()))
    rows = [[f"{first.support.sum()} texts", "accuracy", "macro F1", "difference", "95% interval"]]
    for (name, found), bounds in zip(systems.items(), intervals, strict=True):
        row = [name, _percent(found.accuracy, "acc"), _percent(found.macro_f1, "acc")]
        gained = ["", ""]
        if found is not first:
            low, high = (_percent(bound, "difference") for bound in bounds)
            gained = [_percent(found.accuracy - first.accuracy, "difference"), f"{low} ... {high}"]
        rows.append([*row, *gained])
    by_label = [["F1", *systems]]
    for index, label in enumerate(first.labels):
        by_label.append([label, *(_percent(one.f1[index], "acc") for one in systems.values())])
    return "\n".join([*align_columns(rows), "", *align_columns(by_label)])


def wall_time(seconds: float) -> str:
    """Shows seconds as hours, minutes and seconds, `0:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def align_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Pads cells to columns two spaces apart; the first is flush left, the others flush right.

    Args:
      rows: cells of each row, all rows with the same number of them.

    Returns:
      One line a row.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return lines


def _known_row(name: str, values: ArrayLike | None) -> list[list[str]]:
    """The row of a table of accuracies, or none if nothing of it is known."""
    known = np.asarray([] if values is None else values, np.float64)
    if np.isnan(known).all():
        return []
    return [[name, *(_cell(value, trained=True) for value in known)]]


def _cell(accuracy: float, *, trained: bool) -> str:
    text = "-" if math.isnan(accuracy) else f"{100 * accuracy:.1f}"
    return f"{text} " if trained else f"({text})"


def _percent(fraction: float | None, name: str) -> str:
    if fraction is None or math.isnan(fraction):
        return "-"
    # All metrics but the accuracy are differences, so their sign is shown.
    return f"{100 * fraction:.1f}" if name == "acc" else f"{100 * fraction:+.1f}"
