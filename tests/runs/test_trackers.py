"""Trackers: what they get, TensorBoard's files, servers' packages, and what fails."""

import json
import sys
import types
from importlib.machinery import ModuleSpec
from typing import ClassVar

import numpy as np
import pytest
from streams import tiny_settings

from moecl_jax import reporting
from moecl_jax.errors import UserError
from moecl_jax.runs import trackers
from moecl_jax.runs.log import MetricsLog
from moecl_jax.runs.settings import Settings
from moecl_jax.runs.trackers import TRACKERS, Tracker, Trackers, require
from moecl_jax.training.trainer import train


class Kept(Tracker):
    """Keeps what it gets."""

    made: ClassVar[list[Tracker]] = []

    def __init__(self, workdir, settings, resumed_step):
        self.workdir, self.settings, self.resumed_step = workdir, settings, resumed_step
        self.figures, self.histograms, self.closed = [], [], 0
        self.made.append(self)

    def log(self, values, step):
        self.figures.append((step, dict(values)))

    def histogram(self, name, values, step):
        self.histograms.append((step, name, values.shape))

    def close(self):
        self.closed += 1


@pytest.fixture
def kept(monkeypatch):
    """Makes "kept" the name of a tracker; the list of those that were made."""
    monkeypatch.setattr(Kept, "made", [])
    monkeypatch.setitem(TRACKERS, "kept", Kept)
    return Kept.made


class Messages(reporting.SilentReporter):
    def __init__(self):
        self.lines = []

    def message(self, text):
        self.lines.append(text)


@pytest.fixture
def messages():
    reporter = Messages()
    with reporting.use(reporter):
        yield reporter.lines


def test_a_training_gives_losses_validation_the_matrix_and_histograms(tmp_path, kept, messages):
    settings = tiny_settings(tmp_path, tasks=("two", "five"), epochs=2, trackers=("kept",))
    results = train(settings, tmp_path / "run")
    [tracker] = kept
    assert tracker.closed == 1
    assert tracker.settings["epochs"] == 2 and tracker.resumed_step == 0
    by_name = {}
    for step, values in tracker.figures:
        for name, value in values.items():
            by_name.setdefault(name, []).append((step, value))
    matrix = np.array(results["accuracy_matrix"])
    for place, name in enumerate(("two", "five")):
        curve = [(0, results["random_init"][place]), (12, matrix[0, place]), (24, matrix[1, place])]
        assert by_name[f"test/{name}"] == curve
    means = by_name["test_mean/finished_tasks"]
    assert means == [(12, matrix[0, 0]), (24, pytest.approx(matrix[1].mean()))]
    assert [step for step, _ in by_name["validation/two"]] == [6, 12]
    assert [step for step, _ in by_name["validation/five"]] == [18, 24]
    assert max(value for _, value in by_name["validation/five"]) == pytest.approx(
        results["validation_accuracy"][1]
    )
    losses = by_name["train/loss_instruction"]
    assert [step for step, _ in losses] == list(range(1, 25))
    assert not {"train/step", "train/task_step", "train/task_steps"} & by_name.keys()
    gates = [(step, name) for step, name, _ in tracker.histograms if name.startswith("gate/")]
    assert gates == [(12, "gate/two"), (24, "gate/two"), (24, "gate/five")]
    parameters = {name for _, name, _ in tracker.histograms if name.startswith("parameters/")}
    assert any("shared" in name for name in parameters)
    assert any("expert" in name for name in parameters)
    told = [line for line in messages if line.startswith("task ")]
    assert [line.partition(":")[0] for line in told] == ["task 1/2 two", "task 2/2 five"]
    assert f"mean so far {100 * matrix[1].mean():.1f}" in told[1]


class Broken(Kept):
    def log(self, values, step):
        if step == 2:
            raise ConnectionError("the server\ndoes not answer")
        super().log(values, step)


class Unopened(Kept):
    def __init__(self, *_):
        raise PermissionError("no key")


def test_what_a_tracker_raises_is_one_note_and_ends_it_alone(tmp_path, kept, monkeypatch, messages):
    monkeypatch.setitem(TRACKERS, "broken", Broken)
    monkeypatch.setitem(TRACKERS, "unopened", Unopened)
    with MetricsLog(tmp_path, trackers=("unopened", "broken", "kept")) as log:
        for step in range(1, 6):
            log.write({"step": step, "loss": 0.5})
    assert [line.partition(";")[0] for line in messages] == [
        "note: the tracker 'unopened' failed (PermissionError: no key). The training goes on "
        "without it",
        "note: the tracker 'broken' failed (ConnectionError: the server does not answer). The "
        "training goes on without it",
    ]
    broken, whole = kept
    assert [step for step, _ in broken.figures] == [1]
    assert [step for step, _ in whole.figures] == [1, 2, 3, 4, 5]
    assert (broken.closed, whole.closed) == (1, 1)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 5


def test_an_interrupt_is_no_failure_of_a_tracker(tmp_path, monkeypatch):
    class Interrupted(Kept):
        def log(self, *_):
            raise KeyboardInterrupt

    monkeypatch.setitem(TRACKERS, "interrupted", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        Trackers(("interrupted",), tmp_path, {}).log({"x": 1.0}, 1)


def test_what_is_not_finite_is_left_out(tmp_path, kept):
    opened = Trackers(("kept",), tmp_path, {})
    opened.log({"a": float("nan"), "b": 1.0}, 1)
    opened.log({"a": float("inf")}, 2)
    opened.histogram("none", np.zeros(0), 3)
    opened.histogram("broken", np.array([1.0, np.nan]), 3)
    opened.histogram("whole", np.ones((2, 3)), 3)
    assert kept[0].figures == [(1, {"b": 1.0})]
    assert kept[0].histograms == [(3, "whole", (2, 3))]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("tensorbord",), r"'tensorbord' is not one of .*; did you mean 'tensorboard'\?"),
        (("wandb", "wandb"), "none of them twice"),
        ("wandb", "must be a list of values"),
    ],
)
def test_wrong_names_are_refused_with_the_config(names, message):
    with pytest.raises(UserError, match=message):
        Settings(trackers=names)


