"""A comparison of the runs on one set of tasks: its title, its outcome in words, its tables."""

import math
import operator
from collections.abc import Sequence

from moecl_jax.report import tables
from moecl_jax.report.pictures import Album
from moecl_jax.report.runs import FinishedRun, sorted_order_names
from moecl_jax.report.summary import ENOUGH_SEEDS, difference, percent, summarize
from moecl_jax.report.tables import Table

_MOST_NAMED = 4  # a title of more methods, or tasks, would not be read


class Comparison:
    """The runs on one set of tasks, compared. Runs on other tasks are never mixed with them.

    Attributes:
      variants: rows of the tables, best first.
      orders: tasks of each order, by the order's name.
      tasks: names of the tasks, in the first order.
      album: the pictures.
      accuracies: the main table.
      by_task: tables of accuracy, with changed texts too, and macro F1 by task, by their title.
      by_label: tables of the labels' figures, by task.
      differences: the table of differences; None if there is only one variant.
      costs: the table of costs.
      budget: what the runs were given, by label.
      warnings: reasons why the rows may not be comparable.
    """

    def __init__(self, runs: Sequence[FinishedRun], name: str = "") -> None:
        """Computes the tables.

        Args:
          runs: finished runs on the same tasks, at least one.
          name: what the names of the pictures' files begin with.
        """
        self.runs = runs
        self.variants = summarize(runs)
        self.orders = {
            name: next(run.results.tasks for run in runs if run.order == name)
            for name in sorted_order_names(run.order for run in runs)
        }
        self.tasks = next(iter(self.orders.values()))
        self.album = Album(self.variants, name)
        self.accuracies = tables.accuracy_table(self.variants, list(self.orders))
        by_task = {
            "Accuracy": tables.task_table(
                self.variants, self.tasks, lambda results: results.matrix[-1], baselines=True
            ),
            "Macro F1": tables.task_table(
                self.variants, self.tasks, lambda results: results.macro_f1
            ),
            **self._with_changed_texts(runs),
        }
        self.by_task = {title: table for title, table in by_task.items() if table is not None}
        by_label = {task: tables.label_table(self.variants, task) for task in self.tasks}
        self.by_label = {task: table for task, table in by_label.items() if table is not None}
        self.differences = (
            tables.difference_table(self.variants) if len(self.variants) > 1 else None
        )
        self.costs = tables.cost_table(self.variants)
        self.budget, differing = tables.budget(runs)
        self.warnings = tables.coverage(self.variants) + differing

    def _with_changed_texts(self, runs: Sequence[FinishedRun]) -> dict[str, Table | None]:
        """Tables of the accuracy with each kind of change, and with all of them."""
        found = [run.results.robustness for run in runs if run.results.robustness]
        if not found:
            return {}
        kinds = dict.fromkeys(kind for each in found for kind in each["accuracy"])
        return {
            title: tables.task_table(
                self.variants, self.tasks, operator.methodcaller("accuracy_with", kind)
            )
            for title, kind in (
                *((f"Accuracy with {kind}", kind) for kind in kinds),
                ("Accuracy under attack", None),
            )
        }

    @property
    def title(self) -> str:
        """The methods, and how many tasks they learn."""
        names = _listed([variant.name for variant in self.variants], "more")
        return f"{names} on {_counted(len(self.tasks), 'task')}"

    @property
    def scope(self) -> str:
        """The tasks, the numbers of orders, seeds and runs, and the model."""
        models = dict.fromkeys(str(run.setting("model.path") or "") for run in self.runs)
        texts = [
            _listed(self.tasks, "more"),
            _counted(len(self.orders), "order"),
            _counted(len({run.results.seed for run in self.runs}), "seed"),
            _counted(len(self.runs), "run"),
            *filter(None, models),
        ]
        return " · ".join(texts)

    @property
    def outcome(self) -> str:
        """One or two sentences that name the best method and say whether its lead is settled."""
        ranked = [v for v in self.variants if v.ranked and not math.isnan(v.accuracy)]
        if not ranked:
            return "No method's accuracy at the end is known."
        first = ranked[0]
        text = f"At the end of the stream {first.name} has a mean accuracy of "
        text += f"{percent(first.accuracy)} %"
        if len(ranked) == 1:
            return f"{text}{self._seeds_of_one()}."
        pair = difference(*ranked[:2])
        shown = percent(abs(pair.difference))
        if float(shown) == 0:
            text += f", as much as the next, {pair.second}."
        else:
            side = "above" if pair.difference > 0 else "below"
            text += f", {shown} points {side} the next, {pair.second}."
        if not pair.seeds:
            return f"{text} They share no order and seed, in which they could be compared in pairs."
        if not pair.interval.known:
            return text + " Whether that is chance cannot be told: the runs' answers are not known."
        ends = (
            f"{percent(pair.interval.low, sign=True)} to {percent(pair.interval.high, sign=True)}"
        )
        if pair.seeds < ENOUGH_SEEDS:
            return text + (
                f" By the test texts alone the difference lies in {ends}; "
                f"{_counted(pair.seeds, 'seed')} cannot tell what another seed would change."
            )
        text += f" The 95% interval of the difference over {pair.seeds} seeds is {ends}"
        if pair.settled:
            return f"{text}: it excludes 0."
        return f"{text}: it includes 0, so the lead is not settled."

    def _seeds_of_one(self) -> str:
        """The interval of the only variant, and what it is of."""
        (variant,) = [v for v in self.variants if v.ranked]
        if not variant.interval.known:
            return ""
        ends = f"{percent(variant.interval.low)} to {percent(variant.interval.high)}"
        of = "runs and test texts" if len(variant.runs) > 1 else "test texts alone"
        return f" (95% interval {ends}, over {of})"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _listed(names: Sequence[str], rest: str) -> str:
    """Joins names, of which a long list is cut short."""
    shown = list(names)
    if len(shown) > _MOST_NAMED:
        shown = [*shown[: _MOST_NAMED - 1], f"{len(shown) - _MOST_NAMED + 1} {rest}"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
