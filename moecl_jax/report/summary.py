"""The statistics of a report: means and spreads of variants, and which differences stand out."""

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from moecl_jax.report.runs import METRICS, Run

# Methods that see all tasks at once: the bound that continual learning is measured against, which
# is shown but not ranked.
UPPER_BOUNDS = ("joint",)


@dataclasses.dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n - 1 in the denominator) of what is known of n values.

    Attributes:
      mean: NaN of nothing.
      deviation: NaN of fewer than two values: then no spread is known.
      count: n.
    """

    mean: float
    deviation: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Spread":
        """Of the values that are not None."""
        known = [value for value in values if value is not None]
        mean = float(np.mean(known)) if known else math.nan
        return cls(mean, float(np.std(known, ddof=1)) if len(known) > 1 else math.nan, len(known))


@dataclasses.dataclass(frozen=True)
class Variant:
    """A row of the table: all runs of a variant.

    Attributes:
      name: of the variant.
      runs: over orders and seeds.
      by_order: mean accuracy over the seeds of each order.
      metrics: spread over the runs of `acc`, `bwt`, `fwt` and `forgetting`, fractions.
      task_free: spread of the accuracy where the task is picked from the text.
      test_error: standard error of the mean accuracy from the finite test sets alone.
      error: standard error of the mean accuracy: test sets and spread over the runs.
    """

    name: str
    runs: Sequence[Run]
    by_order: Mapping[str, float]
    metrics: Mapping[str, Spread]
    task_free: Spread
    test_error: float
    error: float

    @property
    def accuracy(self) -> float:
        """Mean accuracy at the end."""
        return self.metrics["acc"].mean

    @property
    def ranked(self) -> bool:
        """Whether it competes: an upper bound does not."""
        return self.runs[0].method not in UPPER_BOUNDS


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far the mean accuracies of two variants lie apart.

    Attributes:
      first: name of a variant.
      second: name of another.
      difference: accuracy of the first less that of the second, a fraction.
      error: its standard error, sqrt(se1^2 + se2^2).
    """

    first: str
    second: str
    difference: float
    error: float

    @property
    def ratio(self) -> float:
        """How many standard errors the difference is, without its sign; NaN if that is unknown."""
        if self.error == 0.0:
            return math.inf if self.difference else 0.0
        return abs(self.difference) / self.error


def summarize(runs: Sequence[Run]) -> list[Variant]:
    """Groups runs by variant: the highest mean accuracy first, upper bounds last."""
    groups: dict[str, list[Run]] = collections.defaultdict(list)
    for run in runs:
        groups[run.variant].append(run)
    variants = [_variant(name, group) for name, group in groups.items()]
    return sorted(variants, key=lambda v: (not v.ranked, -np.nan_to_num(v.accuracy, nan=-1.0)))


def test_error(runs: Sequence[Run]) -> float:
    """Standard error of the mean accuracy at the end that comes from finite test sets.

        se_test^2 = sum_j w_j^2 p_j (1 - p_j) / n_j

    with p_j the accuracy on task j at the end, averaged over the runs, n_j its test texts and w_j
    its weight in the mean accuracy, 1 / T where all runs have the same T tasks. All orders are
    tested on the same texts, so the number of runs does not make it smaller.

    Args:
      runs: of one variant.

    Returns:
      A fraction; NaN where a run does not tell its test sets' sizes.
    """
    weights: dict[str, float] = collections.defaultdict(float)
    accuracies: dict[str, list[float]] = collections.defaultdict(list)
    sizes: dict[str, list[int]] = collections.defaultdict(list)
    for run in runs:
        last, counts = run.matrix[-1], run.sizes("test")
        if counts is None:
            return math.nan
        known = ~np.isnan(last)
        for task, accuracy in zip(np.array(run.tasks)[known], last[known], strict=True):
            weights[task] += 1.0 / (known.sum() * len(runs))
            accuracies[task].append(float(accuracy))
            sizes[task].append(counts[task])
    variance = 0.0
    for task, weight in weights.items():
        p = float(np.mean(accuracies[task]))
        variance += weight**2 * p * (1.0 - p) / max(min(sizes[task]), 1)
    return math.sqrt(variance) if weights else math.nan


def differences(variants: Sequence[Variant]) -> list[Difference]:
    """All pairs, the variant that stands first in the table less the other."""
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
    """Which of the values are `best` and which `second`, as they are shown: in percent, rounded.

    Equal shown values share a mark. A single value has none to be compared with, and gets none.

    Args:
      values: fractions by name; NaN is left out.
      low_is_good: whether the lowest is the best.
    """
    shown = {name: float(percent(value)) for name, value in values.items() if value == value}
    ranking = sorted(set(shown.values()), reverse=not low_is_good)
    places = dict(zip(ranking, ("best", "second"), strict=False)) if len(shown) > 1 else {}
    return {name: places[value] for name, value in shown.items() if value in places}


def percent(fraction: float, *, sign: bool = False) -> str:
    """With one decimal; 0.0 has no sign; a dash for NaN."""
    if math.isnan(fraction):
        return "-"
    rounded = round(100 * fraction, 1) + 0.0
    return f"{rounded:+.1f}" if sign and rounded else f"{rounded:.1f}"


def _variant(name: str, runs: Sequence[Run]) -> Variant:
    orders = dict.fromkeys(run.order for run in runs)
    accuracy = Spread.of(run.metric("acc") for run in runs)
    error = test_error(runs)
    spread = accuracy.deviation / math.sqrt(accuracy.count) if accuracy.count > 1 else 0.0
    return Variant(
        name=name,
        runs=runs,
        by_order={
            order: Spread.of(r.metric("acc") for r in runs if r.order == order).mean
            for order in orders
        },
        metrics={metric: Spread.of(run.metric(metric) for run in runs) for metric in METRICS},
        task_free=Spread.of(run.task_free["acc"] for run in runs if run.task_free),
        test_error=error,
        error=math.hypot(error, spread),
    )
