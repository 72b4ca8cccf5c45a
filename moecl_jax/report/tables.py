"""The tables of a report: rows of cells for the page, and the same as Markdown and CSV."""

import csv
import dataclasses
import datetime
import functools
import io
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moecl_jax.report.intervals import Interval
from moecl_jax.report.runs import FinishedRun
from moecl_jax.report.summary import Difference, Spread, Variant, differences, marks, percent
from moecl_jax.runs.names import METRIC_NAMES, SPLIT_NAMES
from moecl_jax.runs.results import Results

TaskValue = Callable[[Results], NDArray[np.float64]]
MAJORITY = "majority label"
"""The baseline that always gives the label that most of a task's test texts have."""
_LABEL_FIGURES = {"precision": "precision", "recall": "recall", "f1": "F1"}

# Settings that should be equal in all runs of a fair comparison: label, and key of the config.
_BUDGET = (
    ("model", "model.path"),
    ("head", "head"),
    ("epochs", "epochs"),
    ("batch size", "batch.size"),
    ("learning rate", "optimizer.learning_rate"),
    ("schedule", "optimizer.schedule"),
    ("LoRA rank", "lora.rank"),
    ("weights kept", "selection"),
    ("tokens of a text", "data.max_length"),
    ("test texts of a task before the end, 0 for all", "evaluation.early_examples"),
)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
      text: text that the cell shows.
      mark: how the cell is set off, or an empty string. `best` and `second` rank a column;
        `settled` says that a difference is; `name` says that the text is a name. In the cell that
        names a row, `bound` says that the row is an upper bound or a baseline, which is not ranked.
    """

    text: str
    mark: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table whose first column names the rows.

    Attributes:
      header: names of the columns, the first included.
      rows: cells of each row, as many as there are columns.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def accuracy_table(variants: Sequence[Variant], orders: Sequence[str]) -> Table:
    """Makes the main table: a row a variant, with accuracies by order, then means and spreads.

    A column that no variant has values for is left out. Below the variants stand the accuracies of
    the untrained model, and of always giving the label that most of a task's texts have.

    Args:
      variants: rows of the table, in this order.
      orders: names of the orders of tasks; one column each where there are several.
    """
    columns = [_spread_column("acc", variants, functools.partial(_metric, name="acc"))]
    if any(variant.interval.known for variant in variants):
        columns.append(("95% interval", [Cell(_ends(v.interval)) for v in variants]))
    if len(orders) > 1:
        columns += [
            _marked(f"order {order}", variants, functools.partial(_in_order, order=order))
            for order in orders
        ]
    spreads: list[tuple[str, Callable[[Variant], Spread]]] = [
        ("macro F1", lambda v: v.macro_f1),
        ("acc, task not given", lambda v: v.task_free),
        ("acc under attack", lambda v: v.under_attack),
        *((name, functools.partial(_metric, name=name)) for name in ("bwt", "fwt", "forgetting")),
    ]
    for label, spread in spreads:
        if any(spread(variant).count for variant in variants):
            change = label in METRIC_NAMES
            low = label == "forgetting"
            columns.append(_spread_column(label, variants, spread, sign=change, low_is_good=low))
    columns.append(("runs", [Cell(str(len(variant.runs))) for variant in variants]))
    table = _from_columns("method", variants, columns)
    rest = [Cell("")] * (len(columns) - 1)
    baselines = [
        [
            Cell(name, "bound"),
            Cell(percent(Spread.of(s.mean for s in spreads.values()).mean)),
            *rest,
        ]
        for name, spreads in _baselines(variants).items()
        if all(spread.count for spread in spreads.values())
    ]
    return Table(table.header, [*table.rows, *baselines])


def task_table(
    variants: Sequence[Variant], tasks: Sequence[str], value: TaskValue, *, baselines: bool = False
) -> Table | None:
    """Makes a table of a value at the end of the stream: a row a variant, a column a task.

    Args:
      variants: rows of the table, in this order.
      tasks: names of the tasks.
      value: gives the values of a run's tasks, fractions.
      baselines: whether the untrained model and the majority label stand below.

    Returns:
      The table; None if no run has values.
    """
    found = {variant.name: variant.of_tasks(value) for variant in variants}
    if not any(spread.count for spreads in found.values() for spread in spreads.values()):
        return None
    columns = [
        _spread_column(task, variants, lambda v, task=task: found[v.name][task])  # type: ignore[misc]
        for task in tasks
    ]
    table = _from_columns("method", variants, columns)
    below = _baselines(variants).items() if baselines else ()
    rows = [
        [Cell(name, "bound"), *(Cell(percent(spreads[task].mean)) for task in tasks)]
        for name, spreads in below
    ]
    return Table(table.header, [*table.rows, *rows])


def label_table(variants: Sequence[Variant], task: str) -> Table | None:
    """Makes the table of a task's labels at the end of the stream: a row a label and variant.

    Figures are means over the runs in which they are defined.

    Args:
      variants: variants in the order of the main table.
      task: name of the task.

    Returns:
      The table; None if no run has figures of the task's labels.
    """
    by_label: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for variant in variants:
        for run in variant.runs:
            found = run.results.classification[run.results.tasks.index(task)] or {"labels": ()}
            for place, label in enumerate(found["labels"]):
                figures = {key: found[key][place] for key in ("support", *_LABEL_FIGURES)}
                by_label.setdefault(label, {}).setdefault(variant.name, []).append(figures)
    rows = []
    for label, by_variant in by_label.items():
        for name, runs in by_variant.items():
            means = [Spread.of(figures[key] for figures in runs).mean for key in _LABEL_FIGURES]
            texts = Spread.of(figures["support"] for figures in runs).mean
            shown = (*map(percent, means), f"{texts:g}")
            rows.append([Cell(label), Cell(name, "name"), *map(Cell, shown)])
    return Table(["label", "method", *_LABEL_FIGURES.values(), "texts"], rows) if rows else None


def _baselines(variants: Sequence[Variant]) -> dict[str, dict[str, Spread]]:
    """What any method should exceed, by name and task, where it is known."""
    everything = dataclasses.replace(
        variants[0], runs=[run for variant in variants for run in variant.runs]
    )
    found = {
        MAJORITY: everything.of_tasks(lambda results: results.majority),
        "untrained": everything.of_tasks(lambda results: results.comparable[1]),
    }
    return {
        name: spreads
        for name, spreads in found.items()
        if any(spread.count for spread in spreads.values())
    }


def difference_table(variants: Sequence[Variant]) -> Table:
    """Makes the table of differences in accuracy between all pairs of variants.

    A cell has the accuracy of its row minus that of its column, and the interval of that.

    Args:
      variants: at least two, in the order of the main table.
    """
    found = {(d.first, d.second): d for d in differences(variants)}
    columns = [
        (v.name, [_difference_cell(found.get((row.name, v.name))) for row in variants])
        for v in variants[1:]
    ]
    table = _from_columns("row less column", variants, columns)
    return Table(table.header, table.rows[:-1])


def cost_table(variants: Sequence[Variant]) -> Table:
    """Makes the table of costs: parameters, examples stored and shown, steps, speed and time.

    A cell is a mean over the runs of a variant. A column that no run has values for is left out.
    """

    def result(key: str) -> Callable[[FinishedRun], Any]:
        return lambda run: run.results.content.get(key)

    def parameters(kind: str) -> Callable[[FinishedRun], Any]:
        return lambda run: (run.results.content.get("parameters") or {}).get(kind)

    def demonstrations(kind: str) -> Callable[[FinishedRun], Any]:
        def mean(run: FinishedRun) -> float | None:
            known = run.results.content.get("demonstrations")
            return None if known is None else statistics.mean(known[kind])

        return mean

    columns: list[tuple[str, list[Cell]]] = []
    for label, value, show in (
        ("parameters trained", parameters("trained"), _thousands),
        ("parameters stored", parameters("stored"), _thousands),
        ("MB stored", parameters("stored_bytes"), _megabytes),
        ("frozen model", parameters("frozen"), _thousands),
        ("examples stored", result("stored_examples"), _thousands),
        ("demonstrations a text", demonstrations("shown"), "{:.1f}".format),
        ("left out for lack of room", demonstrations("left_out"), "{:.1f}".format),
        ("steps", result("steps"), _thousands),
        ("examples/s", examples_per_second, "{:.2f}".format),
        ("wall time", result("wall_seconds"), _duration),
    ):
        means = [Spread.of(map(value, variant.runs)).mean for variant in variants]
        if not all(map(math.isnan, means)):
            columns.append((label, [Cell("-" if m != m else show(m)) for m in means]))
    return _from_columns("method", variants, columns)


def examples_per_second(run: FinishedRun) -> float | None:
    """Returns the median training speed over the logged steps; None if no speed was logged."""
    values = [line.get("examples_per_second") for line in run.log]
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def budget(runs: Sequence[FinishedRun]) -> tuple[dict[str, str], list[str]]:
    """Collects what each run was given: model, settings, steps and numbers of texts.

    Args:
      runs: all runs of the report.

    Returns:
      The values by label, several joined by slashes where the runs differ, and a warning for each
      label in which they differ.
    """
    items: dict[str, Callable[[FinishedRun], Any]] = {
        label: functools.partial(FinishedRun.setting, key=key) for label, key in _BUDGET
    }
    items["steps"] = lambda run: run.results.content.get("steps")
    for split in SPLIT_NAMES:
        items[f"{split} texts"] = functools.partial(_sizes, split=split)
    shown, warnings = {}, []
    for label, value in items.items():
        variants: dict[str, dict[str, None]] = {}
        for run in runs:
            if value(run) is not None:
                variants.setdefault(str(value(run)), {})[run.variant] = None
        if variants:
            shown[label] = " / ".join(variants)
        if len(variants) > 1:
            listed = "; ".join(f"{v} ({', '.join(names)})" for v, names in variants.items())
            warnings.append(f"The runs differ in {label}: {listed}")
    return shown, warnings


def coverage(variants: Sequence[Variant]) -> list[str]:
    """Warns of variants with different orders or seeds.

    Args:
      variants: rows of the main table.

    Returns:
      The warnings; an empty list if all rows cover the same orders and seeds.
    """
    pairs = {v.name: {(run.order, run.results.seed) for run in v.runs} for v in variants}
    everything = set().union(*pairs.values())
    partial = [name for name, covered in pairs.items() if covered != everything]
    if not partial:
        return []
    return [
        "Means are over different orders or seeds: these methods lack some that others have: "
        + ", ".join(partial)
    ]


def to_markdown(table: Table) -> str:
    """Writes a table in GitHub's Markdown; the best is bold, the second best underlined."""
    lines = [[escape_markdown(name) for name in table.header], ["---"] * len(table.header)]
    for first, *others in table.rows:
        lines.append([_code(first.text), *(_MARKDOWN[cell.mark](cell.text) for cell in others)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def to_csv(runs: Sequence[FinishedRun], folder_of: Callable[[FinishedRun], str]) -> str:
    """Writes all scalars of all runs as CSV, one line a run.

    Args:
      runs: runs to write, in this order.
      folder_of: returns the path to write for a run's folder.

    Returns:
      The text. Fractions have full precision; an unknown value is empty.
    """
    lines = [_scalars(run, folder_of(run)) for run in runs]
    names = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _scalars(run: FinishedRun, folder: str) -> dict[str, Any]:
    results, content = run.results, run.results.content
    line: dict[str, Any] = {
        "variant": run.variant,
        "method": results.method,
        "order": run.order,
        "seed": results.seed,
        "workdir": folder,
        "tasks": " ".join(results.tasks),
    }
    line |= {name: results.metrics[name] for name in METRIC_NAMES}
    line["macro_f1"] = _or_none(Spread.of(results.macro_f1).mean)
    line["task_free_acc"] = results.task_free.get("acc")
    if results.robustness:
        line["under_attack_acc"] = results.robustness["acc_under_attack"]
    line["wall_seconds"] = content["wall_seconds"]
    line["examples_per_second"] = examples_per_second(run)
    line |= {key: content.get(key) for key in ("steps", "stored_examples", "selection")}
    parameters = content.get("parameters") or {}
    line |= {
        f"parameters.{key}": parameters.get(key)
        for key in ("frozen", "trained", "stored", "stored_bytes")
    }
    line |= {f"config.{key}": run.setting(key) for _, key in _BUDGET if key != "selection"}
    versions = content.get("versions") or {}
    line |= {f"versions.{name}": version for name, version in versions.items()}
    for name, values in (
        ("final_accuracy", results.matrix[-1]),
        ("macro_f1", results.macro_f1),
        ("majority", results.majority),
        ("untrained", results.comparable[1]),
    ):
        shown = zip(results.tasks, values.tolist(), strict=True)
        line |= {f"{name}.{task}": _or_none(value) for task, value in shown}
    for split in SPLIT_NAMES:
        line |= {f"sizes.{split}.{task}": n for task, n in (run.split_sizes(split) or {}).items()}
    return line


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _in_order(variant: Variant, order: str) -> float:
    return variant.by_order.get(order, math.nan)


def _metric(variant: Variant, name: str) -> Spread:
    return variant.metrics[name]


def _marked(
    label: str, variants: Sequence[Variant], value: Callable[[Variant], float]
) -> tuple[str, list[Cell]]:
    values = {variant.name: value(variant) for variant in variants}
    found = marks({v.name: values[v.name] for v in variants if v.ranked})
    return label, [Cell(percent(values[v.name]), found.get(v.name, "")) for v in variants]


def _spread_column(
    label: str,
    variants: Sequence[Variant],
    spread: Callable[[Variant], Spread],
    *,
    sign: bool = False,
    low_is_good: bool = False,
) -> tuple[str, list[Cell]]:
    spreads = {variant.name: spread(variant) for variant in variants}
    ranked = {v.name: spreads[v.name].mean for v in variants if v.ranked}
    found = marks(ranked, low_is_good=low_is_good)
    cells = []
    for name, value in spreads.items():
        text = percent(value.mean, sign=sign)
        if not math.isnan(value.deviation):
            text += f" ± {percent(value.deviation)}"
        cells.append(Cell(text, found.get(name, "")))
    return label, cells


def _difference_cell(found: Difference | None) -> Cell:
    if found is None:
        return Cell("")
    text = f"{percent(found.difference, sign=True)} [{_ends(found.interval, sign=True)}]"
    return Cell(text, "settled" if found.settled else "")


def _ends(interval: Interval, *, sign: bool = False) -> str:
    if not interval.known:
        return "-"
    return f"{percent(interval.low, sign=sign)} to {percent(interval.high, sign=sign)}"


def _from_columns(
    corner: str, variants: Sequence[Variant], columns: Sequence[tuple[str, Sequence[Cell]]]
) -> Table:
    names = [Cell(variant.name, "" if variant.ranked else "bound") for variant in variants]
    rows = zip(names, *(cells for _, cells in columns), strict=True)
    return Table([corner, *(label for label, _ in columns)], [list(row) for row in rows])


def _sizes(run: FinishedRun, split: str) -> str | None:
    counts = run.split_sizes(split)
    if counts is None:
        return None
    if len(set(counts.values())) == 1:
        return f"{next(iter(counts.values()))} a task"
    return ", ".join(f"{task} {count}" for task, count in sorted(counts.items()))


def _thousands(value: float) -> str:
    return f"{value:,.0f}"


def _megabytes(value: float) -> str:
    return f"{value / 1e6:,.1f}"


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


def _code(text: str) -> str:
    """A code span, in which Markdown gives a meaning to no character but a table's bar."""
    return "`" + " ".join(text.replace("`", "'").replace("|", "\\|").split()) + "`"


def escape_markdown(text: str) -> str:
    """Escapes a text so that no character means anything to Markdown or HTML."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#&~" else c for c in " ".join(text.split()))


_MARKDOWN: Mapping[str, Callable[[str], str]] = {
    "": lambda text: text,
    "best": lambda text: f"**{text}**",
    "second": lambda text: f"<ins>{text}</ins>",
    "settled": lambda text: f"**{text}**",
    "name": _code,
}
