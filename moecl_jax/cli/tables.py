"""Results as tables in plain text."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moecl_jax.runs.text import wall_time

_METRIC_NAMES = ("acc", "bwt", "fwt", "forgetting")


def format_results(results: Mapping[str, Any]) -> str:
    """The accuracy matrix of a run, and how well texts' tasks are chosen if that was measured.

    Args:
      results: the content of `results.json`.

    Returns:
      The lines, joined, without a final line end.

    Raises:
      LookupError, TypeError, ValueError: if the content is not that of a run.
    """
    tasks, accuracy = results["tasks"], results["accuracy_matrix"]
    matrix = format_matrix(tasks, accuracy, results["random_init"], results["metrics"])
    if not results.get("task_free"):
        return matrix
    return f"{matrix}\n\n{format_task_free(tasks, results['task_free'], accuracy)}"


def format_matrix(
    tasks: Sequence[str],
    accuracy: ArrayLike,
    random_init: ArrayLike,
    metrics: Mapping[str, float | None],
) -> str:
    """The accuracy matrix and its metrics as a table in plain text, in percent.

    Example:
        accuracy in %; in parentheses: before the task's own training

                      spam   irony
        untrained    (50.0)  (48.0)
        after spam    97.5   (51.0)
        after irony   95.0    88.0

        acc 91.5  bwt -2.5  fwt +3.0  forgetting +2.5

    Args:
      tasks: the names, in the order of training, T of them.
      accuracy: `R`, `[T, T]`, fractions; None or NaN, shown as `-`, where it was not measured.
      random_init: `b`, `[T]`, fractions.
      metrics: `acc`, `bwt`, `fwt` and `forgetting` as fractions; None, shown as `-`, if unknown.

    Returns:
      The lines, joined, without a final line end.

    Raises:
      ValueError: if the shapes do not fit the tasks.
    """
    matrix, baseline = _float_array(accuracy), _float_array(random_init)
    count = len(tasks)
    if matrix.shape != (count, count) or baseline.shape != (count,):
        raise ValueError(
            f"{count} tasks need an accuracy matrix of shape {(count, count)} and a random_init of "
            f"shape {(count,)}, but the shapes are {matrix.shape} and {baseline.shape}"
        )
    rows = [["", *(f"{task} " for task in tasks)]]
    rows.append(["untrained", *(_cell(value, trained=False) for value in baseline)])
    for index, (task, values) in enumerate(zip(tasks, matrix, strict=True)):
        cells = (_cell(value, trained=column <= index) for column, value in enumerate(values))
        rows.append([f"after {task}", *cells])
    title = "accuracy in %; in parentheses: before the task's own training"
    summary = "  ".join(f"{name} {_percent(metrics[name], name)}" for name in _METRIC_NAMES)
    return "\n".join([title, "", *_aligned(rows), "", summary])


def format_task_free(
    tasks: Sequence[str], task_free: Mapping[str, Any], accuracy: ArrayLike
) -> str:
    """Accuracy where the task is chosen from the text, and the choices, as a table in plain text.

    Example:
        task chosen from the text: acc 83.1 (known task: 85.0)

        texts    as spam  as irony
        spam          39         1
        irony          2        38

    Args:
      tasks: the names, T of them.
      task_free: `acc`, `accuracy` and `choices` of `results.json`.
      accuracy: `R`, `[T, T]`, fractions; the last row is where the task is known.

    Returns:
      The lines, joined, without a final line end.
    """
    chosen = ~np.isnan(_float_array(task_free["accuracy"]))
    known = _float_array(accuracy)[-1][chosen]
    known_acc = _percent(float(known.mean()) if known.size else None, "acc")
    rows = [["texts", *(f"as {task}" for task in tasks)]]
    for task, counts in zip(tasks, task_free["choices"], strict=True):
        rows.append([task, *map(str, counts)])
    acc = _percent(task_free["acc"], "acc")
    title = f"task chosen from the text: acc {acc} (known task: {known_acc})"
    return "\n".join([title, "", *_aligned(rows)])


def format_comparison(results: Sequence[Mapping[str, Any]]) -> str:
    """The metrics of several runs side by side, in percent, a line a run.

    Example:
        method           seed   acc   bwt   fwt  forgetting  wall time
        moe_cl              0  91.5  -2.5  +3.0        +2.5    0:02:03
        sequential_lora     0  80.0  -9.5  +3.0        +9.5    0:01:15

    Args:
      results: contents of `results.json`, one a run. In a sweep also `variant`, which stands for
        the method, and `order`, which has a column unless it is None.

    Returns:
      The lines, joined, without a final line end.
    """
    orders = ["order"] if any(result.get("order") is not None for result in results) else []
    rows = [["method", *orders, "seed", *_METRIC_NAMES, "wall time"]]
    for result in results:
        values = (_percent(result["metrics"][name], name) for name in _METRIC_NAMES)
        time = wall_time(result["wall_seconds"])
        name = str(result.get("variant", result["method"]))
        order = [str(result[key]) for key in orders]
        rows.append([name, *order, str(result["seed"]), *values, time])
    return "\n".join(_aligned(rows))


def _float_array(values: ArrayLike) -> NDArray[np.float64]:
    """As an array, None becoming NaN."""
    return np.asarray(values, dtype=np.float64)


def _cell(accuracy: float, *, trained: bool) -> str:
    text = "-" if math.isnan(accuracy) else f"{100 * accuracy:.1f}"
    return f"{text} " if trained else f"({text})"


def _percent(fraction: float | None, name: str) -> str:
    if fraction is None:
        return "-"
    # All but the accuracy are differences: their sign matters.
    return f"{100 * fraction:.1f}" if name == "acc" else f"{100 * fraction:+.1f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns two spaces apart, the first flush left and the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return lines
