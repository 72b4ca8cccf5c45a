"""Reads the runs that a report is about: workdirs, and sweep folders full of them."""

import collections
import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moecl_jax.errors import UserError, one_line
from moecl_jax.runs.log import LOG_NAME

# As in workdir.py, which would import JAX.
CONFIG_NAME = "config.json"
RESULTS_NAME = "results.json"
SWEEP_NAME = "sweep.json"
METRICS = ("acc", "bwt", "fwt", "forgetting")
_RESULT_KEYS = (
    "method",
    "tasks",
    "accuracy_matrix",
    "random_init",
    "metrics",
    "seed",
    "wall_seconds",
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run. T tasks, L layers.

    Attributes:
      variant: the row it belongs to: its method, and what sets it apart from others of that method.
      order: name of its order of tasks; runs with the same list of tasks share it.
      workdir: its folder.
      results: content of its `results.json`.
      config: content of its `config.json`; empty if there is none.
      log: the lines of its `metrics.jsonl`; empty if there is none.
    """

    variant: str
    order: str
    workdir: Path
    results: Mapping[str, Any]
    config: Mapping[str, Any]
    log: Sequence[Mapping[str, Any]]

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(self.results["method"])

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.results["seed"])

    @property
    def tasks(self) -> list[str]:
        """The tasks in the order of training, T of them."""
        return list(self.results["tasks"])

    @property
    def matrix(self) -> NDArray[np.float64]:
        """R, `[T, T]`, fractions; NaN where it was not measured."""
        return np.asarray(self.results["accuracy_matrix"], np.float64)

    @property
    def random_init(self) -> NDArray[np.float64]:
        """Accuracies before any training, `[T]`, fractions; NaN where not measured."""
        return np.asarray(self.results["random_init"], np.float64)

    @property
    def task_free(self) -> Mapping[str, Any]:
        """Accuracies where the task is picked from the text; empty where that was not measured."""
        return self.results.get("task_free") or {}

    def metric(self, name: str) -> float | None:
        """One of `METRICS` as a fraction; None if it is unknown."""
        value = self.results["metrics"][name]
        return None if value is None else float(value)

    def setting(self, key: str) -> Any:
        """A value of the config by its dotted key; None if the config has no such key."""
        value: Any = self.config
        for part in key.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return None
            value = value[part]
        return value

    def sizes(self, split: str) -> dict[str, int] | None:
        """Texts of each task's split; None in results that do not tell."""
        counts = self.results.get("sizes")
        return None if counts is None else dict(zip(self.tasks, counts[split], strict=True))


@dataclasses.dataclass(frozen=True)
class Planned:
    """A run that a folder stands for: finished or, if it has no `results.json`, not yet.

    Attributes:
      variant: as the sweep names it; None for a plain workdir.
      order: as the sweep names it; None for a plain workdir, or for a sweep without orders.
      seed: as the sweep has it; None for a plain workdir.
      workdir: its folder.
    """

    variant: str | None
    order: str | None
    seed: int | None
    workdir: Path

    def __str__(self) -> str:
        names = (self.variant, self.order and f"order {self.order}", f"seed {self.seed}")
        return ", ".join(name for name in names if name)


def read_runs(folders: Sequence[Path]) -> tuple[list[Run], list[Planned]]:
    """Reads workdirs and sweep folders.

    Args:
      folders: each the workdir of a finished run, or a folder with a `sweep.json`.

    Returns:
      The finished runs, and those of a sweep that are not finished yet.

    Raises:
      UserError: a folder is neither, no run is finished, a folder is given twice, or a file is
        broken.
    """
    planned = [run for folder in folders for run in _planned(folder)]
    counts = collections.Counter(run.workdir.resolve() for run in planned)
    twice = next((run.workdir for run in planned if counts[run.workdir.resolve()] > 1), None)
    if twice is not None:
        raise UserError(f"{twice} is given twice; give each run once, or its sweep's folder alone")
    finished = [p for p in planned if p.variant is None or (p.workdir / RESULTS_NAME).exists()]
    missing = [run for run in planned if run not in finished]
    if not finished:
        listed = ", ".join(map(str, folders))
        raise UserError(f"{listed}: none of the {len(missing)} runs is finished; run 'moecl sweep'")
    results = [read_results(run.workdir) for run in finished]
    for run, content in zip(finished, results, strict=True):
        try:
            _check(content)
        except (LookupError, TypeError, ValueError) as error:
            path = run.workdir / RESULTS_NAME
            raise UserError(
                f"{path} is broken: {one_line(error)}. Train that run again, or leave it out."
            ) from error
    variants, orders = _variants(finished, results), _orders(finished, results)
    runs = []
    for run, content, variant in zip(finished, results, variants, strict=True):
        config = _read_object(run.workdir / CONFIG_NAME) if _has(run, CONFIG_NAME) else {}
        log = list(_read_log(run.workdir / LOG_NAME)) if _has(run, LOG_NAME) else []
        order = orders[tuple(content["tasks"])]
        runs.append(Run(variant, order, run.workdir, content, config, log))
    return runs, missing


def order_names(names: Iterable[str]) -> list[str]:
    """Each name once, numbers by their size."""
    return sorted(set(names), key=lambda name: (len(name), name))


def read_results(workdir: Path) -> dict[str, Any]:
    """Reads a workdir's `results.json`.

    Raises:
      UserError: there is none, or it is not an object with the keys of the first version.
    """
    path = workdir / RESULTS_NAME
    if not path.exists():
        raise UserError(
            f"{path} does not exist: {workdir} is no workdir, or its training has not finished"
        )
    results = _read_object(path)
    missing = [key for key in _RESULT_KEYS if key not in results]
    if missing:
        raise UserError(f"{path} is broken: it lacks {', '.join(missing)}")
    return results


def _planned(folder: Path) -> list[Planned]:
    path = folder / SWEEP_NAME
    if not path.exists():
        if not (folder / RESULTS_NAME).exists():
            raise UserError(
                f"{folder} holds neither {RESULTS_NAME} nor {SWEEP_NAME}: it is no workdir of a "
                "finished training and no sweep; finish 'moecl train', or name another --workdir"
            )
        return [Planned(None, None, None, folder)]
    try:
        return [
            Planned(
                str(run["variant"]),
                None if run["order"] is None else str(run["order"]),
                int(run["seed"]),
                folder / run["workdir"],
            )
            for run in _read_object(path)["runs"]
        ]
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is broken: expected a list 'runs' of objects with 'variant', 'order', 'seed' "
            f"and 'workdir' ({one_line(error)}). Run 'moecl sweep' again."
        ) from error


