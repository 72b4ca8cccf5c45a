"""Tiny runs for tests: configs over the tiny model and tasks of moecl_jax.testing."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from moecl_jax.config.default import from_config
from moecl_jax.config.file import load_config
from moecl_jax.methods.stream import StreamState
from moecl_jax.runs.history import History
from moecl_jax.runs.settings import Settings
from moecl_jax.runs.store import DiskStore
from moecl_jax.runs.workdir import save_settings
from moecl_jax.serving.evaluator import Evaluator
from moecl_jax.serving.session import model_of, open_stream
from moecl_jax.testing import write_model, write_task
from moecl_jax.training.pieces import Cutter
from moecl_jax.training.task_training import TaskTraining
from moecl_jax.training.trainer import StreamTraining

ROOT = Path(__file__).resolve().parents[1]
CLASSES = {"two": 2, "five": 5, "fourteen": 14}
SPEEDS = ("examples_per_second", "tokens_per_second")


def tiny_config(folder: Path, **changes: Any) -> ConfigDict:
    """The default config on the tiny model and its three tasks; `changes` are dotted with `__`."""
    config = load_config(str(ROOT / "configs" / "default.py"))
    with config.unlocked():
        config.model.path = str(write_model(folder / "model"))
        config.model.dtype = "float32"
        for name, classes in CLASSES.items():
            config.definitions[name] = ConfigDict(write_task(folder / "data", name, classes))
        config.tasks = tuple(CLASSES)
        config.batch.row_length = 64
        config.epochs = 2
        config.log_every = 1
        config.checkpoint_every = 4
        config.optimizer.learning_rate = 1e-2
        for key, value in changes.items():
            *path, last = key.split("__")
            section = config
            for name in path:
                section = section[name]
            section[last] = value
    return config


def tiny_settings(folder: Path, **changes: Any) -> Settings:
    """The settings of `tiny_config`."""
    return from_config(tiny_config(folder, **changes))


def evaluator_of(settings: Settings) -> Evaluator:
    """Loads the model that settings name, and checks that model, method and tasks fit."""
    method, tasks = settings.method_object(), settings.task_objects()
    return Evaluator(model_of(settings), method, tasks, settings)


def watched_batches(monkeypatch: Any) -> list[tuple[int, list[tuple[int, ...]]]]:
    """Task and prompts of each training batch, as they are made."""
    made, original = [], Cutter.cut

    def watched(self: Cutter, index: int, examples: Any) -> Any:
        made.append((index, [tuple(example.prompt) for example in examples]))
        return original(self, index, examples)

    monkeypatch.setattr(Cutter, "cut", watched)
    return made


def training_of(settings: Settings, workdir: Path) -> StreamTraining:
    """The training of a stream in a workdir, to watch it from inside."""
    evaluator = evaluator_of(settings)
    store = DiskStore(workdir, evaluator.tasks, evaluator.starting, evaluator.model, settings)
    workdir.mkdir(parents=True, exist_ok=True)
    save_settings(settings, workdir)  # so that it can be opened afterwards
    return StreamTraining(evaluator, evaluator.load(), store, workdir)


def stop_after(monkeypatch, steps: int) -> None:
    """Makes training fail, as a killed process would, when `steps` steps are done."""
    original, count = TaskTraining._train_batch, [0]

    def counted(self, examples):
        if count[0] == steps:
            raise KeyboardInterrupt
        count[0] += 1
        return original(self, examples)

    monkeypatch.setattr(TaskTraining, "_train_batch", counted)


def restored(workdir: Path) -> tuple[Evaluator, StreamState, History | None]:
    """The evaluator, the state and the history of a workdir."""
    evaluator, store = open_stream(workdir)
    return evaluator, *store.restore()


def logged(workdir: Path, *, speeds: bool = False) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, less what depends on the clock unless `speeds`."""
    lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    if speeds:
        return entries
    return [{k: v for k, v in entry.items() if k not in SPEEDS} for entry in entries]


def assert_bit_equal(first: Any, second: Any) -> None:
    """Fails unless two trees have equal structure and every leaf equals bit for bit."""
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for (path, ours), theirs in zip(
        jax.tree.leaves_with_path(first), jax.tree.leaves(second), strict=True
    ):
        name = jax.tree_util.keystr(path)
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs), err_msg=name)
