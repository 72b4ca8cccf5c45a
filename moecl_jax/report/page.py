"""The page and its Markdown companion."""

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
from moecl_jax.report.runs import CONFIG_NAME, RESULTS_NAME, Planned, Run, order_names
from moecl_jax.report.summary import differences, percent, summarize
from moecl_jax.runs.log import LOG_NAME

_RESULT_SOURCE = f"{RESULTS_NAME} of the runs listed at the end"
TABLE_SOURCE = f"{_RESULT_SOURCE}: metrics, accuracy_matrix (last row), sizes.test, task_free.acc"
COST_SOURCE = (
    f"{_RESULT_SOURCE}: parameters, stored_examples, steps, wall_seconds; their metrics.jsonl: "
    "examples_per_second (median over the logged steps)"
)
BUDGET_SOURCE = f"{CONFIG_NAME} of the runs, and their {RESULTS_NAME}: steps, sizes, versions"
DIFFERENCE_TEXT = (
    "Accuracy (acc) of the row less that of the column, in points, and in parentheses how many "
    "standard errors sqrt(se1² + se2²) that is. Underlined: more than one. Bold: more than two, "
    "the usual bar. The errors are taken as independent though all methods answer the same test "
    "texts, which makes this the cautious side."
)


class Report:
    """What the runs say, as a page, as Markdown and as CSV."""

    def __init__(self, runs: Sequence[Run], missing: Sequence[Planned], folder: Path) -> None:
        """Computes the tables.

        Args:
          runs: finished ones, at least one.
          missing: those of a sweep that are not finished.
          folder: of the report, which paths in it are relative to.
        """
        self.runs, self.folder = runs, folder
        self.variants = summarize(runs)
        self.orders = {
            name: next(run.tasks for run in runs if run.order == name)
            for name in order_names(run.order for run in runs)
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
        """What was compared."""
        shown = (_counted(len(self.variants), "method"), _counted(len(self.orders), "order"))
        sets = {frozenset(names) for names in self.orders.values()}
        tasks = _counted(len(next(iter(sets))), "task") if len(sets) == 1 else "different tasks"
        seeds = _counted(len({run.seed for run in self.runs}), "seed")
        return f"{' on '.join(shown)} of {tasks}, {seeds}"

    @property
    def outcome(self) -> str:
        """The leader and whether its lead stands out, in a sentence or two."""
        ranked = [v for v in self.variants if v.ranked and not math.isnan(v.accuracy)]
        if not ranked:
            return "No method's accuracy at the end is known."
        first = ranked[0]
        error = "" if math.isnan(first.error) else f" (standard error {percent(first.error)})"
        text = f"{first.name} has a mean accuracy of {percent(first.accuracy)} %{error}"
        if len(ranked) == 1:
            return text + "."
        pair = differences(ranked[:2])[0]
        text += f", {percent(pair.difference)} points above the next, {pair.second}."
        if math.isnan(pair.ratio):
            return text + " Whether that is chance cannot be told: no test sizes are known."
        verdict = "more than" if pair.ratio > 2 else "not more than"
        text += f" That is {pair.ratio:.1f} standard errors: {verdict} the two that are usually"
        return text + (
            " asked for." if pair.ratio > 2 else " asked for, so the lead is not settled."
        )

    @property
    def notes(self) -> list[str]:
        """How to read the table."""
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
            "se is the standard error of acc: sqrt(se_test² + sd²/n), where se_test² = sum over "
            "the T tasks of p(1-p)/n_test / T², with p the accuracy at the end averaged over the "
            "runs. All orders answer the same test texts, so more orders do not lower se_test."
        )
        if any(len(variant.runs) == 1 for variant in self.variants):
            notes.append(
                "Of a method with one run no spread is known; its se is that of the test texts "
                "alone, and so too small."
            )
        if any(math.isnan(variant.error) for variant in self.variants):
            notes.append(
                "A dash under se: results.json does not tell how many test texts there were."
            )
        if any(variant.task_free.count for variant in self.variants):
            notes.append(
                "acc, task not given: the task is picked from the text, where acc is told it."
            )
        return notes

    @property
    def versions(self) -> dict[str, str]:
        """Of all that the runs used; several where they differ."""
        found: dict[str, dict[str, None]] = {}
        for run in self.runs:
            for name, version in (run.results.get("versions") or {}).items():
                found.setdefault(name, {})[str(version)] = None
        return {name: " / ".join(versions) for name, versions in found.items()}

    def html(self) -> str:
        """The page: one file, without scripts, which asks nothing of a network."""
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
        """The tables, with what is needed to read them."""
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
        runs = (f"- {run.variant}, order {run.order}, seed {run.seed}: " for run in self.runs)
        paths = (f"{self.path(run)}/{RESULTS_NAME}" for run in self.runs)
        lines = map("".join, zip(plain(runs), plain(paths), strict=True))
        return "\n\n".join([*parts, "## Runs", "\n".join(lines)]) + "\n"

    def csv(self) -> str:
        """A line a run."""
        return tables.to_csv(self.runs, self.path)

    def files(self, run: Run) -> list[str]:
        """Names of the files that its figures come from."""
        names = (RESULTS_NAME, CONFIG_NAME, LOG_NAME)
        return [name for name in names if (run.workdir / name).exists()]

    def path(self, run: Run) -> str:
        """A run's folder, relative to the report's."""
        return Path(os.path.relpath(run.workdir, self.folder)).as_posix()


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}"


def _breakable(name: str) -> Markup:
    """A name that a line may be broken in, after its punctuation."""
    return Markup("").join(
        escape(part) + Markup("<wbr>" if index % 2 else "")
        for index, part in enumerate(re.split("([:._=,]+)", name))
    )
