"""Makes the page of a report, and its Markdown and CSV companions."""

import datetime
import functools
import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

import moecl_jax
from moecl_jax.report import drawing, tables
from moecl_jax.report.comparison import Comparison
from moecl_jax.report.pictures import PANEL, Picture
from moecl_jax.report.runs import FinishedRun, RunFolder, by_tasks
from moecl_jax.report.summary import ENOUGH_SEEDS, percent
from moecl_jax.runs.names import CONFIG_NAME, LOG_NAME, RESULTS_NAME

_WIDE = 1180
DIFFERENCE_TEXT = (
    "Accuracy (acc) of the row less that of the column, in points, over the orders and seeds that "
    "both have, and its 95% interval: a bootstrap over runs and test texts in pairs, since both "
    f"answer the same texts. Bold: it excludes 0, and there are at least {ENOUGH_SEEDS} seeds. "
    "Fewer cannot tell how much another seed would change."
)
FORMULAS = {
    "R[i][j], b[j]": (
        "test accuracy on task j after training task i, of tasks 1 to T in the order of training, "
        "and before any training. By exact match of what is written; before a task's own training "
        "by the label that scores best, since an untrained model writes no label at all"
    ),
    "acc": "mean over j of R[T][j]: accuracy at the end of the stream",
    "accuracy as the stream grows": "mean over j ≤ i of R[i][j], after task i",
    "bwt": "mean over j < T of R[T][j] - R[j][j]: what later tasks did to earlier ones",
    "fwt": "mean over j > 1 of R[j-1][j] - b[j]: what earlier tasks did for later ones",
    "forgetting": (
        "mean over j < T of the best R[i][j] with j ≤ i < T, less R[T][j]: fall from the best "
        "since a task's training; low is good"
    ),
    tables.MAJORITY: (
        "accuracy of always giving the label that most of a task's test texts have: what a method "
        "must exceed to have learned anything"
    ),
    "precision, recall, F1": (
        "of a label, with true positives TP, false positives FP and false negatives FN: "
        "TP / (TP + FP), TP / (TP + FN), 2 TP / (2 TP + FP + FN). Macro F1 is the mean of F1 over "
        "a task's labels, rare ones counting as much as common ones"
    ),
}
NOTES = (
    "All accuracies are in percent, all differences in points. Bold is the best of a column, "
    "underlined the second best; figures that are equal as shown share the mark.",
    "joint trains on all tasks at once: the upper bound, which is shown last and not ranked.",
    "± is the standard deviation over a row's runs, that is over orders and seeds (n - 1 in the "
    "denominator); of one run it is not known.",
    "95% interval: of acc, a bootstrap over the row's runs and each task's test texts; of the "
    "texts alone where there is one run. A dash: results.json does not tell which texts were "
    "answered rightly, as in version 0.1 and for free-form tasks.",
    "acc, task not given: the task is picked from the text, where acc is told it.",
    "acc under attack: share of the test texts that are answered rightly as they are and with each "
    "of the small changes that evaluation.perturbations names.",
    "Runs on other sets of tasks are never averaged or compared with each other, nor are runs of "
    "one row that differ in more than order and seed: their settings are added to their names.",
    "Earlier versions did not score the untrained model: their runs have no fwt and no row of it.",
    f"Sources: accuracies from {RESULTS_NAME} (accuracy_matrix, scored_accuracy_matrix, "
    "random_init, scored_random_init, metrics, right, classification, task_free, robustness, "
    "gate_weights), as "
    f"are sizes, steps, parameters, versions and times; settings from {CONFIG_NAME}; losses, "
    f"speeds (median over the logged steps) and discriminators from {LOG_NAME}.",
)


