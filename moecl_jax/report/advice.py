"""Which of the methods that were run on a stream is best under which need, in words."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from moecl_jax.report.runs import by_tasks, read_runs
from moecl_jax.report.summary import Spread, Variant, difference, percent, summarize
from moecl_jax.runs.tables import align_columns, wall_time

KEEPS = 0.005
"""A method that forgets at most this much of any task, in any run, keeps what it learned."""


@dataclasses.dataclass(frozen=True)
class Costs:
    """What a method came to on a stream, as means over its runs; NaN where it is not known.

    Attributes:
      variant: the method's row of the report.
      forgotten: the most by which a task's accuracy at the end is below its best one, in any run.
      stored: what the run's end stores a task [bytes].
      steps: training steps a task.
      seconds: wall time of the training a task [s].
      texts: training texts that are kept.
      latency: time to label one text alone [s].
    """

    variant: Variant
    forgotten: float
    stored: float
    steps: float
    seconds: float
    texts: float
    latency: float = math.nan

    @classmethod
    def of(cls, variant: Variant, latency: float = math.nan) -> "Costs":
        """Reads them from the results of a row."""
        runs = [run.results for run in variant.runs]
        tasks = len(runs[0].tasks)

        def mean(values: Sequence[float | None]) -> float:
            known = Spread.of(values)
            return known.mean if known.count == len(runs) else math.nan

        stored = [(run.content.get("parameters") or {}).get("stored_bytes") for run in runs]
        return cls(
            variant,
            max(_forgotten(run.matrix.tolist()) for run in runs),
            mean(stored) / tasks,
            mean([run.content.get("steps") for run in runs]) / tasks,
            mean([run.wall_seconds for run in runs]) / tasks,
            mean([run.content.get("stored_examples") for run in runs]),
            latency,
        )


@dataclasses.dataclass(frozen=True)
class _Need:
    """A need that a user may have, and how methods answer it.

    Attributes:
      name: the need.
      meets: whether a method meets it at all.
      cost: what is least where several are equally accurate; None for the accuracy itself.
      shown: that value in words.
    """

    name: str
    meets: Callable[[Costs], bool]
    cost: Callable[[Costs], float] | None = None
    shown: Callable[[float], str] = str


def _always(_: Costs) -> bool:
    return True


_NEEDS = (
    _Need("For the highest accuracy", _always),
    _Need("Where a finished task must not get worse", lambda c: c.forgotten <= KEEPS),
    _Need("Where no text may be kept", lambda c: c.texts == 0),
    _Need("For little room", _always, lambda c: c.stored, lambda v: f"{v / 1e6:.2f} MB a task"),
    _Need("For a short training", _always, lambda c: c.seconds, lambda v: f"{v:.0f} s a task"),
    _Need("For fast answers", _always, lambda c: c.latency, lambda v: f"{1e3 * v:.0f} ms a text"),
)


def advice(folders: Sequence[Path], latencies: Callable[[Path], float] | None = None) -> str:
    """Compares what was run on each set of tasks, and says what is best under which need.

    Args:
      folders: workdirs of finished runs, and folders of sweeps.
      latencies: gives the seconds that the run of a workdir takes to label one text; None not to
        say it.

    Raises:
      UserError: a folder holds no results, or a file is broken.
    """
    runs, _ = read_runs(folders)
    parts = []
    for group in by_tasks(runs):
        found = []
        for variant in summarize(group):
            workdir = variant.runs[0].workdir
            found.append(Costs.of(variant, math.nan if latencies is None else latencies(workdir)))
        names = ", ".join(group[0].results.tasks)
        heading = f"{len(group[0].results.tasks)} tasks: {names}"
        parts.append("\n".join([heading, "", *_table(found), "", *_words(found)]))
    return "\n\n".join(parts)


def _forgotten(matrix: Sequence[Sequence[float]]) -> float:
    """The most by which any task's last accuracy is below its best one; NaN is not known."""
    lost = [0.0]
    for task, last in enumerate(matrix[-1]):
        seen = [row[task] for row in matrix[task:] if not math.isnan(row[task])]
        lost += [max(seen) - last] if seen and not math.isnan(last) else []
    return max(lost)


