"""The statistics of a report: means, spreads and standard errors of variants, and differences."""

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from moecl_jax.report.runs import FinishedRun
from moecl_jax.runs.names import METRIC_NAMES

UPPER_BOUNDS = ("joint",)
"""Methods that see all tasks at once. They bound what continual learning can reach, and are shown
but not ranked."""


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
        """Computes the spread of the values that are not None."""
        known = [value for value in values if value is not None]
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
      task_free: spread of the accuracy when the task is chosen from the text, as a fraction.
      test_error: standard error of the mean accuracy from the finite test sets alone.
      error: standard error of the mean accuracy, from the test sets and the spread over the runs.
    """

    name: str
    runs: Sequence[FinishedRun]
    by_order: Mapping[str, float]
    metrics: Mapping[str, Spread]
    task_free: Spread
    test_error: float
    error: float

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
      difference: accuracy of the first minus accuracy of the second, a fraction.
      error: standard error of the difference, sqrt(se1^2 + se2^2).
    """

    first: str
    second: str
    difference: float
    error: float

    @property
    def ratio(self) -> float:
        """Size of the difference in standard errors, without sign; NaN if no error is known."""
        if self.error == 0.0:
            return math.inf if self.difference else 0.0
        return abs(self.difference) / self.error


def summarize(runs: Sequence[FinishedRun]) -> list[Variant]:
    """Groups runs by variant and sorts them: highest mean accuracy first, upper bounds last."""
    groups: dict[str, list[FinishedRun]] = collections.defaultdict(list)
    for run in runs:
        groups[run.variant].append(run)
    variants = [_variant(name, group) for name, group in groups.items()]
    return sorted(variants, key=lambda v: (not v.ranked, -np.nan_to_num(v.accuracy, nan=-1.0)))


def test_error(runs: Sequence[FinishedRun]) -> float:
    """Computes the standard error of the mean accuracy that comes from finite test sets.

        se_test^2 = sum_j w_j^2 p_j (1 - p_j) / n_j

    p_j is the accuracy on task j at the end of the stream, averaged over the runs. n_j is the
    number of its test texts. w_j is its weight in the mean accuracy, which is 1 / T if all runs
    have the same T tasks. All orders are tested on the same texts, so more runs do not make this
    error smaller.

    Args:
      runs: all runs of one variant.

    Returns:
      The standard error, a fraction; NaN if the results of a run lack the sizes of the test sets.
    """
    weights: dict[str, float] = collections.defaultdict(float)
    accuracies: dict[str, list[float]] = collections.defaultdict(list)
    sizes: dict[str, list[int]] = collections.defaultdict(list)
    for run in runs:
        last, counts = run.results.matrix[-1], run.split_sizes("test")
        if counts is None:
            return math.nan
        known = ~np.isnan(last)
        for task, accuracy in zip(np.array(run.results.tasks)[known], last[known], strict=True):
            weights[task] += 1.0 / (known.sum() * len(runs))
            accuracies[task].append(float(accuracy))
            sizes[task].append(counts[task])
    variance = 0.0
    for task, weight in weights.items():
        p = float(np.mean(accuracies[task]))
        variance += weight**2 * p * (1.0 - p) / max(min(sizes[task]), 1)
    return math.sqrt(variance) if weights else math.nan


def differences(variants: Sequence[Variant]) -> list[Difference]:
    """Compares all pairs of variants; the first of a pair is the one higher up in the table."""
    return [
        Difference(
            first.name,
            second.name,
            first.accuracy - second.accuracy,
            math.hypot(first.error, second.error),
        )
        for first, second in itertools.combinations(variants, 2)
    ]


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
    accuracy = Spread.of(run.results.metrics["acc"] for run in runs)
    error = test_error(runs)
    spread = accuracy.deviation / math.sqrt(accuracy.count) if accuracy.count > 1 else 0.0
    return Variant(
        name=name,
        runs=runs,
        by_order={
            order: Spread.of(r.results.metrics["acc"] for r in runs if r.order == order).mean
            for order in orders
        },
        metrics={
            metric: Spread.of(run.results.metrics[metric] for run in runs)
            for metric in METRIC_NAMES
        },
        task_free=Spread.of(run.results.task_free["acc"] for run in runs if run.results.task_free),
        test_error=error,
        error=math.hypot(error, spread),
    )
