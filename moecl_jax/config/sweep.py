"""A grid of runs: methods and their variants, orders of the tasks, seeds.

DIR/sweep.json                  what was asked for, and the runs that make it
DIR/VARIANT/order1_seed0/       the workdir of a run, as 'moecl train' makes it

A variant is a method with settings of its own, `moe_cl:lora.rank=4:epochs=2`, and the name of its
folder has '+' for ':'.
"""

import contextlib
import dataclasses
import gc
import re
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moecl_jax import reporting
from moecl_jax.config.file import OVERRIDE, load_settings
from moecl_jax.errors import UserError, one_line
from moecl_jax.methods import find_method
from moecl_jax.outside import parse_json
from moecl_jax.runs.lock import Busy, refuse_file
from moecl_jax.runs.names import RESULTS_NAME, SWEEP_NAME
from moecl_jax.runs.results import Results
from moecl_jax.runs.settings import Settings
from moecl_jax.runs.tables import wall_time
from moecl_jax.runs.workdir import refuse_other_settings, write_json
from moecl_jax.training.trainer import train

TRACE_NAME = "trace.txt"
_VARIANT = re.compile(r"[\w.]+(:\w+)?(:[\w.]+=[\w.=-]+)*", re.ASCII)
_ORDER = re.compile(r"[\w.-]+", re.ASCII)
_OF_THE_GRID = {"method": "--methods", "seed": "--seeds"}


@dataclasses.dataclass(frozen=True)
class Grid:
    """What a sweep is asked for.

    Attributes:
      config: a config file as 'moecl train' takes it, `FILE.py` or `FILE.py:ARGUMENT`.
      overrides: flags `--config.KEY=VALUE` for all runs.
      variants: methods, each with its own settings, if any, after colons.
      orders: values of `order=` in the config file's argument; None to leave it as it is.
      seeds: seeds of the runs.

    Raises:
      UserError: one of them is malformed, empty or given twice.
    """

    config: str
    overrides: tuple[str, ...]
    variants: tuple[str, ...]
    orders: tuple[str, ...] | None
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        values: tuple[tuple[str, Sequence[Any]], ...] = (
            ("--methods", self.variants),
            ("--orders", ("",) if self.orders is None else self.orders),
            ("--seeds", self.seeds),
        )
        for flag, items in values:
            repeated = [item for item, count in Counter(items).items() if count > 1]
            if repeated:
                raise UserError(f"{flag} names {repeated[0]} twice; each run is trained once")
            if not items:
                raise UserError(f"{flag} is empty; give it a value, or several joined by commas")
        for variant in self.variants:
            _check_variant(variant)
        for order in self.orders or ():
            if not _ORDER.fullmatch(order):
                raise UserError(
                    f"--orders: {order!r} becomes part of a folder's name; letters, digits, '_', "
                    "'.' and '-' may stand in it"
                )
        if self.orders is not None and self.config.endswith(".json"):
            raise UserError(
                f"--orders needs a config FILE.py that takes order=N, and not {self.config}"
            )
        for override in self.overrides:
            _refuse_key_of_the_grid(OVERRIDE.sub("", override, count=1), override)

    @classmethod
    def parse(
        cls, config: str, overrides: Sequence[str], methods: str, orders: str | None, seeds: str
    ) -> "Grid":
        """A grid out of the command's arguments, whose values are joined by commas."""
        try:
            numbers = tuple(map(int, _split(seeds)))
        except ValueError as error:
            raise UserError(f"--seeds={seeds}: expected whole numbers, such as 0,1,2") from error
        known = None if orders is None else _split(orders)
        return cls(config, tuple(overrides), _split(methods), known, numbers)


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One run of a grid, and its settings."""

    variant: str
    order: str | None
    seed: int
    settings: Settings

    @property
    def folder(self) -> str:
        """Its workdir below that of the sweep."""
        return run_folder(self.variant, self.order, self.seed)

    def __str__(self) -> str:
        order = "" if self.order is None else f" order {self.order}"
        return f"{self.variant}{order} seed {self.seed}"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a sweep.

    Attributes:
      finished: entries of `runs` in sweep.json that have results, by variant.
      failures: runs of this call that failed, with the reasons.
    """

    finished: list[dict[str, Any]]
    failures: list[str]


def run_folder(variant: str, order: str | None, seed: int) -> str:
    """The workdir of a run below that of its sweep."""
    place = f"seed{seed}" if order is None else f"order{order}_seed{seed}"
    return f"{variant.replace(':', '+')}/{place}"