def _table(found: Sequence[Costs]) -> list[str]:
    columns: dict[str, Callable[[Costs], str]] = {
        "acc": lambda c: percent(c.variant.accuracy),
        "95% interval": lambda c: _interval(c.variant),
        "most forgotten": lambda c: percent(c.forgotten),
        "MB a task": lambda c: _number(c.stored / 1e6, 2),
        "steps a task": lambda c: _number(c.steps, 0),
        "time a task": lambda c: wall_time(c.seconds),
        "ms a text": lambda c: _number(1e3 * c.latency, 0),
        "texts kept": lambda c: _number(c.texts, 0),
        "acc, task found": lambda c: percent(c.variant.task_free.mean),
        "runs": lambda c: str(len(c.variant.runs)),
    }
    if all(math.isnan(each.latency) for each in found):
        del columns["ms a text"]
    rows = [[each.variant.name, *(show(each) for show in columns.values())] for each in found]
    return align_columns([["method", *columns], *rows])


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _interval(variant: Variant) -> str:
    if not variant.interval.known:
        return "-"
    return f"{percent(variant.interval.low)} to {percent(variant.interval.high)}"


def _words(found: Sequence[Costs]) -> list[str]:
    """A sentence for each need that tells methods apart."""
    ranked = [each for each in found if each.variant.ranked]
    if len(ranked) < 2:
        return ["There is one method to choose from; train another on the same tasks to compare."]
    lines = [sentence for need in _NEEDS if (sentence := _sentence(need, ranked))]
    by_text = [each for each in ranked if each.variant.task_free.count]
    if by_text:
        best = max(by_text, key=lambda each: each.variant.task_free.mean)
        share = percent(best.variant.task_free.mean)
        lines.append(
            f"Where texts come without their task: {best.variant.name}, {share}% where the task is "
            "found from the text."
        )
    if all(len({run.results.seed for run in each.variant.runs}) < 3 for each in ranked):
        lines.append("Fewer than three seeds: another seed may turn any of this round.")
    return lines


def _sentence(need: _Need, ranked: Sequence[Costs]) -> str:
    """The advice for a need; empty where it is met by all alike, or cannot be told."""
    able = [each for each in ranked if need.meets(each)]
    if not able:
        return f"{need.name}: none of these."
    best, *others = able
    if need.cost is None:
        if len(able) == len(ranked) and need is not _NEEDS[0]:
            return ""  # it rules nothing out
        return f"{need.name}: {best.variant.name}, {_lead(best, others)}."
    costs = [(need.cost(each), each.variant.name) for each in able if _as_accurate(each, best)]
    if any(math.isnan(cost) for cost, _ in costs):
        return ""
    cost, name = min(costs)
    if len(costs) == 1:
        return f"{need.name}: {name}, {need.shown(cost)}; no other is as accurate."
    names = ", ".join(name for _, name in costs)
    return (
        f"{need.name}: {name}, {need.shown(cost)}, the least of those whose accuracy the runs do "
        f"not tell apart ({names})."
    )


def _as_accurate(one: Costs, best: Costs) -> bool:
    """Whether the lead of the best is 0, or its interval includes 0."""
    if one is best:
        return True
    lead = difference(best.variant, one.variant)
    return lead.difference <= 0 or (lead.interval.known and not lead.interval.excludes_zero)


def _lead(best: Costs, others: Sequence[Costs]) -> str:
    """The accuracy of the best, and its lead over the next."""
    share = f"{percent(best.variant.accuracy)}%"
    if not others:
        return f"{share}, the only one"
    lead = difference(best.variant, others[0].variant)
    points = f"{percent(lead.difference)} points over {lead.second}"
    if not lead.interval.known:
        return f"{share}, {points}; nothing says how sure that is"
    ends = f"{percent(lead.interval.low, sign=True)} to {percent(lead.interval.high, sign=True)}"
    return f"{share}, {points} (95% interval {ends}: {'' if lead.settled else 'not '}settled)"
