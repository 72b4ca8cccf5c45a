"""The pictures of a report, each with the files and keys that its figures come from."""

import collections
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moecl_jax.report import svg
from moecl_jax.report.runs import RESULTS_NAME, Run, order_names
from moecl_jax.report.summary import Spread, Variant, percent
from moecl_jax.runs.log import LOG_NAME

_CURVE_POINTS = 120
_STEP_COLUMNS = 24


@dataclasses.dataclass(frozen=True)
class Source:
    """Where figures come from.

    Attributes:
      path: of the file, relative to the report.
      keys: what was taken from it.
    """

    path: str
    keys: str


@dataclasses.dataclass(frozen=True)
class Figure:
    """A picture with its caption.

    Attributes:
      picture: the SVG element.
      caption: short.
      source: of all that it shows; None where its group's sources say so.
    """

    picture: svg.Element
    caption: str
    source: Source | None = None


@dataclasses.dataclass(frozen=True)
class Group:
    """Pictures that belong to one order of tasks.

    Attributes:
      title: names the order and its tasks.
      figures: in the order of the table's rows.
      legend: style and name of each line.
      sources: of all figures; empty where each has its own.
    """

    title: str
    figures: Sequence[Figure]
    legend: Sequence[tuple[int, str]] = ()
    sources: Sequence[Source] = ()


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
      title: its heading.
      text: how to read its pictures.
      groups: one for each order that has such pictures.
    """

    title: str
    text: str
    groups: Sequence[Group]


@dataclasses.dataclass(frozen=True)
class Album:
    """What the pictures are made of.

    Attributes:
      variants: in the order of the table.
      folder: of the report, which paths are relative to.
    """

    variants: Sequence[Variant]
    folder: Path

    def sections(self) -> list[Section]:
        """All sections for which there is data."""
        sections = [
            Section("Accuracy matrices", _MATRIX_TEXT, self._each_run(self._matrix)),
            Section("Forgetting curves", _FORGETTING_TEXT, self._forgetting()),
            Section("The choice of the task", _CHOICE_TEXT, self._each_run(self._choices)),
            Section("Loss curves", _LOSS_TEXT, self._each_run(self._loss, _LOSS_LEGEND)),
            Section("Gate weights", _GATE_TEXT, self._each_run(self._gate)),
            Section("Discriminator accuracy", _DISCRIMINATOR_TEXT, self._each_run(self._layers)),
        ]
        return [section for section in sections if section.groups]

    def source(self, run: Run, name: str, keys: str) -> Source:
        """Keys of one of a run's files."""
        path = os.path.relpath(run.workdir / name, self.folder)
        return Source(Path(path).as_posix(), keys)

    def orders(self) -> dict[str, list[Run]]:
        """The runs by the name of their order, in the order of the table's rows."""
        orders: dict[str, list[Run]] = collections.defaultdict(list)
        for variant in self.variants:
            for run in variant.runs:
                orders[run.order].append(run)
        return {name: orders[name] for name in order_names(orders)}

    def _each_run(
        self, draw: Callable[[Run], Figure | None], legend: Sequence[tuple[int, str]] = ()
    ) -> list[Group]:
        groups = []
        for order, runs in self.orders().items():
            figures = [figure for figure in map(draw, runs) if figure is not None]
            if figures:
                groups.append(Group(_order_title(order, runs), figures, legend))
        return groups

    def _matrix(self, run: Run) -> Figure:
        values = np.vstack([run.random_init, run.matrix])
        picture = svg.heat_map(
            values,
            ["untrained", *(f"after {task}" for task in run.tasks)],
            run.tasks,
            title=f"Accuracy matrix of {_name(run)}, order {run.order}",
            description="Test accuracy in percent, a row a stage of training, a column a task.",
            show=percent,
            outlined=[(index + 1, index) for index in range(len(run.tasks))],
        )
        source = self.source(run, RESULTS_NAME, "accuracy_matrix, random_init")
        return Figure(picture, _name(run), source)

    def _forgetting(self) -> list[Group]:
        groups = []
        styles = {variant.name: index for index, variant in enumerate(self.variants)}
        for order, runs in self.orders().items():
            by_variant: dict[str, list[NDArray[np.float64]]] = collections.defaultdict(list)
            for run in runs:
                by_variant[run.variant].append(run.matrix)
            means = {name: _mean(np.stack(stack)) for name, stack in by_variant.items()}
            tasks = runs[0].tasks
            shown = [
                np.concatenate([100 * matrix[index:, index] for matrix in means.values()])
                for index in range(len(tasks))
            ]
            known = [values[~np.isnan(values)] for values in shown]
            axes = svg.aligned_axes([v if v.size else [0.0] for v in known], "accuracy in %")
            groups.append(
                Group(
                    _order_title(order, runs),
                    [
                        Figure(_forgetting_chart(means, tasks, index, axis, styles), task)
                        for index, (task, axis) in enumerate(zip(tasks, axes, strict=True))
                    ],
                    [(styles[name], name) for name in means],
                    [self.source(run, RESULTS_NAME, "accuracy_matrix") for run in runs],
                )
            )
        return groups

    def _choices(self, run: Run) -> Figure | None:
        if not run.task_free:
            return None
        counts = np.asarray(run.task_free["choices"], np.float64)
        totals = counts.sum(axis=1, keepdims=True)
        picture = svg.heat_map(
            counts,
            run.tasks,
            run.tasks,
            title=f"Tasks chosen by {_name(run)}, order {run.order}",
            description="Test texts by their task (row) and the task that was chosen (column).",
            show="{:.0f}".format,
            shades=counts / np.maximum(totals, 1.0),
        )
        accuracy = percent(run.task_free["acc"])
        known = percent(Spread.of([run.metric("acc")]).mean)
        return Figure(
            picture,
            f"{_name(run)}: acc {accuracy} ({known} when told)",
            self.source(run, RESULTS_NAME, "task_free"),
        )

    def _loss(self, run: Run) -> Figure | None:
        present = [
            key for key in _LOSS_STYLES if any(line.get(key) is not None for line in run.log)
        ]
        if "loss_instruction" in present and "loss" in present:
            pairs = [(line.get("loss"), line.get("loss_instruction")) for line in run.log]
            if all(first == second for first, second in pairs):
                present.remove("loss")
        if not any(line.get("loss_adversarial") for line in run.log):
            present = [key for key in present if key != "loss_adversarial"]
        if not present:
            return None
        parts = _task_parts(run.log)
        lines = [svg.Line(key, _thinned(parts, key), _LOSS_STYLES[key]) for key in present]
        last = run.log[-1]["step"]
        steps = svg.nice_axis([0, last], "{:g}".format, "step")
        steps = dataclasses.replace(
            steps, high=max(last, 1), ticks=[tick for tick in steps.ticks if tick <= last]
        )
        values = [y for line in lines for _, y in line.points]
        starts = [0, *(part[-1]["step"] for part in parts[:-1])]
        names = [str(part[0]["task"]) for part in parts]
        picture = svg.line_chart(
            lines,
            steps,
            svg.nice_axis([0.0, *values], "{:g}".format, "loss"),
            title=f"Training loss of {_name(run)}, order {run.order}",
            description=f"{', '.join(present)} over {last} steps; tasks: {', '.join(names)}.",
            size=(330, 190),
            sections=list(zip(starts, names, strict=True)),
        )
        return Figure(picture, _name(run), self.source(run, LOG_NAME, ", ".join(present)))

    def _gate(self, run: Run) -> Figure | None:
        weights = run.results.get("gate_weights")
        if weights is None:
            return None
        values = np.asarray(weights, np.float64)
        picture = svg.heat_map(
            values,
            run.tasks,
            [str(layer) for layer in range(values.shape[1])],
            title=f"Gate weights of {_name(run)}, order {run.order}",
            description="Mean weight of the shared expert, a row a task, a column a layer.",
            show=_hundredths,
            cell=(27, 24),
        )
        return Figure(picture, _name(run), self.source(run, RESULTS_NAME, "gate_weights"))

    def _layers(self, run: Run) -> Figure | None:
        key = "discriminator_accuracy_by_layer"
        lines = [line for line in run.log if line.get(key) is not None]
        if not lines:
            return None
        parts = _task_parts(lines)
        share = max(1, _STEP_COLUMNS // len(parts))
        columns: list[NDArray[np.float64]] = []
        steps: list[str] = []
        gaps: list[int] = []
        for part in parts:
            gaps.append(len(columns))
            for chunk in np.array_split(np.arange(len(part)), min(share, len(part))):
                rows = np.array([part[index][key] for index in chunk], np.float64)
                columns.append(_mean(rows))
                steps.append(str(part[chunk[-1]]["step"]))
        values = np.stack(columns, axis=1)
        names = ", ".join(str(part[0]["task"]) for part in parts)
        picture = svg.heat_map(
            values,
            [f"layer {layer}" for layer in range(len(values))],
            steps,
            title=f"Discriminator accuracy of {_name(run)}, order {run.order}",
            description=f"In percent, a row a layer, a column some steps; tasks: {names}.",
            show=lambda value: f"{100 * value:.0f}",
            cell=(27, 16),
            gaps=gaps[1:],
        )
        return Figure(picture, f"{_name(run)}; tasks: {names}", self.source(run, LOG_NAME, key))


_MATRIX_TEXT = (
    "Test accuracy in percent on each task (column) after each stage of training (row). Framed: "
    "just after the task's own training; below the frame, what later tasks have left of it; above "
    "it, before its own training. A dash was not measured."
)
_FORGETTING_TEXT = (
    "Test accuracy on each task from its own training on, as further tasks are learned; a mean "
    "over the seeds of one order. Orders are not averaged, because the same task stands at another "
    "place in each. A flat line forgets nothing. All charts of an order have the same scale, but "
    "not the same place on it."
)
_CHOICE_TEXT = (
    "Test texts by the task they belong to (row) and the task that was picked from the text alone "
    "(column); the stronger the colour, the larger the part of the row."
)
_LOSS_TEXT = (
    "Training loss over optimizer steps, with a dashed line where a task begins. Long curves are "
    f"thinned to about {_CURVE_POINTS} points, each the mean of the logged steps that it stands "
    "for, within one task. Each chart has its own scale."
)
_GATE_TEXT = (
    "Mean weight of the shared expert over the test tokens of each task (row) in each layer "
    "(column) at the end; the rest is the task expert's. 1.00 is the shared "
    "expert alone, 0.50 both alike."
)
_DISCRIMINATOR_TEXT = (
    "How often each layer's discriminator tells the task from the shared expert's output, in "
    "percent; a column is the mean of the logged steps up to the one it names, and a line parts "
    "the tasks."
)
_LOSS_STYLES = {"loss": 6, "loss_instruction": 0, "loss_adversarial": 3}  # none is dashed
_LOSS_LEGEND = tuple((style, key) for key, style in _LOSS_STYLES.items())


def _name(run: Run) -> str:
    return f"{run.variant}, seed {run.seed}"


def _order_title(order: str, runs: Sequence[Run]) -> str:
    return f"Order {order}: {', '.join(runs[0].tasks)}"


def _forgetting_chart(
    means: Mapping[str, NDArray[np.float64]],
    tasks: Sequence[str],
    index: int,
    axis: svg.Axis,
    styles: Mapping[str, int],
) -> svg.Element:
    lines = []
    for name, matrix in means.items():
        column = 100 * matrix[index:, index]
        points = [(index + 1.0 + i, float(y)) for i, y in enumerate(column) if not np.isnan(y)]
        shown = ", ".join(f"{y:.1f}" for _, y in points)
        lines.append(svg.Line(f"{name}: {shown}", points, styles[name]))
    stages = range(1, len(tasks) + 1)
    across = svg.Axis(0.8, len(tasks) + 0.2, list(stages), "{:g}".format, "tasks trained")
    described = "; ".join(line.name for line in lines)
    return svg.line_chart(
        lines,
        across,
        axis,
        title=f"Accuracy on {tasks[index]}, which is task {index + 1}",
        description=f"In percent, from its own training to the end. {described}.",
        dots=True,
    )


def _task_parts(log: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The lines task by task."""
    parts: list[list[Mapping[str, Any]]] = []
    for line in log:
        if not parts or parts[-1][0]["task"] != line["task"]:
            parts.append([])
        parts[-1].append(line)
    return parts


def _thinned(parts: Sequence[Sequence[Mapping[str, Any]]], key: str) -> list[tuple[float, float]]:
    """Mean step and mean value of bins that hold about equally many lines, each of one task."""
    total = sum(map(len, parts))
    points = []
    for part in parts:
        bins = min(len(part), max(2, round(_CURVE_POINTS * len(part) / total)))
        steps = np.array([line["step"] for line in part], np.float64)
        values = np.array([line.get(key) for line in part], np.float64)
        for chunk in np.array_split(np.arange(len(part)), bins):
            points.append((float(steps[chunk].mean()), float(_mean(values[chunk]))))
    return points


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the first axis, of what is not NaN; NaN, without a warning, of nothing."""
    known = ~np.isnan(values)
    count = known.sum(axis=0)
    total = np.where(known, values, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _hundredths(value: float) -> str:
    return f"{value:.2f}".removeprefix("0")
