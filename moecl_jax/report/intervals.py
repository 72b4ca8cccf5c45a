"""Bootstrap intervals of mean accuracies, over the test texts and the runs.

Runs of a row differ by order and seed, and answer the same texts. So runs and the texts of each
task are resampled apart from each other, all by scipy.stats.bootstrap.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import NDArray

RESAMPLES = 2000
LEVEL = 0.95

Answers = Mapping[str, NDArray[np.float64]]  # of a run: a value for each test text, by task


@dataclasses.dataclass(frozen=True)
class Interval:
    """The interval in which a mean lies with probability `LEVEL`; NaN where it is not known.

    Attributes:
      low: lower end.
      high: upper end.
      runs: number of runs that were resampled; with one the interval is of the texts alone.
    """

    low: float = math.nan
    high: float = math.nan
    runs: int = 0

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return not math.isnan(self.low)

    @property
    def excludes_zero(self) -> bool:
        """Whether it is known and 0 lies outside."""
        return self.known and not self.low <= 0.0 <= self.high


def interval(runs: Sequence[Answers]) -> Interval:
    """The interval of the mean over runs and tasks of the mean over a task's texts.

    Args:
      runs: the answers of each run; all have the same texts of the same tasks.

    Returns:
      The interval; an unknown one if runs have other tasks or texts, or none.
    """
    shapes = {tuple(sorted((task, len(values)) for task, values in run.items())) for run in runs}
    if len(shapes) != 1 or not all(count for _, count in next(iter(shapes))):
        return Interval()
    tasks = [np.stack([run[task] for run in runs]) for task in sorted(runs[0])]  # each [R, n]
    if not tasks:
        return Interval()
    # What has one member is not resampled.
    samples = [np.arange(size) for size in (len(runs), *(task.shape[1] for task in tasks))]
    varied = [place for place, sample in enumerate(samples) if len(sample) > 1]
    if not varied:
        return Interval()

    def mean(*drawn: NDArray[np.int64], axis: int) -> Any:
        del axis  # the last
        places = {place: found for place, found in zip(varied, drawn, strict=True)}
        first = next(iter(places.values()))
        chosen = [
            places.get(place, np.broadcast_to(sample, (*first.shape[:-1], len(sample))))
            for place, sample in enumerate(samples)
        ]
        weights = (chosen[0][..., None] == samples[0]).mean(axis=-2)
        means = [
            np.take_along_axis(weights @ values, texts, axis=-1).mean(axis=-1)
            for values, texts in zip(tasks, chosen[1:], strict=True)
        ]
        return np.mean(means, axis=0)

    found = scipy.stats.bootstrap(
        [samples[place] for place in varied],
        mean,
        n_resamples=RESAMPLES,
        batch=250,
        vectorized=True,
        axis=-1,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(float(found.low), float(found.high), len(runs))