def plan(grid: Grid) -> list[PlannedRun]:
    """The runs with their configs: all variants of the first seed and order, then the next order.

    Raises:
      UserError: a config cannot be loaded so; names the run.
    """
    return [
        PlannedRun(variant, order, seed, _load(grid, variant, order, seed))
        for seed in grid.seeds
        for order in grid.orders or (None,)
        for variant in grid.variants
    ]


def sweep(grid: Grid, workdir: Path) -> Outcome:
    """Trains the runs of a grid that are not finished yet, one after another.

    All configs are checked before the first run. A run that fails does not stop the others.

    Args:
      grid: what to train; it may have more or fewer variants, orders and seeds than an earlier
        sweep in the same workdir, but its config file and overrides must be the same.
      workdir: gets sweep.json, a workdir for each run, and the compilation cache.

    Raises:
      UserError: the grid is at fault, or the workdir belongs to another one.
    """
    refuse_file(workdir)
    runs = plan(grid)
    for run in runs:
        refuse_other_settings(run.settings, workdir / run.folder, retuned=False)
    record = _merged_record(grid, runs, workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / SWEEP_NAME, record)
    failures = _train_all(runs, workdir)
    entries = sorted(record["runs"], key=lambda entry: record["methods"].index(entry["variant"]))
    finished = [e for e in entries if (workdir / e["workdir"] / RESULTS_NAME).exists()]
    return Outcome(finished, failures)


def time_left(seconds: dict[str, list[float]], waiting: Sequence[PlannedRun]) -> float | None:
    """Seconds that runs will take.

    Args:
      seconds: that finished runs took, by variant.
      waiting: the runs; one of a variant that has not been run yet takes the mean of all.

    Returns:
      None if nothing has been run yet.
    """
    known = [value for values in seconds.values() for value in values]
    if not known:
        return None
    times = (seconds.get(run.variant) or known for run in waiting)
    return sum(sum(values) / len(values) for values in times)


def _train_all(runs: Sequence[PlannedRun], workdir: Path) -> list[str]:
    """Trains the unfinished runs that no other process trains; returns the failures."""
    failures, busy, begun = [], 0, time.monotonic()
    for index, run in enumerate(runs):
        title = f"[{index + 1}/{len(runs)}] {run}"
        # Looked up each time: another process may train in the same folder.
        took = {other.folder: _finished_seconds(other, workdir / other.folder) for other in runs}
        if took[run.folder] is not None:
            _say(f"{title}: finished, skipped")
            continue
        seconds: defaultdict[str, list[float]] = defaultdict(list)
        for other in runs:
            if (known := took[other.folder]) is not None:
                seconds[other.variant].append(known)
        started = time.monotonic()
        waiting = [later for later in runs[index:] if took[later.folder] is None]
        left = time_left(seconds, waiting)
        estimate = "" if left is None else f", about {wall_time(left)} left"
        _say(f"{title} ({wall_time(started - begun)} spent{estimate})")
        try:
            train(run.settings, workdir / run.folder)
        except Busy:
            busy += 1
            _say(f"{title}: another process trains it, skipped")
        except Exception as error:  # of one run; the others may be sound
            reason = _failure(error, workdir / run.folder)
            failures.append(f"{run}: {reason}")
            _say(f"{title} failed: {reason}")
        gc.collect()  # the run's arrays, before the next run has its own
    others = f", {busy} are left to other processes" if busy else ""
    _say(f"{len(runs) - len(failures) - busy} of {len(runs)} runs are finished{others}")
    return failures


def _failure(error: Exception, workdir: Path) -> str:
    """One line of why a run failed; a trace that its user cannot mend is kept in the workdir."""
    if isinstance(error, UserError):
        return str(error)
    reason = f"{type(error).__name__}: {one_line(error)[:300]}"
    if isinstance(error, OSError):
        return reason
    with contextlib.suppress(OSError):
        trace = workdir / TRACE_NAME
        trace.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        reason += f" (the trace is in {trace})"
    return reason


def _say(line: str) -> None:
    reporting.current().message(line)


