"""Makes the page of a report, and its Markdown and CSV companions."""

import datetime
import functools
import itertools
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

import moecl_jax
from moecl_jax.report import svg, tables
from moecl_jax.report.pictures import Album
from moecl_jax.report.runs import FinishedRun, RunFolder, sorted_order_names
from moecl_jax.report.summary import difference, percent, summarize
from moecl_jax.runs.names import CONFIG_NAME, LOG_NAME, RESULTS_NAME

_RESULT_SOURCE = f"{RESULTS_NAME} of the runs listed at the end"
TABLE_SOURCE = f"{_RESULT_SOURCE}: metrics, accuracy_matrix (last row), right, task_free.acc"
COST_SOURCE = (
    f"{_RESULT_SOURCE}: parameters, stored_examples, steps, wall_seconds; their metrics.jsonl: "
    "examples_per_second (median over the logged steps)"
)
BUDGET_SOURCE = f"{CONFIG_NAME} of the runs, and their {RESULTS_NAME}: steps, sizes, versions"
DIFFERENCE_TEXT = (
    "Accuracy (acc) of the row less that of the column, in points, over the orders and seeds that "
    "both have, and its 95% interval: a bootstrap over runs and test texts in pairs, "
    "since both answer the same texts. Bold: it excludes 0, and there are at least two runs. With "
    "one run it is of the texts alone, and how much another seed would change is not known."
)