def _has(run: Planned, name: str) -> bool:
    return (run.workdir / name).exists()


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is broken: expected a JSON object")
    return content


def _read_log(path: Path) -> Iterator[dict[str, Any]]:
    """The lines with a step; a half-written last one is left out."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                content = json.loads(line)
                int(content["step"]), str(content["task"])
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(
                    f"{path}, line {number}: expected a JSON object with 'step' and 'task', as a "
                    "run writes them; delete that line, or move the file away"
                ) from error
            yield content


def _check(results: Mapping[str, Any]) -> None:
    """Raises ValueError, TypeError or LookupError where an array has not the shape it should."""
    count = len(results["tasks"])
    shapes: dict[str, tuple[int | None, ...]] = {
        "accuracy_matrix": (count, count),
        "random_init": (count,),
    }
    optional = {"gate_weights": (count, None)}
    shapes |= {key: shape for key, shape in optional.items() if results.get(key) is not None}
    for key, shape in shapes.items():
        _check_shape(key, results[key], shape)
    if results.get("sizes") is not None:
        for split in ("train", "validation", "test"):
            _check_shape(f"sizes.{split}", results["sizes"][split], (count,))
    if results.get("task_free") is not None:
        _check_shape("task_free.accuracy", results["task_free"]["accuracy"], (count,))
        _check_shape("task_free.choices", results["task_free"]["choices"], (count, count))
    for name in METRICS:
        if name not in results["metrics"]:
            raise ValueError(f"metrics lacks {name}")
    numbers = [results["seed"], results["wall_seconds"], *results["metrics"].values()]
    np.asarray(numbers, np.float64)


def _check_shape(key: str, values: Any, expected: tuple[int | None, ...]) -> None:
    shape = np.asarray(values, np.float64).shape
    fits = len(shape) == len(expected) and all(
        want in (None, have) for have, want in zip(shape, expected, strict=True)
    )
    if not fits:
        wanted = " x ".join("any" if size is None else str(size) for size in expected)
        raise ValueError(
            f"{key} has the shape {' x '.join(map(str, shape))}, but {wanted} was expected"
        )


def _variants(planned: Sequence[Planned], results: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each run; where runs would be mistaken for each other, with their folders'."""
    names = [
        run.variant or str(content["method"]) for run, content in zip(planned, results, strict=True)
    ]
    for folder_name in (lambda folder: folder.name, str):
        keys = [
            (name, tuple(content["tasks"]), content["seed"])
            for name, content in zip(names, results, strict=True)
        ]
        counts = collections.Counter(keys)
        bare = [
            run.variant or str(content["method"])
            for run, content in zip(planned, results, strict=True)
        ]
        names = [
            f"{method} ({folder_name(run.workdir)})" if counts[key] > 1 else name
            for run, method, name, key in zip(planned, bare, names, keys, strict=True)
        ]
    return names


def _orders(
    planned: Sequence[Planned], results: Sequence[Mapping[str, Any]]
) -> dict[tuple[str, ...], str]:
    """A name for each list of tasks: a sweep's own, or else the next free number."""
    orders: dict[tuple[str, ...], str] = {}
    lists = [tuple(content["tasks"]) for content in results]
    for run, tasks in zip(planned, lists, strict=True):
        if run.order is not None and run.order not in orders.values():
            orders.setdefault(tasks, run.order)
    for tasks in lists:
        if tasks not in orders:
            numbers = (str(number) for number in range(1, len(lists) + len(orders) + 2))
            orders[tasks] = next(number for number in numbers if number not in orders.values())
    return orders
