"""Reads the runs that a report compares, from workdirs and from the folders of sweeps."""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moecl_jax.errors import UserError, one_line
from moecl_jax.outside import parse_json
from moecl_jax.runs.names import CONFIG_NAME, FREE_KEYS, LOG_NAME, RESULTS_NAME, SWEEP_NAME
from moecl_jax.runs.results import Results, check_number, read_object

# What is drawn of a line of the log, beside its task.
_LOGGED = ("step", "loss", "loss_instruction", "loss_adversarial", "examples_per_second")
_MOST_NAMED_SETTINGS = 3


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A finished run: its results, its config and its log.

    Attributes:
      variant: name of the table row that the run belongs to: the method, and whatever tells it from
        other rows of the same method. Runs of a row differ in order and seed alone.
      order: name of the run's order of tasks; runs with the same list of tasks share it.
      workdir: folder of the run.
      results: results of the run.
      config: content of the run's config.json; empty if the file does not exist.
      log: lines of the run's metrics.jsonl; empty if the file does not exist.
    """

    variant: str
    order: str
    workdir: Path
    results: Results
    config: Mapping[str, Any]
    log: Sequence[Mapping[str, Any]]

    def setting(self, key: str) -> Any:
        """Looks up a value of the config.

        Args:
          key: dotted key, such as `optimizer.learning_rate`.

        Returns:
          The value, or None if the config has no such key.
        """
        value: Any = self.config
        for part in key.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return None
            value = value[part]
        return value

    @property
    def key(self) -> tuple[tuple[str, ...], int]:
        """Returns what runs that can be compared in pairs share: the order of tasks, the seed."""
        return self.results.tasks, self.results.seed

    @property
    def answers(self) -> dict[str, NDArray[np.float64]] | None:
        """Returns 1 or 0 for each test text of each task, right or wrong at the end of the stream.

        None if results.json does not have them, as in version 0.1 and in free-form tasks.
        """
        right = self.results.content.get("right")
        if not right or not all(right):
            return None
        return {
            task: np.array(list(values), np.float64)
            for task, values in zip(self.results.tasks, right, strict=True)
        }

    def split_sizes(self, split: str) -> dict[str, int] | None:
        """Returns the number of texts in a split, by task.

        Args:
          split: `train`, `validation` or `test`.

        Returns:
          The numbers, or None if results.json does not have them, as in early versions.
        """
        counts = self.results.content.get("sizes")
        return None if counts is None else dict(zip(self.results.tasks, counts[split], strict=True))


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The folder of a run that is finished, or that a sweep has not finished yet.

    Attributes:
      variant: the sweep's name for the variant; None for a workdir that was named directly.
      order: the sweep's name for the order of tasks; None for a workdir that was named directly,
        and in a sweep without orders.
      seed: the sweep's seed for the run; None for a workdir that was named directly.
      workdir: path of the folder.
    """

    variant: str | None
    order: str | None
    seed: int | None
    workdir: Path

    def __str__(self) -> str:
        names = (self.variant, self.order and f"order {self.order}", f"seed {self.seed}")
        return ", ".join(name for name in names if name)


def read_runs(folders: Sequence[Path]) -> tuple[list[FinishedRun], list[RunFolder]]:
    """Reads workdirs and the folders of sweeps.

    Args:
      folders: each the workdir of a finished run, or a folder with a sweep.json.

    Returns:
      The finished runs, and the folders of a sweep's runs that are not finished.

    Raises:
      UserError: if a folder is neither, no run is finished, a run is named twice, or a file is
        broken.
    """
    named = [run for folder in folders for run in _run_folders(folder)]
    counts = collections.Counter(run.workdir.resolve() for run in named)
    twice = next((run.workdir for run in named if counts[run.workdir.resolve()] > 1), None)
    if twice is not None:
        raise UserError(f"{twice} is given twice; give each run once, or its sweep's folder alone")
    finished = [run for run in named if run.variant is None or _has(run, RESULTS_NAME)]
    missing = [run for run in named if run not in finished]
    if not finished:
        listed = ", ".join(map(str, folders))
        raise UserError(f"{listed}: none of the {len(missing)} runs is finished; run 'moecl sweep'")
    runs = []
    for folder in finished:
        results = Results.load(folder.workdir)
        config = read_object(folder.workdir / CONFIG_NAME) if _has(folder, CONFIG_NAME) else {}
        log = list(_read_log(folder.workdir / LOG_NAME)) if _has(folder, LOG_NAME) else []
        variant, order = folder.variant or results.method, folder.order or ""
        runs.append(FinishedRun(variant, order, folder.workdir, results, config, log))
    told_apart = [run for group in by_tasks(runs) for run in _told_apart(_in_orders(group))]
    places = {folder.workdir: place for place, folder in enumerate(finished)}
    return sorted(told_apart, key=lambda run: places[run.workdir]), missing


