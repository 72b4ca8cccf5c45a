"""Where the figures of a run are shown while it is trained: TensorBoard, a server, or one's own.

`config.trackers` names them. `metrics.jsonl` is written whatever they do.
"""

import abc
import contextlib
import importlib
import importlib.util
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from moecl_jax import reporting
from moecl_jax.errors import UserError, one_line, suggestion
from moecl_jax.outside import parse_json, shortened
from moecl_jax.plugins import load_class
from moecl_jax.runs.events import EventsFile
from moecl_jax.runs.names import LOG_NAME, TENSORBOARD_FOLDER, TRACKERS_NAME
from moecl_jax.writing import whole_file

_PARAMETERS_A_CALL = 100  # MLflow takes no more
_LONGEST_PARAMETER = 500  # characters, for the same reason


class Tracker(abc.ABC):
    """Shows the figures of a run.

    One of your own inherits from this class, and a config names it "package.module:Class". What it
    raises ends the tracker, with a note, and not the training.

    Attributes:
      package: package that must be installed, which is also the name of moecl_jax's extra; "" for
        none.
    """

    package: ClassVar[str] = ""

    @abc.abstractmethod
    def __init__(
        self, workdir: Path, settings: Mapping[str, Any], resumed_step: int | None
    ) -> None:
        """Begins, or goes on after an interruption.

        Args:
          workdir: folder of the run.
          settings: the content of config.json.
          resumed_step: the last global step whose figures hold; later ones come again. None if all
            hold.
        """

    @abc.abstractmethod
    def log(self, values: Mapping[str, float], step: int) -> None:
        """Takes figures of a step.

        Args:
          values: finite numbers by name, such as "train/loss".
          step: the global step.
        """

    def histogram(self, name: str, values: np.ndarray, step: int) -> None:  # noqa: B027
        """Takes many numbers of which the distribution matters; by default nothing is done.

        Args:
          name: name of the histogram, such as "gate/trec".
          values: finite numbers in any shape, at least one.
          step: the global step.
        """

    def close(self) -> None:  # noqa: B027
        """Ends; called once, also after an error elsewhere."""


class TensorBoard(Tracker):
    """Writes event files into the folder `tensorboard` of the workdir."""

    def __init__(
        self, workdir: Path, settings: Mapping[str, Any], resumed_step: int | None
    ) -> None:
        """Begins a file; TensorBoard forgets figures that come again."""
        del settings
        purge_step = None if resumed_step is None else resumed_step + 1
        self._events = EventsFile(workdir / TENSORBOARD_FOLDER, purge_step=purge_step)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Adds a point to the curve of each name."""
        for name, value in values.items():
            self._events.add(name, value, step)

    def histogram(self, name: str, values: np.ndarray, step: int) -> None:
        """Adds a histogram."""
        self._events.add_histogram(name, values, step)

    def close(self) -> None:
        """Writes out what is buffered."""
        self._events.close()


class Wandb(Tracker):
    """Sends to Weights & Biases. WANDB_PROJECT, WANDB_MODE and the like say where."""

    package: ClassVar[str] = "wandb"

    def __init__(
        self, workdir: Path, settings: Mapping[str, Any], resumed_step: int | None
    ) -> None:
        """Begins a run there, or goes on with the one that this workdir had before."""
        del resumed_step  # figures have their step beside them, and may come in any order
        self._wandb = importlib.import_module(self.package)
        known = _remembered(workdir, self.package)
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", "moecl_jax"),
            name=workdir.absolute().name,
            id=known,
            resume="allow",
            dir=str(workdir),
            config=dict(settings),
            settings=self._wandb.Settings(silent=True),
        )
        _remember(workdir, self.package, str(self._run.id))
        self._run.define_metric("global_step")
        self._run.define_metric("*", step_metric="global_step")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Sends the figures with their step as `global_step`."""
        self._run.log({**values, "global_step": step})

    def histogram(self, name: str, values: np.ndarray, step: int) -> None:
        """Sends a histogram."""
        counts = np.histogram(values, bins=64)
        found = self._wandb.Histogram(np_histogram=counts)
        self._run.log({name: found, "global_step": step})

    def close(self) -> None:
        """Ends the run there."""
        self._run.finish()