def _finished_seconds(run: PlannedRun, workdir: Path) -> float | None:
    """How long the training of a finished run took; None if it is not finished."""
    if not (workdir / RESULTS_NAME).exists():
        return None
    try:
        results = Results.load(workdir).content
    except Busy:  # another process changes it
        return None
    except UserError as error:
        raise UserError(f"{error}. Delete it and run again.") from error
    same_tasks = results["tasks"] == list(run.settings.tasks)  # more may have been added
    return float(results["wall_seconds"]) if same_tasks else None


def _merged_record(grid: Grid, runs: Sequence[PlannedRun], workdir: Path) -> dict[str, Any]:
    """The content of sweep.json: that of the sweeps before and this one's."""
    new: dict[str, Any] = {
        "config": grid.config,
        "overrides": list(grid.overrides),
        "methods": list(grid.variants),
        "orders": None if grid.orders is None else list(grid.orders),
        "seeds": list(grid.seeds),
        "runs": [
            {"variant": r.variant, "order": r.order, "seed": r.seed, "workdir": r.folder}
            for r in runs
        ],
    }
    old = read_record(workdir)
    if old is None:
        return new
    for key, flag in (("config", "--config"), ("overrides", "the overrides")):
        if old[key] != new[key]:
            raise UserError(
                f"{workdir} holds a sweep with {flag} {_shown(old[key])}, and now it is "
                f"{_shown(new[key])}. Use another --workdir, or what it was begun with."
            )
    if (old["orders"] is None) != (new["orders"] is None):
        was, now = ("without", "with") if old["orders"] is None else ("with", "without")
        raise UserError(
            f"{workdir} holds a sweep {was} --orders, and now it is {now}. Use another --workdir."
        )
    for key in ("methods", "orders", "seeds", "runs"):
        if new[key] is not None:
            new[key] = old[key] + [item for item in new[key] if item not in old[key]]
    return new


def read_record(workdir: Path) -> dict[str, Any] | None:
    """Reads sweep.json; None where there is none.

    Raises:
      UserError: it is broken.
    """
    path = workdir / SWEEP_NAME
    try:
        record = parse_json(path.read_bytes())
        if not all(isinstance(record[key], list) for key in ("overrides", "methods", "seeds")):
            raise ValueError("expected lists of overrides, methods and seeds")
        if not all(entry.keys() >= {"variant", "workdir"} for entry in record["runs"]):
            raise ValueError("a run lacks its variant or workdir")
        if not isinstance(record["orders"], list | None):
            raise ValueError("expected a list of orders, or null")
        return {**record, "config": record["config"]}
    except FileNotFoundError:
        return None
    except KeyError as error:
        raise UserError(f"{path} is broken: it lacks {one_line(error)}") from error
    except (OSError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path} is broken: {one_line(error)}") from error


def _shown(value: str | Sequence[str]) -> str:
    return value if isinstance(value, str) else " ".join(value) or "none"


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _check_variant(variant: str) -> None:
    if not _VARIANT.fullmatch(variant):
        raise UserError(
            f"--methods: {variant!r} is not METHOD or METHOD:KEY=VALUE:KEY=VALUE. It names a "
            "folder: letters, digits, '_', '.' and '-' may stand in it. Give what needs others, "
            "such as a tuple, in a config file of its own."
        )
    method, settings = _parts(variant)
    try:
        find_method(method)
    except UserError as error:
        reason = str(error).removeprefix("config: ").removeprefix("method = ")
        raise UserError(f"--methods: {reason}") from error
    for setting in settings:
        _refuse_key_of_the_grid(setting, variant)


def _parts(variant: str) -> tuple[str, list[str]]:
    """The method of a variant, which may be "package.module:Class", and its settings."""
    parts = variant.split(":")
    named = [part for part in parts if "=" not in part]
    return ":".join(named), parts[len(named) :]


def _refuse_key_of_the_grid(setting: str, where: str) -> None:
    flag = _OF_THE_GRID.get(setting.partition("=")[0])
    if flag is not None:
        raise UserError(f"{where}: a sweep's {flag} say that; leave it out")


def _load(grid: Grid, variant: str, order: str | None, seed: int) -> Settings:
    method, settings = _parts(variant)
    file = grid.config
    if order is not None:
        file += ("," if ":" in file else ":") + f"order={order}"
    own = [*settings, f"method={method}", f"seed={seed}"]
    try:
        return load_settings(file, [*grid.overrides, *(f"--config.{setting}" for setting in own)])
    except UserError as error:
        orders = "" if order is None else f" (--orders makes the config {file})"
        where = f"{variant}: " if settings else ""
        raise UserError(f"{where}{error}{orders}") from error
