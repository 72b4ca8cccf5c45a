"""The pictures of a comparison: which there are, what they show, and how they are called."""

import collections
import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moecl_jax.report import drawing
from moecl_jax.report.runs import FinishedRun, sorted_order_names
from moecl_jax.report.summary import Variant, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CURVE_POINTS = 120
_STEP_COLUMNS = 20
PANEL = 366
"""Width of a picture that fits a phone."""
_LOSSES = {"loss": 6, "loss_instruction": 0, "loss_adversarial": 3}  # styles of the curves

Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture with its caption.

    Attributes:
      name: name of its files, without an ending.
      caption: a short text above it.
      description: what a reader who cannot see it should know.
      draw: draws it with a width, which pictures of a fixed width ignore; on the page, or in a file
        of its own, where the curves are named.
      wide: whether it takes the whole width of a wide page.
    """

    name: str
    caption: str
    description: str
    draw: Callable[[int, bool], "Figure"]
    wide: bool = False


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page with one kind of picture.

    Attributes:
      title: heading of the section.
      text: explains how to read the pictures.
      groups: pictures of each order of tasks that has any, by a title that names the order.
      legend: style and name of each curve; empty if the section's curves are those of methods, or
        there are none.
    """

    title: str
    text: str
    groups: Mapping[str, Sequence[Picture]]
    legend: Sequence[tuple[int, str]] = ()