def test_a_class_of_ones_own_is_named_as_others_are(tmp_path, monkeypatch):
    (tmp_path / "own_tracker.py").write_text(
        "from moecl_jax.runs.trackers import Tracker\n"
        "class Own(Tracker):\n"
        "    def __init__(self, workdir, settings, resumed_step):\n"
        "        self.file = workdir / 'own.txt'\n"
        "    def log(self, values, step):\n"
        "        self.file.write_text(f'{step} {values}')\n"
        "class Half(Tracker):\n"
        "    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert Settings(trackers=("own_tracker:Own",)).trackers == ("own_tracker:Own",)
    with MetricsLog(tmp_path / "run", trackers=("own_tracker:Own",)) as log:
        log.write({"step": 1, "loss": 0.5})
        log.trackers.histogram("gate/two", np.ones(2), 1)
    assert (tmp_path / "run" / "own.txt").read_text() == "1 {'train/loss': 0.5}"
    with pytest.raises(UserError, match=r"Half lacks __init__, log|Half lacks"):
        require(("own_tracker:Half",))
    with pytest.raises(UserError, match="there is no module 'absent_tracker'"):
        require(("absent_tracker:Own",))


def test_a_package_that_is_absent_is_named_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda _: None)
    settings = tiny_settings(tmp_path, trackers=("tensorboard", "mlflow"))
    with pytest.raises(UserError, match=r"pip install \"moecl_jax\[mlflow\]\"; or leave 'mlflow'"):
        train(settings, tmp_path / "run")


def test_every_package_is_an_extra(repository):
    import tomllib

    extras = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    named = {tracker.package for tracker in TRACKERS.values() if tracker.package}
    assert named == {"wandb", "mlflow"}
    assert named <= extras["optional-dependencies"].keys()


@pytest.fixture
def fake(monkeypatch):
    """Puts a module in place of a package; gives the list of its calls."""

    def put(name, **attributes):
        module = types.ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)

    return put


def test_wandb_gets_figures_with_their_step_and_the_same_run_again(tmp_path, fake):
    calls = []

    class Run:
        id = "abc1"

        def log(self, values):
            calls.append(("log", values))

        def define_metric(self, name, step_metric=None):
            calls.append(("metric", name, step_metric))

        def finish(self):
            calls.append(("finish",))

    def init(**arguments):
        calls.append(("init", arguments))
        return Run()

    fake(
        "wandb",
        init=init,
        Settings=lambda **values: values,
        Histogram=lambda np_histogram: np_histogram,
    )
    workdir = tmp_path / "first"
    with MetricsLog(workdir, trackers=("wandb",), settings={"epochs": 3}) as log:
        log.write({"step": 4, "task": "two", "loss": 0.5})
        log.trackers.histogram("gate/two", np.arange(4.0), 4)
    (_, begun), *others = calls
    assert (begun["name"], begun["id"], begun["resume"]) == ("first", None, "allow")
    assert (begun["config"], begun["dir"]) == ({"epochs": 3}, str(workdir))
    assert ("log", {"train/loss": 0.5, "global_step": 4}) in others
    [histogram] = [
        call[1]["gate/two"] for call in others if call[0] == "log" and "gate/two" in call[1]
    ]
    assert histogram[0].sum() == 4
    assert ("metric", "*", "global_step") in others and others[-1] == ("finish",)
    assert json.loads((workdir / "trackers.json").read_text()) == {"wandb": "abc1"}
    calls.clear()
    MetricsLog(workdir, trackers=("wandb",), resumed_step=4).close()
    assert calls[0][1]["id"] == "abc1"


def test_mlflow_gets_figures_parameters_once_and_the_same_run_again(tmp_path, fake):
    calls = []
    run = types.SimpleNamespace(info=types.SimpleNamespace(run_id="77"))

    def start_run(**arguments):
        calls.append(("start", arguments))
        return run

    fake(
        "mlflow",
        start_run=start_run,
        log_params=lambda values: calls.append(("params", values)),
        log_metrics=lambda values, step: calls.append(("metrics", values, step)),
        end_run=lambda: calls.append(("end",)),
    )
    settings = {"a": {"b": 1}, "definitions": {"x": 2}, **{f"k{i}": i for i in range(150)}}
    with MetricsLog(tmp_path / "first", trackers=("mlflow",), settings=settings) as log:
        log.write({"step": 4, "task": "two", "loss": 0.5})
        log.trackers.histogram("gate/two", np.arange(4.0), 4)
    assert calls[0] == ("start", {"run_id": None, "run_name": "first"})
    parameters = [values for name, *rest in calls if name == "params" for values in rest]
    assert max(map(len, parameters)) <= 100
    assert {k: v for part in parameters for k, v in part.items()} == {
        "a.b": "1",
        **{f"k{i}": str(i) for i in range(150)},
    }
    assert calls[-2:] == [("metrics", {"train/loss": 0.5}, 4), ("end",)]
    calls.clear()
    MetricsLog(tmp_path / "first", trackers=("mlflow",), resumed_step=4).close()
    assert calls == [("start", {"run_id": "77", "run_name": "first"}), ("end",)]
