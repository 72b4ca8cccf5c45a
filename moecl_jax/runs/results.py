"""The results of a finished training: reading them, showing them as text, and plotting them."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moecl_jax.errors import UserError, one_line
from moecl_jax.outside import parse_json, shortened
from moecl_jax.runs.changes import finish_interrupted
from moecl_jax.runs.log import plain
from moecl_jax.runs.metrics import comparable, forward_transfer
from moecl_jax.runs.names import METRIC_NAMES, RESULTS_NAME, SPLIT_NAMES
from moecl_jax.runs.tables import (
    format_matrix,
    format_metrics,
    format_robustness,
    format_task_free,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_REQUIRED_KEYS = (
    "method",
    "tasks",
    "accuracy_matrix",
    "random_init",
    "metrics",
    "seed",
    "wall_seconds",
)
# Further keys that a reader calculates with or lists; they may be absent or null.
_NUMBERS = ("steps", "stored_examples", "skipped_steps")
_OBJECTS = ("parameters", "versions")
_ADVICE = "Restore it from a copy, or leave its folder out."

_MOST_NAMED_CURVES = 12  # a legend of more tasks would be larger than the plot
_FRAME_COLOR = "#d55e00"


@dataclasses.dataclass(frozen=True)
class Results:
    """The outcome of a training on a stream of T tasks, as results.json holds it.

    `print(results)` shows the accuracy matrix and the metrics, and `results.plot()` draws them. Two
    results are equal if their whole contents are.

    Attributes:
      method: name of the method that was trained.
      tasks: names of the tasks in the order of training, T of them.
      matrix: `R`, `[T, T]`: `R[i, j]` is the test accuracy on task j after training task i, a
        fraction; NaN where it was not measured. Read-only.
      random_init: `b`, `[T]`: test accuracy on each task before any training, a fraction; NaN where
        it was not measured. Read-only.
      comparable: `R` and `b` whose entries before a task's own training are by the best-scored
        label where a language model writes the labels, as `runs.metrics.comparable` gives them.
        Tables and pictures show these.
      metrics: `acc`, `bwt`, `fwt` and `forgetting` as fractions, defined in `runs.metrics`; None
        where too little was measured. `fwt` is of `comparable`, so None in a file that has no
        scored accuracy of the untrained model.
      majority: `[T]`, accuracy on each task of always giving the label that most of its test texts
        have; NaN in free-form tasks and where it was not measured. Read-only.
      macro_f1: `[T]`, macro F1 on each task at the end of the stream; NaN as above. Read-only.
      classification: for each task the figures of each label at the end of the stream: `labels`,
        `support`, `precision`, `recall` and `f1`, lists; None in free-form tasks and where it was
        not measured.
      seed: seed of the run.
      wall_seconds: duration of the training, in seconds.
      task_free: accuracies when the task is not given but chosen from each text: `acc`, `accuracy`
        `[T]`, and `choices` `[T, T]`, counts of test texts by their task (row) and the chosen one
        (column). Empty where this was not measured.
      robustness: accuracies with changed test texts: `rate`, `accuracy` and `changed` by kind of
        change, `under_attack` `[T]` and its mean `acc_under_attack`. Empty where this was not
        measured.
      content: the whole content of results.json; None stands for what was not measured.
    """

    method: str = dataclasses.field(compare=False)
    tasks: tuple[str, ...] = dataclasses.field(compare=False)
    matrix: NDArray[np.float64] = dataclasses.field(compare=False)
    random_init: NDArray[np.float64] = dataclasses.field(compare=False)
    comparable: tuple[NDArray[np.float64], NDArray[np.float64]] = dataclasses.field(compare=False)
    metrics: Mapping[str, float | None] = dataclasses.field(compare=False)
    majority: NDArray[np.float64] = dataclasses.field(compare=False)
    macro_f1: NDArray[np.float64] = dataclasses.field(compare=False)
    classification: Sequence[Mapping[str, Any] | None] = dataclasses.field(compare=False)
    seed: int = dataclasses.field(compare=False)
    wall_seconds: float = dataclasses.field(compare=False)
    task_free: Mapping[str, Any] = dataclasses.field(compare=False)
    robustness: Mapping[str, Any] = dataclasses.field(compare=False)
    content: Mapping[str, Any] = dataclasses.field(repr=False)

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> "Results":
        """Makes results from the content of a results.json.

        Args:
          content: an object with at least the keys `method`, `tasks`, `accuracy_matrix`,
            `random_init`, `metrics`, `seed` and `wall_seconds`. Further keys are kept. NumPy
            numbers become Python's, and NaN becomes None.

        Raises:
          UserError: if a key is missing, or a value has the wrong type or shape.
        """
        return cls._parse(content, f"the content of {RESULTS_NAME}")

    @classmethod
    def load(cls, workdir: str | Path) -> "Results":
        """Reads the results.json of a workdir.

        Args:
          workdir: the folder of a finished training.

        Raises:
          UserError: if the file does not exist, cannot be read, or is broken.
        """
        finish_interrupted(Path(workdir))
        path = Path(workdir) / RESULTS_NAME
        if not path.exists():
            raise UserError(
                f"{path} does not exist: {workdir} is no workdir, or its training has not "
                "finished. Finish the training, or name another workdir."
            )
        return cls._parse(read_object(path), str(path))

    @classmethod
    def _parse(cls, content: Mapping[str, Any], where: str) -> "Results":
        """Checks a content; `where` begins the message of an error."""
        try:
            _check(content)
            tasks = tuple(map(str, content["tasks"]))
            matrix = _read_only(content["accuracy_matrix"])
            random_init = _read_only(content["random_init"])
            before = matrix, random_init
            metrics = {name: _float_or_none(content["metrics"][name]) for name in METRIC_NAMES}
            scored = content.get("scored_accuracy_matrix")
            if scored is not None:
                baseline = content.get("scored_random_init") or [None] * len(tasks)
                before = comparable(*before, scored, _read_only(baseline))
                metrics["fwt"] = _float_or_none(forward_transfer(*before))
            figures = content.get("classification") or [None] * len(tasks)
            return cls(
                method=str(content["method"]),
                tasks=tasks,
                matrix=matrix,
                random_init=random_init,
                comparable=before,
                metrics=metrics,
                majority=_read_only([one and one["majority"] for one in figures]),
                macro_f1=_read_only([one and one["macro_f1"] for one in figures]),
                classification=tuple(figures),
                seed=int(content["seed"]),
                wall_seconds=float(content["wall_seconds"]),
                task_free=plain(content.get("task_free") or {}),
                robustness=plain(content.get("robustness") or {}),
                content=plain(content),
            )
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"{where} is broken: {one_line(error)}. Train that run again, or leave it out."
            ) from error

    def to_content(self) -> dict[str, Any]:
        """Returns the content of results.json, ready to be written as JSON."""
        return dict(self.content)

    def __str__(self) -> str:
        text = format_matrix(
            self.tasks,
            *self.comparable,
            self.metrics,
            majority=self.majority,
            macro_f1=self.macro_f1,
            scored="scored_accuracy_matrix" in self.content,
        )
        if self.task_free:
            text += f"\n\n{format_task_free(self.tasks, self.task_free, self.matrix)}"
        if self.robustness:
            text += f"\n\n{format_robustness(self.tasks, self.robustness, self.matrix)}"
        return text

    def accuracy_with(self, kind: str | None) -> NDArray[np.float64]:
        """Accuracy on each task with changed test texts, `[T]`; NaN where it was not measured.

        Args:
          kind: kind of change; None for the texts that are answered rightly with every kind.
        """
        found = self.robustness.get("under_attack")
        if kind is not None:
            found = self.robustness.get("accuracy", {}).get(kind)
        return _read_only([None] * len(self.tasks) if found is None else found)

    def plot(self, path: str | Path | None = None) -> "Figure":
        """Draws the accuracy matrix, and the accuracies over the stream of tasks.

        On the left is a heat map with a row for each stage of training and a column for each task;
        a frame marks the accuracy just after a task's own training. Its first row is the accuracy
        of always giving the label that most of a task's texts have, where that is known. On the
        right are the accuracy of each task from its own training on and, thicker, the mean over all
        tasks trained so far.
        The figure has its own background, and takes its text colours from matplotlib's style, so
        that it is readable on light and dark pages.

        Args:
          path: file to save the figure to, such as `results.png` or `results.svg`; None to save
            nothing.

        Returns:
          The matplotlib figure, which a notebook shows. It is not registered with pyplot.

        Raises:
          UserError: if the file cannot be written.
        """
        from matplotlib import pyplot

        count = len(self.tasks)
        matrix_width, height = 2.2 + 0.6 * count, max(3.6, 1.8 + 0.45 * (count + 1))
        figure, (left, right) = pyplot.subplots(
            ncols=2,
            figsize=(matrix_width + 6.0, height),
            width_ratios=(matrix_width, 6.0),
            layout="constrained",
        )
        pyplot.close(figure)  # else a notebook would show it twice, and pyplot keep it for ever
        self._draw_matrix(left)
        self._draw_stream(right)
        figure.suptitle(f"{self.method}, seed {self.seed}: {format_metrics(self.metrics)} (in %)")
        if path is not None:
            try:
                figure.savefig(path)
            except (OSError, ValueError) as error:
                raise UserError(
                    f"cannot write the plot {path}: {one_line(error)}. Name a file in an existing "
                    "folder that ends in .png, .svg or .pdf."
                ) from error
        return figure

    def _draw_matrix(self, axes: "Axes") -> None:
        """Draws `b` above `R` as a heat map with numbers, in percent."""
        from matplotlib import colormaps
        from matplotlib.patches import Rectangle

        shades = colormaps["Blues"]
        matrix, baseline = self.comparable
        values = np.vstack([baseline, matrix])
        names = ["untrained", *(f"after {task}" for task in self.tasks)]
        if not np.isnan(self.majority).all():
            values, names = np.vstack([self.majority, values]), ["majority label", *names]
        axes.imshow(values, cmap=shades, vmin=0.0, vmax=1.0, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            text = axes.text(column, row, "-", ha="center", va="center", fontsize=9)
            if math.isnan(value):
                continue  # the cell is not filled, so the dash keeps the style's text colour
            red, green, blue, _ = shades(float(value))
            luminance = 0.299 * red + 0.587 * green + 0.114 * blue
            text.set_text(f"{100 * value:.1f}")
            text.set_color("black" if luminance > 0.5 else "white")
        above = len(values) - len(self.tasks)
        for index in range(len(self.tasks)):
            corner = index - 0.5, index + above - 0.5
            frame = Rectangle(corner, 1, 1, fill=False, edgecolor=_FRAME_COLOR, linewidth=2)
            axes.add_patch(frame).set_clip_on(False)
        axes.set_xticks(range(len(self.tasks)), self.tasks, rotation=40, ha="left")
        axes.set_yticks(range(len(values)), names)
        axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)

    def _draw_stream(self, axes: "Axes") -> None:
        """Draws each task's accuracy since its training and the mean over the trained tasks."""
        count = len(self.tasks)
        stages = np.arange(1, count + 1)
        named = count <= _MOST_NAMED_CURVES
        for index, task in enumerate(self.tasks):
            axes.plot(
                stages[index:],
                100 * self.matrix[index:, index],
                marker="o",
                markersize=3,
                linewidth=1,
                label=task if named else None,
            )
        means = np.full(count, np.nan)
        for index, accuracies in enumerate(100 * self.matrix):
            known = accuracies[: index + 1][~np.isnan(accuracies[: index + 1])]
            if known.size:
                means[index] = known.mean()
        axes.plot(
            stages,
            means,
            color=axes.xaxis.label.get_color(),
            marker="o",
            linewidth=2.5,
            label="mean so far",
        )
        axes.set_xticks(stages, self.tasks, rotation=40, ha="right")
        axes.set_xlabel("after training")
        axes.set_ylabel("test accuracy in %")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
      UserError: if the file cannot be read, or holds something else.
    """
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {one_line(error)}. {_ADVICE}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is broken: expected a JSON object. {_ADVICE}")
    return content


def _read_only(values: Any) -> NDArray[np.float64]:
    """A float64 array of its own, None becoming NaN."""
    array = np.array(values, np.float64)
    array.flags.writeable = False
    return array


def _float_or_none(value: Any) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def _check(content: Mapping[str, Any]) -> None:
    """Raises ValueError, TypeError or LookupError if a value is missing or has a wrong shape."""
    missing = [key for key in _REQUIRED_KEYS if key not in content]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    count = len(content["tasks"])
    for key, shape in (
        ("accuracy_matrix", (count, count)),
        ("random_init", (count,)),
        ("scored_accuracy_matrix", (count, count)),
        ("scored_random_init", (count,)),
        ("gate_weights", (count, None)),
    ):
        if key in _REQUIRED_KEYS or content.get(key) is not None:
            _check_shape(key, content[key], shape)
    if content.get("sizes") is not None:
        for split in SPLIT_NAMES:
            _check_shape(f"sizes.{split}", content["sizes"][split], (count,))
    for key in ("shown", "left_out") if content.get("demonstrations") else ():
        _check_shape(f"demonstrations.{key}", content["demonstrations"][key], (count,))
    if content.get("task_free"):
        _check_shape("task_free.accuracy", content["task_free"]["accuracy"], (count,))
        _check_shape("task_free.choices", content["task_free"]["choices"], (count, count))
    _check_robustness(content.get("robustness"), count)
    _check_right(content.get("right"), count)
    _check_classification(content.get("classification"), count)
    for name in METRIC_NAMES:
        if name not in content["metrics"]:
            raise ValueError(f"metrics lacks {name}")
    _check_numbers(content)


def _check_numbers(content: Mapping[str, Any]) -> None:
    """Checks the further keys that are numbers, and objects of them."""
    for key in _NUMBERS:
        check_number(key, content.get(key))
    for key in _OBJECTS:
        if not isinstance(content.get(key) or {}, Mapping):
            raise TypeError(f"{key} is {shortened(content[key])}; expected an object")
    for key, value in (content.get("parameters") or {}).items():
        check_number(f"parameters.{key}", value)


def _check_robustness(values: Any, count: int) -> None:
    """Checks what was measured on perturbed texts; None, where nothing was, is right."""
    if not values:
        return
    _check_shape("robustness.under_attack", values["under_attack"], (count,))
    for part in ("accuracy", "changed"):
        for kind, of_tasks in values[part].items():
            _check_shape(f"robustness.{part}.{kind}", of_tasks, (count,))
    check_number("robustness.acc_under_attack", values["acc_under_attack"])


def _check_right(values: Any, count: int) -> None:
    """Checks the texts of 0 and 1; None, where results do not have them, is right."""
    if values is None:
        return
    if not isinstance(values, list) or len(values) != count:
        raise TypeError(f"right is {shortened(values)}; expected a list of {count} texts")
    for value in values:
        if not isinstance(value, str) or set(value) - {"0", "1"}:
            raise ValueError(f"right has {shortened(value)}; expected a text of 0 and 1")


def _check_classification(values: Any, count: int) -> None:
    """Checks the figures of each label; None, where results do not have them, is right."""
    if values is None:
        return
    if not isinstance(values, list) or len(values) != count:
        raise TypeError(f"classification is {shortened(values)}; expected a list of {count}")
    for index, task in enumerate(values):
        if task is None:
            continue
        for key in ("majority", "macro_f1"):
            check_number(f"classification[{index}].{key}", task[key])
        for key in ("support", "precision", "recall", "f1"):
            _check_shape(f"classification[{index}].{key}", task[key], (len(task["labels"]),))


def check_number(key: str, value: Any) -> None:
    """Checks a value that JSON holds, or lacks.

    Raises:
      TypeError: it is neither a number nor None.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise TypeError(f"{key} is {shortened(value)}; expected a number")


def _check_shape(key: str, values: Any, expected: tuple[int | None, ...]) -> None:
    shape = np.asarray(values, np.float64).shape
    fits = len(shape) == len(expected) and all(
        wanted in (None, size) for size, wanted in zip(shape, expected, strict=True)
    )
    if not fits:
        wanted = " x ".join("any" if size is None else str(size) for size in expected)
        raise ValueError(
            f"{key} has the shape {' x '.join(map(str, shape))}, but {wanted} was expected"
        )