class Album:
    """The pictures of runs on the same tasks.

    Attributes:
      variants: variants of the report, in the order of the table's rows.
      styles: number of the style of each variant's curves.
      orders: runs of each order of tasks by variant, by the name of the order.
    """

    def __init__(self, variants: Sequence[Variant], name: str = "") -> None:
        """Sorts the runs.

        Args:
          variants: variants of the report, in the order of the table's rows.
          name: what the names of files begin with.
        """
        self.variants, self._name = variants, name
        self.styles = {variant.name: index for index, variant in enumerate(variants)}
        found: dict[str, dict[str, list[FinishedRun]]] = collections.defaultdict(dict)
        for variant in variants:
            for run in variant.runs:
                found[run.order].setdefault(variant.name, []).append(run)
        self.orders = {order: found[order] for order in sorted_order_names(found)}

    @property
    def legend(self) -> list[tuple[int, str]]:
        """Style and name of each variant's curves."""
        return [(style, name) for name, style in self.styles.items()]

    def growth(self) -> Section:
        """The mean accuracy over the tasks so far, as the stream grows."""
        groups = {self._title(order): [self._growth(order)] for order in self.orders}
        return Section("Accuracy as the stream grows", _GROWTH_TEXT, groups)

    def forgetting(self) -> Section:
        """The accuracy on each task from its own training on; no group where there is one task."""
        groups = (
            {}
            if len(self.variants[0].runs[0].results.tasks) == 1
            else {
                self._title(order): [
                    self._forgetting(order, index) for index in range(len(self._tasks(order)))
                ]
                for order in self.orders
            }
        )
        return Section("Forgetting, task by task", _FORGETTING_TEXT, groups)

    def details(self) -> list[Section]:
        """All other sections that have at least one picture."""
        losses = [(style, name) for name, style in _LOSSES.items()]
        sections = [
            Section("Accuracy matrices", _MATRIX_TEXT, self._each(self._matrix)),
            Section("The choice of the task", _CHOICE_TEXT, self._each(self._choices)),
            Section("Loss curves", _LOSS_TEXT, self._each(self._loss), losses),
            Section("Gate weights", _GATE_TEXT, self._each(self._gate)),
            Section("Discriminator accuracy", _DISCRIMINATOR_TEXT, self._each(self._layers)),
        ]
        return [section for section in sections if section.groups]

    def pictures(self) -> list[Picture]:
        """All pictures, in the order of the page."""
        sections = [self.growth(), self.forgetting(), *self.details()]
        return [one for section in sections for group in section.groups.values() for one in group]

    def _tasks(self, order: str) -> tuple[str, ...]:
        return next(iter(self.orders[order].values()))[0].results.tasks

    def _title(self, order: str) -> str:
        return f"Order {order}: {', '.join(self._tasks(order))}"

    def _file(self, kind: str, *parts: str) -> str:
        """A name for files, with letters, digits, dots and dashes alone."""
        return "_".join(
            re.sub(r"[^\w.=-]+", "-", part) for part in (self._name, kind, *parts) if part
        )

    def _each(
        self, make: Callable[[str, str, Sequence[FinishedRun]], Picture | None]
    ) -> dict[str, list[Picture]]:
        """The pictures that there are of each variant, by the title of the order."""
        groups = {}
        for order, by_variant in self.orders.items():
            made = (make(order, name, runs) for name, runs in by_variant.items())
            if pictures := [picture for picture in made if picture is not None]:
                groups[self._title(order)] = pictures
        return groups

    def _growing(self, order: str) -> list[drawing.Curve]:
        """The curves of an order's variants."""
        lines = []
        for name, runs in self.orders[order].items():
            mean, spread = _statistics(_so_far(run.results.matrix) for run in runs)
            stages = np.arange(len(mean))
            lines.append(drawing.Curve(name, self.styles[name], stages, mean, spread))
        return lines

    def _growth(self, order: str) -> Picture:
        tasks, lines = self._tasks(order), self._growing(order)
        everything = [line for other in self.orders for line in self._growing(other)]
        runs = [run for group in self.orders[order].values() for run in group]
        majority, _ = _statistics(100 * run.results.majority for run in runs)
        counted = np.where(np.isnan(majority), 0.0, majority).cumsum() / np.arange(
            1, len(tasks) + 1
        )
        known = not np.isnan(majority).any()

        def draw(width: int, named: bool) -> "Figure":
            return drawing.curves(
                lines,
                size=(width, 330 if width > PANEL else 270),
                label="mean accuracy of the tasks so far, %",
                ticks=[f"after {task}" for task in tasks] if width > 600 else tasks,
                limits=_limits(everything),
                reference=("majority label", counted) if known else None,
                named=named,
            )

        return Picture(
            self._file("accuracy", f"order{order}"),
            f"Order {order}" if len(self.orders) > 1 else "",
            f"In percent, after each task of {', '.join(tasks)}. {_described(lines)}",
            draw,
            wide=len(self.orders) < 3 and len(tasks) > 1,
        )

    def _forgetting(self, order: str, index: int) -> Picture:
        tasks = self._tasks(order)
        by_task: list[list[drawing.Curve]] = []
        for place in range(len(tasks)):
            by_task.append([])
            for name, runs in self.orders[order].items():
                columns = (100 * run.results.matrix[place:, place] for run in runs)
                stages = np.arange(place, len(tasks))
                line = drawing.Curve(name, self.styles[name], stages, *_statistics(columns))
                by_task[-1].append(line)
        lines, limits = by_task[index], _limits([line for group in by_task for line in group])
        runs = [run for group in self.orders[order].values() for run in group]
        baseline = _statistics(100 * run.results.majority for run in runs)[0][index]
        known = "" if np.isnan(baseline) else f"; majority label: {baseline:.1f}"

        def draw(width: int, named: bool) -> "Figure":
            return drawing.curves(
                lines,
                size=(max(width, 480) if named else 286, 210),
                label=f"accuracy, %{known}",
                ticks=tasks,
                limits=limits,
                named=named,
            )

        return Picture(
            self._file("forgetting", f"order{order}", tasks[index]),
            tasks[index],
            f"In percent, after each of {', '.join(tasks[index:])}. {_described(lines)}",
            draw,
        )

    def _matrix(self, order: str, name: str, runs: Sequence[FinishedRun]) -> Picture:
        tasks = runs[0].results.tasks
        matrix, _ = _statistics(run.results.comparable[0] for run in runs)
        rows = {"untrained": _statistics(run.results.comparable[1] for run in runs)[0]}
        majority, _ = _statistics(run.results.majority for run in runs)
        if not np.isnan(majority).all():
            rows = {"majority label": majority} | rows
        values = np.vstack([*rows.values(), matrix])
        names = [*rows, *(f"after {task}" for task in tasks)]
        framed = [(len(rows) + index, index) for index in range(len(tasks))]
        return Picture(
            self._file("matrix", f"order{order}", name),
            _caption(name, runs),
            f"Test accuracy in percent, a row a stage, a column one of {', '.join(tasks)}.",
            lambda *_: drawing.heat_map(values, names, tasks, percent, framed=framed),
        )

    def _choices(self, order: str, name: str, runs: Sequence[FinishedRun]) -> Picture | None:
        known = [run for run in runs if run.results.task_free]
        if not known:
            return None
        tasks = runs[0].results.tasks
        counts = np.sum([np.array(r.results.task_free["choices"], float) for r in known], axis=0)
        shades = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
        told = _mean(np.array([[run.results.metrics["acc"]] for run in known], np.float64))
        found = _mean(np.array([[run.results.task_free["acc"]] for run in known], np.float64))
        return Picture(
            self._file("choice", f"order{order}", name),
            f"{_caption(name, known)}: acc {percent(found[0])}, {percent(told[0])} when told",
            "Test texts by their task (row) and the task that was chosen (column).",
            lambda *_: drawing.heat_map(counts, tasks, tasks, "{:.0f}".format, shades=shades),
        )

    def _loss(self, order: str, name: str, runs: Sequence[FinishedRun]) -> Picture | None:
        lines = []
        for run in runs:
            parts = _task_parts(run.log)
            for key in _shown_losses(run.log):
                points = np.array(_thinned(parts, key)).T
                lines.append(drawing.Curve(key, _LOSSES[key], points[0], points[1], marked=False))
        if not lines:
            return None
        parts = next(_task_parts(run.log) for run in runs if run.log)
        starts = [0.0, *(float(part[-1]["step"]) for part in parts[:-1])]
        names = [str(part[0]["task"]) for part in parts]

        def draw(width: int, named: bool) -> "Figure":
            del width, named
            return drawing.curves(
                lines,
                size=(PANEL, 210),
                label="training loss by step",
                sections=list(zip(starts, names, strict=True)),
            )

        shown = ", ".join(dict.fromkeys(line.name for line in lines))
        return Picture(
            self._file("loss", f"order{order}", name),
            _caption(name, runs),
            f"{shown} over the steps, a curve a run; tasks: {', '.join(names)}.",
            draw,
        )

    def _gate(self, order: str, name: str, runs: Sequence[FinishedRun]) -> Picture | None:
        key = "gate_weights"
        known = [run for run in runs if run.results.content.get(key) is not None]
        if not known:
            return None
        weights, _ = _statistics(np.array(r.results.content[key], np.float64) for r in known)
        tasks, layers = runs[0].results.tasks, [str(layer) for layer in range(weights.shape[1])]
        return Picture(
            self._file("gate", f"order{order}", name),
            _caption(name, known),
            "Mean weight of the shared expert, a row a task, a column a layer.",
            lambda *_: drawing.heat_map(weights, tasks, layers, _hundredths, cell=(26, 25)),
        )

    def _layers(self, order: str, name: str, runs: Sequence[FinishedRun]) -> Picture | None:
        key = "discriminator_accuracy_by_layer"
        lines = [line for line in runs[0].log if line.get(key) is not None]
        if not lines:
            return None
        parts = _task_parts(lines)
        share = max(1, _STEP_COLUMNS // len(parts))
        columns: list[Array] = []
        steps: list[str] = []
        gaps: list[int] = []
        for part in parts:
            gaps.append(len(columns))
            for chunk in np.array_split(np.arange(len(part)), min(share, len(part))):
                columns.append(_mean(np.array([part[i][key] for i in chunk], np.float64)))
                steps.append(str(part[chunk[-1]]["step"]))
        values = np.stack(columns, axis=1)
        tasks = ", ".join(str(part[0]["task"]) for part in parts)
        return Picture(
            self._file("discriminator", f"order{order}", name),
            f"{name}, seed {runs[0].results.seed}",
            f"In percent, a row a layer, a column some steps; tasks: {tasks}.",
            lambda *_: drawing.heat_map(
                values,
                [f"layer {layer}" for layer in range(len(values))],
                steps,
                lambda value: f"{100 * value:.0f}",
                cell=(30, 17),
                gaps=gaps[1:],
            ),
        )


_GROWTH_TEXT = (
    "Mean test accuracy over the tasks trained so far. A curve is the mean over the seeds of one "
    "order, its band the standard deviation; one seed has none."
)
_FORGETTING_TEXT = (
    "Test accuracy on each task from its own training on, as further tasks are learned: a flat "
    "curve forgets nothing. Mean and standard deviation over the seeds of one order; all charts of "
    "an order have the same scale."
)
_MATRIX_TEXT = (
    "Test accuracy in percent on each task (column) after each stage of training (row), mean over "
    "the seeds. Framed: just after the task's own training; below the frame, what later tasks have "
    "left of it; above it, before its own training. A dash was not measured."
)
_CHOICE_TEXT = (
    "Test texts by the task they belong to (row) and the task that was picked from the text alone "
    "(column), summed over the seeds; the stronger the colour, the larger the part of the row."
)
_LOSS_TEXT = (
    "Training loss over optimizer steps, a curve a seed, with a dashed line where a task begins. "
    f"Long curves are thinned to about {_CURVE_POINTS} points, each the mean of the logged steps "
    "that it stands for, within one task. Each chart has its own scale."
)
_GATE_TEXT = (
    "Mean weight of the shared expert over the test tokens of each task (row) in each layer "
    "(column) at the end, mean over the seeds; the rest is the task expert's. 1.00 is the shared "
    "expert alone, 0.50 both alike."
)
_DISCRIMINATOR_TEXT = (
    "How often each layer's discriminator tells the task from the shared expert's output, in "
    "percent, in the first seed; a column is the mean of the logged steps up to the one it names, "
    "and a line parts the tasks."
)


def _limits(lines: Sequence[drawing.Curve]) -> tuple[float, float] | None:
    """The ends of an axis on which all the curves and their bands have room."""
    means = np.concatenate([np.asarray(line.y, np.float64) for line in lines])
    spreads = np.concatenate([np.asarray(line.spread, np.float64) for line in lines])
    if np.isnan(means).all():
        return None
    around = np.nan_to_num(spreads)
    low, high = float(np.nanmin(means - around)), float(np.nanmax(means + around))
    room = max(1.0, 0.06 * (high - low))
    return low - room, high + room


def _so_far(matrix: Array) -> Array:
    """Mean accuracy in percent over the tasks trained so far, after each of them."""
    return np.array([100 * _mean(row[: stage + 1]) for stage, row in enumerate(matrix)])


def _statistics(values: Iterable[Array]) -> tuple[Array, Array]:
    """Mean and standard deviation (n - 1) over runs; NaN where a run, or a second one, lacks."""
    stack = np.stack(list(values))
    spread = stack.std(axis=0, ddof=1) if len(stack) > 1 else np.full(stack.shape[1:], np.nan)
    return stack.mean(axis=0), spread


def _mean(values: Array) -> Array:
    """Mean over the first axis, leaving out NaN; NaN where nothing else is left."""
    known = ~np.isnan(values)
    count = known.sum(axis=0)
    total = np.where(known, values, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _caption(name: str, runs: Sequence[FinishedRun]) -> str:
    seeds = ", ".join(str(run.results.seed) for run in runs)
    return f"{name}, seed{'s' if len(runs) > 1 else ''} {seeds}"


def _described(lines: Sequence[drawing.Curve]) -> str:
    texts = (
        f"{line.name}: {', '.join('-' if np.isnan(y) else f'{y:.1f}' for y in np.asarray(line.y))}"
        for line in lines
    )
    return f"{'; '.join(texts)}."


def _shown_losses(log: Sequence[Mapping[str, Any]]) -> list[str]:
    """The losses of a log that tell something: no zeros, and no total of one part."""
    shown = [key for key in _LOSSES if any(line.get(key) is not None for line in log)]
    if all(line.get("loss") == line.get("loss_instruction") for line in log):
        shown = [key for key in shown if key != "loss"]
    if not any(line.get("loss_adversarial") for line in log):
        shown = [key for key in shown if key != "loss_adversarial"]
    return shown


def _task_parts(log: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Splits the lines of a log where a new task begins."""
    parts: list[list[Mapping[str, Any]]] = []
    for line in log:
        if not parts or parts[-1][0]["task"] != line["task"]:
            parts.append([])
        parts[-1].append(line)
    return parts


def _thinned(parts: Sequence[Sequence[Mapping[str, Any]]], key: str) -> list[tuple[float, float]]:
    """Averages a key over bins of lines, so that about `_CURVE_POINTS` points remain.

    A bin holds lines of one task only, and all bins hold about equally many lines.

    Args:
      parts: lines of the log, task by task.
      key: key to average.

    Returns:
      Mean step and mean value of each bin; NaN if no line of the bin has the key.
    """
    total = sum(map(len, parts))
    points = []
    for part in parts:
        bins = min(len(part), max(2, round(_CURVE_POINTS * len(part) / total)))
        steps = np.array([line["step"] for line in part], np.float64)
        values = np.array([line.get(key) for line in part], np.float64)
        for chunk in np.array_split(np.arange(len(part)), bins):
            points.append((float(steps[chunk].mean()), float(_mean(values[chunk]))))
    return points


def _hundredths(value: float) -> str:
    return f"{value:.2f}".removeprefix("0")