class Mlflow(Tracker):
    """Sends to MLflow. MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME say where."""

    package: ClassVar[str] = "mlflow"

    def __init__(
        self, workdir: Path, settings: Mapping[str, Any], resumed_step: int | None
    ) -> None:
        """Begins a run there, or goes on with the one that this workdir had before."""
        del resumed_step  # a figure that comes again has the same step
        self._mlflow = importlib.import_module(self.package)
        known = _remembered(workdir, self.package)
        run = self._mlflow.start_run(run_id=known, run_name=workdir.absolute().name)
        if known is None:
            _remember(workdir, self.package, str(run.info.run_id))
            items = list(_flat({k: v for k, v in settings.items() if k != "definitions"}))
            for first in range(0, len(items), _PARAMETERS_A_CALL):
                self._mlflow.log_params(dict(items[first : first + _PARAMETERS_A_CALL]))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Sends the figures."""
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        """Ends the run there."""
        self._mlflow.end_run()


TRACKERS: dict[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": Mlflow,
}
"""The known trackers by name."""


def check_names(names: Sequence[str]) -> None:
    """Refuses names that cannot be trackers; classes of one's own are not imported yet.

    Raises:
      UserError: one is neither known nor "package.module:Class", or stands twice.
    """
    for name in names:
        if name not in TRACKERS and ":" not in name:
            raise UserError(
                f"config: trackers = {shortened(name)} is not one of {', '.join(TRACKERS)}"
                f"{suggestion(name, TRACKERS)}; one of your own is named 'package.module:Class'"
            )
    if len(set(names)) < len(names):
        raise UserError(f"config: trackers = {shortened(names)} must hold none of them twice")


def require(names: Sequence[str]) -> None:
    """Finds all trackers and the packages that they need, before anything is trained.

    Raises:
      UserError: a class cannot be imported, or a package is not installed.
    """
    for name in names:
        package = _find(name).package
        if package and importlib.util.find_spec(package) is None:
            raise UserError(
                f"config: trackers has {name!r}, and the package {package!r} is not installed. "
                f'Install it: pip install "moecl_jax[{package}]"; or leave {name!r} out'
            )


class Trackers:
    """All trackers of a run. One that fails is left out from then on, with a note."""

    def __init__(
        self,
        names: Sequence[str],
        workdir: Path,
        settings: Mapping[str, Any],
        resumed_step: int | None = None,
    ) -> None:
        """Opens them; arguments as for `Tracker`.

        Raises:
          UserError: one cannot be found, or lacks its package.
        """
        require(names)
        self._open: dict[str, Tracker] = {}
        for name in names:
            try:
                self._open[name] = _find(name)(workdir, settings, resumed_step)
            except Exception as error:  # a server's, a disk's, a user's
                _note(name, error)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Gives figures to all; those that are not finite are left out."""
        finite = {name: float(value) for name, value in values.items() if np.isfinite(value)}
        if finite:
            self._each(lambda tracker: tracker.log(finite, step))

    def histogram(self, name: str, values: np.ndarray, step: int) -> None:
        """Gives a histogram to all, if all its numbers are finite."""
        if self._open and values.size and np.isfinite(values).all():
            self._each(lambda tracker: tracker.histogram(name, values, step))

    def close(self) -> None:
        """Closes all."""
        self._each(lambda tracker: tracker.close())
        self._open.clear()

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                call(tracker)
            except Exception as error:  # a server's, a disk's, a user's
                del self._open[name]
                _note(name, error)
                with contextlib.suppress(Exception):  # it was told already
                    tracker.close()


def _note(name: str, error: Exception) -> None:
    reporting.current().message(
        f"note: the tracker {name!r} failed ({type(error).__name__}: {one_line(error)}). The "
        f"training goes on without it; {LOG_NAME} has all figures"
    )


def _find(name: str) -> type[Tracker]:
    known = TRACKERS.get(name)
    return known if known is not None else load_class(name, Tracker, "tracker")


def _remembered(workdir: Path, package: str) -> str | None:
    """The run of a server that belongs to a workdir; None if there is none yet."""
    try:
        found = parse_json((workdir / TRACKERS_NAME).read_bytes())[package]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return found if isinstance(found, str) else None


def _remember(workdir: Path, package: str, run: str) -> None:
    """Notes which run of a server belongs to a workdir, for when the training goes on."""
    path = workdir / TRACKERS_NAME
    runs = {name: known for name in TRACKERS if (known := _remembered(workdir, name)) is not None}
    with whole_file(path) as stream:
        stream.write((json.dumps({**runs, package: run}, indent=2) + "\n").encode())


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Dotted keys and texts of a nested mapping."""
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((prefix + key, str(value)[:_LONGEST_PARAMETER]))
    return found