class Report:
    """A comparison of runs, as a page, as Markdown and as CSV.

    Attributes:
      runs: finished runs, in the order in which they were read.
      folder: folder of the report; paths in the report are relative to it.
      variants: rows of the tables, best first.
      orders: tasks of each order, by the order's name.
      accuracies: the main table.
      differences: the table of differences; None if there is only one variant.
      costs: the table of costs.
      budget: what the runs were given, by label.
      warnings: reasons why the rows may not be comparable.
      date: today, `YYYY-MM-DD`.
    """

    def __init__(
        self, runs: Sequence[FinishedRun], missing: Sequence[RunFolder], folder: Path
    ) -> None:
        """Computes the tables.

        Args:
          runs: finished runs, at least one.
          missing: runs of a sweep that are not finished.
          folder: folder of the report; paths in the report are relative to it.
        """
        self.runs, self.folder = runs, folder
        self.variants = summarize(runs)
        self.orders = {
            name: next(run.results.tasks for run in runs if run.order == name)
            for name in sorted_order_names(run.order for run in runs)
        }
        self.accuracies = tables.accuracy_table(self.variants, self.orders)
        self.differences = (
            tables.difference_table(self.variants) if len(self.variants) > 1 else None
        )
        self.costs = tables.cost_table(self.variants)
        self.budget, differing = tables.budget(runs)
        self.warnings = tables.coverage(self.variants, missing) + differing
        self.date = datetime.date.today().isoformat()

    @property
    def title(self) -> str:
        """The numbers of methods, orders, tasks and seeds that are compared."""
        shown = (_counted(len(self.variants), "method"), _counted(len(self.orders), "order"))
        sets = {frozenset(names) for names in self.orders.values()}
        tasks = _counted(len(next(iter(sets))), "task") if len(sets) == 1 else "different tasks"
        seeds = _counted(len({run.results.seed for run in self.runs}), "seed")
        return f"{' on '.join(shown)} of {tasks}, {seeds}"

    @property
    def outcome(self) -> str:
        """One or two sentences that name the best method and say whether its lead is settled."""
        ranked = [v for v in self.variants if v.ranked and not math.isnan(v.accuracy)]
        if not ranked:
            return "No method's accuracy at the end is known."
        first = ranked[0]
        text = f"{first.name} has a mean accuracy of {percent(first.accuracy)} %"
        if first.interval.known:
            text += (
                f" (95% interval {percent(first.interval.low)} to {percent(first.interval.high)})"
            )
        if len(ranked) == 1:
            return text + "."
        pair = difference(*ranked[:2])
        text += f", {percent(pair.difference)} points above the next, {pair.second}."
        if not pair.interval.known:
            return text + " Whether that is chance cannot be told: the runs' answers are not known."
        ends = (
            f"{percent(pair.interval.low, sign=True)} to {percent(pair.interval.high, sign=True)}"
        )
        if pair.interval.runs == 1:
            return text + (
                f" The interval of the difference is {ends} by the test texts alone; one run does "
                "not tell how much another seed would change."
            )
        if pair.interval.settled:
            return text + f" The interval of the difference is {ends}, which excludes 0."
        return text + (
            f" The interval of the difference is {ends}, which includes 0: the lead is not settled."
        )

    @property
    def notes(self) -> list[str]:
        """Notes that explain how to read the main table."""
        notes = [
            "In percent. Bold is the best of a column, underlined the second best; figures that "
            "are equal as shown share the mark."
        ]
        if any(not variant.ranked for variant in self.variants):
            notes.append(
                "joint trains on all tasks at once: the upper bound, which is shown last and not "
                "ranked."
            )
        notes.append(
            "± is the standard deviation over a row's runs, that is over orders and seeds (n - 1 "
            "in the denominator). acc: mean over tasks at the end. bwt: what later tasks did to "
            "earlier ones. fwt: what earlier tasks did for later ones. forgetting: fall from the "
            "best since a task's training; low is good."
        )
        notes.append(
            "95% interval: of acc, a bootstrap over the row's runs and each task's test texts; "
            "of the texts alone where there is one run. A dash: results.json does not tell which "
            "texts were answered rightly, as in version 0.1 and for free-form tasks."
        )
        if any(len(variant.runs) == 1 for variant in self.variants):
            notes.append("Of a method with one run no spread over orders and seeds is known.")
        if any(variant.task_free.count for variant in self.variants):
            notes.append(
                "acc, task not given: the task is picked from the text, where acc is told it."
            )
        return notes

    @property
    def versions(self) -> dict[str, str]:
        """Versions of Python and the packages that the runs used; joined where they differ."""
        found: dict[str, dict[str, None]] = {}
        for run in self.runs:
            for name, version in (run.results.content.get("versions") or {}).items():
                found.setdefault(name, {})[str(version)] = None
        return {name: " / ".join(versions) for name, versions in found.items()}

    def html(self) -> str:
        """Returns the page: one file without scripts, which loads nothing from a network."""
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("moecl_jax.report", "."),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        numbers = itertools.count(1)
        return environment.get_template("page.html").render(
            report=self,
            sections=Album(self.variants, self.folder).sections(),
            picture=lambda element: Markup(svg.markup(element, next(numbers))),
            swatch=lambda style: Markup(svg.markup(svg.swatch(style))),
            path=self.path,
            breakable=_breakable,
            percent=percent,
            version=moecl_jax.__version__,
            table_source=TABLE_SOURCE,
            cost_source=COST_SOURCE,
            budget_source=BUDGET_SOURCE,
            difference_text=DIFFERENCE_TEXT,
        )

    def markdown(self) -> str:
        """Returns the tables as Markdown, with the notes that explain them."""
        plain = functools.partial(map, tables.escape_markdown)
        orders = [f"order {name}: {', '.join(tasks)}" for name, tasks in self.orders.items()]
        budget = [f"{name}: {value}" for name, value in self.budget.items()]
        versions = [f"{name} {version}" for name, version in self.versions.items()]
        parts = [
            f"# {tables.escape_markdown(self.title)}",
            tables.escape_markdown(self.outcome),
            *(f"> Warning: {text}" for text in plain(self.warnings)),
            tables.to_markdown(self.accuracies),
            *plain(self.notes),
            f"Source: {tables.escape_markdown(TABLE_SOURCE)}",
        ]
        if self.differences is not None:
            parts += ["## Differences", tables.escape_markdown(DIFFERENCE_TEXT)]
            parts.append(tables.to_markdown(self.differences))
        parts += ["## Cost", tables.to_markdown(self.costs)]
        parts.append(f"Source: {tables.escape_markdown(COST_SOURCE)}")
        parts += ["## Budget", "\n".join(f"- {text}" for text in plain([*orders, *budget]))]
        parts.append(next(plain([f"{self.date}; {', '.join(versions) or 'versions unknown'}"])))
        runs = (
            f"- {run.variant}, order {run.order}, seed {run.results.seed}: " for run in self.runs
        )
        paths = (f"{self.path(run)}/{RESULTS_NAME}" for run in self.runs)
        lines = map("".join, zip(plain(runs), plain(paths), strict=True))
        return "\n\n".join([*parts, "## Runs", "\n".join(lines)]) + "\n"

    def csv(self) -> str:
        """Returns all scalars of the runs as CSV, one line a run."""
        return tables.to_csv(self.runs, self.path)

    def files(self, run: FinishedRun) -> list[str]:
        """Returns the names of the files in a run's workdir that its numbers come from."""
        names = (RESULTS_NAME, CONFIG_NAME, LOG_NAME)
        return [name for name in names if (run.workdir / name).exists()]

    def path(self, run: FinishedRun) -> str:
        """Returns the path of a run's workdir, relative to the report's folder."""
        return Path(os.path.relpath(run.workdir, self.folder)).as_posix()


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}"


def _breakable(name: str) -> Markup:
    """Escapes a name and allows line breaks after its punctuation."""
    return Markup("").join(
        escape(part) + Markup("<wbr>" if index % 2 else "")
        for index, part in enumerate(re.split("([:._=,]+)", name))
    )
