"""The statistics of a report: means, spreads and intervals of variants, and differences."""

import collections
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from moecl_jax.report.intervals import Answers, Interval, interval
from moecl_jax.report.runs import FinishedRun
from moecl_jax.runs.names import METRIC_NAMES
from moecl_jax.runs.results import Results

UPPER_BOUNDS = ("joint",)
"""Methods that see all tasks at once. They bound what continual learning can reach, and are shown
but not ranked."""


ENOUGH_SEEDS = 3
"""Seeds from which on a difference may be called settled."""


@dataclasses.dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of n known values.

    Attributes:
      mean: mean of the values; NaN if n = 0.
      deviation: standard deviation with n - 1 in the denominator; NaN if n < 2, for then no spread
        is known.
      count: n.
    """

    mean: float
    deviation: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Spread":
        """Computes the spread of the values that are neither None nor NaN."""
        known = [value for value in values if value is not None and not math.isnan(value)]
        mean = float(np.mean(known)) if known else math.nan
        return cls(mean, float(np.std(known, ddof=1)) if len(known) > 1 else math.nan, len(known))


@dataclasses.dataclass(frozen=True)
class Variant:
    """All runs of a variant, which make one row of the table.

    Attributes:
      name: name of the variant.
      runs: runs of the variant, over all orders and seeds.
      by_order: mean accuracy over the seeds of each order, by the name of the order; a fraction.
      metrics: spread of `acc`, `bwt`, `fwt` and `forgetting` over the runs, as fractions.
      macro_f1: spread of the mean over the tasks of macro F1 at the end.
      task_free: spread of the accuracy when the task is chosen from the text, as a fraction.
      under_attack: spread of the accuracy with changed texts, as a fraction.
      interval: interval of the mean accuracy over runs and test texts.
    """

    name: str
    runs: Sequence[FinishedRun]
    by_order: Mapping[str, float]
    metrics: Mapping[str, Spread]
    macro_f1: Spread
    task_free: Spread
    under_attack: Spread
    interval: Interval

    def of_tasks(self, value: Callable[[Results], NDArray[np.float64]]) -> dict[str, Spread]:
        """Spread over the runs of a value that each run has for each of its tasks.

        Args:
          value: gives the values of a run, `[T]` in the order of its tasks.

        Returns:
          The spreads by task, in the order of the first run.
        """
        by_run = [
            dict(zip(run.results.tasks, value(run.results).tolist(), strict=True))
            for run in self.runs
        ]
        return {task: Spread.of(values[task] for values in by_run) for task in by_run[0]}

    @property
    def accuracy(self) -> float:
        """Mean accuracy at the end of the stream, a fraction."""
        return self.metrics["acc"].mean

    @property
    def ranked(self) -> bool:
        """Whether the variant is ranked among the others; an upper bound is not."""
        return self.runs[0].results.method not in UPPER_BOUNDS


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference between the mean accuracies of two variants.

    Attributes:
      first: name of one variant.
      second: name of the other variant.
      difference: accuracy of the first minus accuracy of the second, a fraction: the mean over the
        orders and seeds that both have an accuracy of, or, where there is none, of the means.
      interval: interval of the difference over those runs and their test texts, in pairs.
      seeds: number of seeds that both have.
    """

    first: str
    second: str
    difference: float
    interval: Interval
    seeds: int

    @property
    def settled(self) -> bool:
        """Whether the interval excludes 0 and is of enough seeds to tell what another may do."""
        return self.interval.excludes_zero and self.seeds >= ENOUGH_SEEDS


def summarize(runs: Sequence[FinishedRun]) -> list[Variant]:
    """Groups runs by variant and sorts them: highest mean accuracy first, upper bounds last."""
    groups: dict[str, list[FinishedRun]] = collections.defaultdict(list)
    for run in runs:
        groups[run.variant].append(run)
    variants = [_variant(name, group) for name, group in groups.items()]
    return sorted(variants, key=lambda v: (not v.ranked, -np.nan_to_num(v.accuracy, nan=-1.0)))


def differences(variants: Sequence[Variant]) -> list[Difference]:
    """Compares all pairs of variants; the first of a pair is the one higher up in the table."""
    return [difference(*pair) for pair in itertools.combinations(variants, 2)]


def difference(first: Variant, second: Variant) -> Difference:
    """The difference of two variants in their common runs."""
    other = {run.key: run for run in second.runs}
    common = [(run, other[run.key]) for run in first.runs if run.key in other]
    pairs = [pair for pair in common if None not in map(_accuracy, pair)]
    if not pairs:
        found = first.accuracy - second.accuracy
        return Difference(first.name, second.name, found, Interval(), 0)
    found = Spread.of(_accuracy(a) for a, _ in pairs).mean
    found -= Spread.of(_accuracy(b) for _, b in pairs).mean
    gained = [_gained(*pair) for pair in pairs]
    known = [one for one in gained if one is not None]
    bounds = interval(known) if len(known) == len(gained) else Interval()
    seeds = len({run.results.seed for run, _ in pairs})
    return Difference(first.name, second.name, found, bounds, seeds)


def _accuracy(run: FinishedRun) -> float | None:
    return run.results.metrics["acc"]


def _gained(one: FinishedRun, other: FinishedRun) -> Answers | None:
    """By task, 1 for each text that only the first run answers rightly, -1 for only the second."""
    ours, theirs = one.answers, other.answers
    if ours is None or theirs is None:
        return None
    if any(len(theirs[task]) != len(values) for task, values in ours.items()):
        return None
    return {task: values - theirs[task] for task, values in ours.items()}


def marks(values: Mapping[str, float], *, low_is_good: bool = False) -> dict[str, str]:
    """Marks the best and the second best value.

    Values are compared as they are shown, in percent and rounded, so that values that look equal
    share a mark. A single value gets no mark, for there is nothing to compare it with.

    Args:
      values: fractions by name; NaN gets no mark.
      low_is_good: whether the lowest value is the best.

    Returns:
      `best` or `second` by name; other names are absent.
    """
    shown = {name: float(percent(value)) for name, value in values.items() if value == value}
    ranking = sorted(set(shown.values()), reverse=not low_is_good)
    places = dict(zip(ranking, ("best", "second"), strict=False)) if len(shown) > 1 else {}
    return {name: places[value] for name, value in shown.items() if value in places}


def percent(fraction: float, *, sign: bool = False) -> str:
    """Shows a fraction in percent with one decimal, and NaN as a dash.

    Args:
      fraction: the number to show.
      sign: whether to show the sign of a positive number; 0.0 never has one.
    """
    if math.isnan(fraction):
        return "-"
    rounded = round(100 * fraction, 1) + 0.0
    return f"{rounded:+.1f}" if sign and rounded else f"{rounded:.1f}"


def _variant(name: str, runs: Sequence[FinishedRun]) -> Variant:
    orders = dict.fromkeys(run.order for run in runs)
    answers = [run.answers for run in runs]
    known = [one for one in answers if one is not None]
    return Variant(
        name=name,
        runs=runs,
        by_order={
            order: Spread.of(_accuracy(r) for r in runs if r.order == order).mean
            for order in orders
        },
        metrics={
            metric: Spread.of(run.results.metrics[metric] for run in runs)
            for metric in METRIC_NAMES
        },
        macro_f1=Spread.of(Spread.of(run.results.macro_f1).mean for run in runs),
        task_free=Spread.of(run.results.task_free["acc"] for run in runs if run.results.task_free),
        under_attack=Spread.of(run.results.robustness.get("acc_under_attack") for run in runs),
        interval=interval(known) if len(known) == len(runs) else Interval(),
    )
