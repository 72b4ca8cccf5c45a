"""A source and a family from a user's file through the commands, as a method is in its own test."""

import csv
import json
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from streams import assert_bit_equal, logged, restored, stop_after

from moecl_jax.cli.main import main
from moecl_jax.data import Source
from moecl_jax.testing import write_model, write_task
from moecl_jax.weights.families import FAMILIES

MODULE = '''
import contextlib
import dataclasses
import sqlite3

from moecl_jax.data import Record, Source
from moecl_jax.weights.families.llama import Llama


@dataclasses.dataclass(frozen=True)
class Table:
    """Which table."""

    table: str


class SQLite(Source):
    """Rows of a table of a SQLite file, whose column `split` names the split."""

    Options = Table

    def read(self, task, split):
        query = f"select rowid, text, label from {task.options.table} where split = ?"
        with contextlib.closing(sqlite3.connect(task.path)) as base:
            for row, text, label in base.execute(query, [getattr(task, split)]):
                yield Record({"text": text, "label": label}, f"{task.path} row {row}")


class Short(Llama):
    """A Llama whose config.json need not say its context."""

    model_type = "short"
    defaults = {"max_position_embeddings": 300}
'''
CONFIG = """
from ml_collections import ConfigDict
from moecl_jax.config.default import get_config as default_config

def get_config():
    config = default_config()
    config.model.path, config.model.dtype = "model", "float32"
    config.model.family = "own_kinds:Short"
    for name, labels in {labels!r}.items():
        config.definitions[name] = ConfigDict(dict(
            source="own_kinds:SQLite", path="tasks.db", table=name, train="train",
            validation="validation", test="test", labels=labels, template="{{text}} answer",
        ))
    config.tasks = ("two", "five")
    config.batch.row_length = 64
    config.epochs, config.log_every, config.checkpoint_every = 1, 1, 2
    config.optimizer.learning_rate = 1e-2
    return config
"""
VARIANT = "replay:replay.memory=16"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory: the user's module, a model, a database of two tasks, a config."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_kinds.py").write_text(MODULE, encoding="utf-8")
    model_config = write_model(folder / "model") / "config.json"
    content = json.loads(model_config.read_text(encoding="utf-8"))
    model_config.write_text(json.dumps({**content, "model_type": "short"}), encoding="utf-8")
    labels = {name: _fill(folder, name, classes) for name, classes in (("two", 2), ("five", 5))}
    (folder / "tiny.py").write_text(CONFIG.format(labels=labels), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        yield folder
    sys.modules.pop("own_kinds", None)


def _fill(folder: Path, name: str, classes: int) -> tuple[str, ...]:
    """Writes a task as a table of tasks.db, and returns its labels."""
    fields = write_task(folder / "data", name, classes)
    base = sqlite3.connect(folder / "tasks.db")
    with base:
        base.execute(f"create table {name} (split, text, label)")
        for split in ("train", "validation", "test"):
            lines = (folder / "data" / str(fields[split])).read_text(encoding="utf-8").splitlines()
            rows = [(split, *json.loads(line).values()) for line in lines]
            base.executemany(f"insert into {name} values (?, ?, ?)", rows)
    base.close()
    labels = fields["labels"]
    assert isinstance(labels, tuple)
    return labels


@pytest.fixture(scope="module")
def swept(folder: Path) -> Path:
    """A finished sweep of two methods."""
    grid = folder / "grid"
    methods = f"--methods=moe_cl,{VARIANT}"
    assert main(["sweep", "--config=tiny.py", methods, f"--workdir={grid}"]) == 0
    return grid


@pytest.mark.slow
@pytest.mark.parametrize("method", ["moe_cl", VARIANT])
def test_killed_inside_the_second_task_they_resume_bit_for_bit(folder, swept, monkeypatch, method):
    whole = swept / method.replace(":", "+") / "seed0"
    name, *options = method.split(":")
    workdir = folder / f"resumed_{name}"
    flags = [f"--config.method={name}", *(f"--config.{option}" for option in options)]
    train = ["train", "--config=tiny.py", f"--workdir={workdir}", *flags]
    with monkeypatch.context() as patch:
        stop_after(patch, 9)  # of 6 steps a task
        assert main(train) == 130
    assert (workdir / "checkpoints" / "in_progress").is_dir()
    monkeypatch.delitem(sys.modules, "own_kinds")  # as a new process would import it again
    assert main(train) == 0
    assert logged(workdir) == logged(whole)
    first, second = (json.loads((run / "results.json").read_text()) for run in (workdir, whole))
    assert first["accuracy_matrix"] == second["accuracy_matrix"]
    (evaluator, ours, _), (_, theirs, _) = restored(workdir), restored(whole)
    assert_bit_equal((ours.shared, ours.memory), (theirs.shared, theirs.memory))
    assert evaluator.model.sizes.context_length == 300
    assert type(evaluator.tasks[0].reader).__name__ == "SQLite"
    assert "short" not in FAMILIES and issubclass(type(evaluator.tasks[0].reader), Source)


@pytest.mark.slow
def test_they_are_reported_evaluated_and_predict(folder, swept, capsys):
    page = folder / "report.html"
    assert main(["report", f"--workdir={swept}", f"--output={page}"]) == 0
    with page.with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        assert {"moe_cl", VARIANT} <= {value for row in csv.reader(file) for value in row}
    workdir = swept / "moe_cl" / "seed0"
    capsys.readouterr()
    assert main(["evaluate", f"--workdir={workdir}"]) == 0
    tasks = json.loads(capsys.readouterr().out)["tasks"]
    matrix = json.loads((workdir / "results.json").read_text())["accuracy_matrix"]
    assert [tasks[name]["accuracy"] for name in ("two", "five")] == matrix[-1]
    (folder / "in.jsonl").write_text('{"text": "w9 w8 w30"}\n', encoding="utf-8")
    files = ["--input=in.jsonl", "--output=out.jsonl"]
    assert main(["predict", f"--workdir={workdir}", "--task=five", *files]) == 0
    line = json.loads((folder / "out.jsonl").read_text(encoding="utf-8"))
    assert line["prediction"]["label"] in {f"w{index}" for index in range(5)}