def by_tasks(runs: Iterable[FinishedRun]) -> list[list[FinishedRun]]:
    """Groups runs by the set of their tasks: nothing is averaged or compared over several."""
    groups: dict[frozenset[str], list[FinishedRun]] = collections.defaultdict(list)
    for run in runs:
        groups[frozenset(run.results.tasks)].append(run)
    return list(groups.values())


def sorted_order_names(names: Iterable[str]) -> list[str]:
    """Returns each name once, short names first, so that numbers are sorted by their size."""
    return sorted(set(names), key=lambda name: (len(name), name))


def _run_folders(folder: Path) -> list[RunFolder]:
    """The runs of a sweep's folder, or the one run of a workdir."""
    path = folder / SWEEP_NAME
    if not path.exists():
        if not (folder / RESULTS_NAME).exists():
            raise UserError(
                f"{folder} holds neither {RESULTS_NAME} nor {SWEEP_NAME}: it is no workdir of a "
                "finished training and no sweep; finish 'moecl train', or name another --workdir"
            )
        return [RunFolder(None, None, None, folder)]
    try:
        return [
            RunFolder(
                str(run["variant"]),
                None if run["order"] is None else str(run["order"]),
                int(run["seed"]),
                folder / run["workdir"],
            )
            for run in read_object(path)["runs"]
        ]
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is broken: expected a list 'runs' of objects with 'variant', 'order', 'seed' "
            f"and 'workdir' ({one_line(error)}). Run 'moecl sweep' again."
        ) from error


def _has(run: RunFolder, name: str) -> bool:
    return (run.workdir / name).exists()


def _read_log(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the lines of a metrics.jsonl; a half-written last line is left out."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                content = parse_json(line)
                int(content["step"]), str(content["task"])
                for key in _LOGGED:
                    check_number(key, content.get(key))
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(
                    f"{path}, line {number}: expected a JSON object with 'step', 'task' and "
                    f"numbers, as a run writes them ({one_line(error)}); delete that line, or move "
                    "the file away"
                ) from error
            yield content


def _told_apart(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Gives runs that differ in more than order and seed names that differ.

    Settings that differ are added to a name as a sweep writes them, or the number of the settings
    if there are many. Where runs with the same order and seed still share a name, the folder's name
    is added, or its whole path if even the folders' names are equal.

    Args:
      runs: runs on the same tasks.
    """
    names = [
        run.variant + ending for run, ending in zip(runs, _settings_endings(runs), strict=True)
    ]
    bare = names
    for folder_name in (lambda folder: folder.name, str):
        keys = [(name, *run.key) for name, run in zip(names, runs, strict=True)]
        counts = collections.Counter(keys)
        names = [
            f"{plain} ({folder_name(run.workdir)})" if counts[key] > 1 else name
            for run, plain, name, key in zip(runs, bare, names, keys, strict=True)
        ]
    return [dataclasses.replace(run, variant=name) for run, name in zip(runs, names, strict=True)]


def _settings_endings(runs: Sequence[FinishedRun]) -> list[str]:
    """For each run what its settings add to its name; nothing where all of a name are equal."""
    endings = [""] * len(runs)
    for variant in {run.variant for run in runs}:
        places = [p for p, run in enumerate(runs) if run.variant == variant and run.config]
        settings = [dict(_leaves(runs[place].config)) for place in places]
        shared = set.intersection(*map(set, settings)) if settings else set()
        differing = sorted(key for key in shared if len({str(one[key]) for one in settings}) > 1)
        values = [tuple(f":{key}={one[key]}" for key in differing) for one in settings]
        numbers = {value: number for number, value in enumerate(dict.fromkeys(values), start=1)}
        for place, value in zip(places, values, strict=True):
            many = len(differing) > _MOST_NAMED_SETTINGS
            endings[place] = f" (settings {numbers[value]})" if many else "".join(value)
    return endings


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by dotted key, without those that may differ between the runs of a row."""
    for name, value in config.items():
        key = f"{prefix}{name}"
        if key in ("seed", "definitions", *FREE_KEYS):  # definitions tell where the data lie
            continue
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value


def _in_orders(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Names each list of tasks: by a sweep's name for it, or else by the next free number."""
    orders: dict[tuple[str, ...], str] = {}
    for run in runs:
        if run.order and run.order not in orders.values():
            orders.setdefault(run.results.tasks, run.order)
    for tasks in dict.fromkeys(run.results.tasks for run in runs):
        if tasks not in orders:
            numbers = map(str, itertools.count(1))
            orders[tasks] = next(number for number in numbers if number not in orders.values())
    return [dataclasses.replace(run, order=orders[run.results.tasks]) for run in runs]