class Report:
    """Comparisons of runs, as a page, as Markdown and as CSV.

    Attributes:
      runs: finished runs, in the order in which they were read.
      missing: runs of a sweep that are not finished.
      folder: folder of the report; paths in the report are relative to it.
      comparisons: a comparison for each set of tasks.
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
        self.runs, self.missing, self.folder = runs, missing, folder
        groups = by_tasks(runs)
        names = [
            f"tasks{number}" if len(groups) > 1 else "" for number in range(1, len(groups) + 1)
        ]
        self.comparisons = [
            Comparison(group, name) for group, name in zip(groups, names, strict=True)
        ]
        self.date = datetime.date.today().isoformat()

    @property
    def title(self) -> str:
        """The title of the only comparison, or how many there are."""
        if len(self.comparisons) == 1:
            return self.comparisons[0].title
        return f"{len(self.comparisons)} comparisons, each on tasks of its own"

    @property
    def warnings(self) -> list[str]:
        """What is missing from the report."""
        listed = "; ".join(map(str, self.missing))
        count = len(self.missing)
        return [f"Not finished, and not in this report ({count}): {listed}"] if count else []

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

        def drawn(picture: Picture, width: int = PANEL, named: bool = False) -> Markup:
            texts = (str(escape(text)) for text in (picture.caption, picture.description))
            figure = picture.draw(width, named)
            return Markup(drawing.inline_svg(figure, next(numbers), *texts))

        return environment.get_template("page.html").render(
            report=self,
            picture=drawn,
            swatch=lambda style: Markup(drawing.swatch(style)),
            path=self.path,
            breakable=_breakable,
            percent=percent,
            version=moecl_jax.__version__,
            wide=_WIDE,
            difference_text=DIFFERENCE_TEXT,
            formulas=FORMULAS,
            notes=NOTES,
        )

    def markdown(self) -> str:
        """Returns the tables as Markdown, with the notes that explain them."""
        plain = functools.partial(map, tables.escape_markdown)
        parts = [f"> Warning: {text}" for text in plain(self.warnings)]
        for comparison in self.comparisons:
            parts += _markdown(comparison)
        versions = [f"{name} {version}" for name, version in self.versions.items()]
        runs = (
            f"- {run.variant}, order {run.order}, seed {run.results.seed}: " for run in self.runs
        )
        paths = (f"{self.path(run)}/{RESULTS_NAME}" for run in self.runs)
        lines = map("".join, zip(plain(runs), plain(paths), strict=True))
        formulas = (f"{name}: {text}" for name, text in FORMULAS.items())
        parts += ["## Runs", "\n".join(lines), "## How to read the figures"]
        parts += ["\n".join(f"- {text}" for text in plain([*formulas, *NOTES]))]
        parts += plain([f"{self.date}; {', '.join(versions) or 'versions unknown'}"])
        return "\n\n".join(parts) + "\n"

    def csv(self) -> str:
        """Returns all scalars of the runs as CSV, one line a run."""
        return tables.to_csv(self.runs, self.path)

    def pictures(self) -> list[Picture]:
        """Returns all pictures, in the order of the page."""
        return [
            picture for comparison in self.comparisons for picture in comparison.album.pictures()
        ]

    def files(self, run: FinishedRun) -> list[str]:
        """Returns the names of the files in a run's workdir that its numbers come from."""
        names = (RESULTS_NAME, CONFIG_NAME, LOG_NAME)
        return [name for name in names if (run.workdir / name).exists()]

    def path(self, run: FinishedRun) -> str:
        """Returns the path of a run's workdir, relative to the report's folder."""
        return Path(os.path.relpath(run.workdir, self.folder)).as_posix()


def _markdown(comparison: Comparison) -> list[str]:
    """The parts of a comparison in Markdown."""
    plain = functools.partial(map, tables.escape_markdown)
    orders = [f"order {name}: {', '.join(tasks)}" for name, tasks in comparison.orders.items()]
    budget = [f"{name}: {value}" for name, value in comparison.budget.items()]
    parts = [
        f"# {tables.escape_markdown(comparison.title)}",
        *plain([comparison.scope, comparison.outcome]),
        *(f"> Warning: {text}" for text in plain(comparison.warnings)),
        tables.to_markdown(comparison.accuracies),
    ]
    for title, table in comparison.by_task.items():
        parts += [f"## {title} on each task at the end", tables.to_markdown(table)]
    if comparison.differences is not None:
        parts += ["## Differences", tables.escape_markdown(DIFFERENCE_TEXT)]
        parts.append(tables.to_markdown(comparison.differences))
    for task, table in comparison.by_label.items():
        heading = tables.escape_markdown(f"The labels of {task} at the end")
        parts += [f"## {heading}", tables.to_markdown(table)]
    parts += ["## Cost", tables.to_markdown(comparison.costs), "## Settings"]
    return [*parts, "\n".join(f"- {text}" for text in plain([*orders, *budget]))]


def _breakable(name: str) -> Markup:
    """Escapes a name and allows line breaks after its punctuation."""
    return Markup("").join(
        escape(part) + Markup("<wbr>" if index % 2 else "")
        for index, part in enumerate(re.split("([:._=,]+)", name))
    )
